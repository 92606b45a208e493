"""Energy at the wall: GPUs, the rest of the server and the building.

    E_wall = PUE (E_gpu + P_host t)

Source: The Green Grid, "PUE: A Comprehensive Examination of the Metric", White Paper 49,
2012 (power usage effectiveness).
"""

from jaxtyping import Array, Float

from jaxlens.predictions import Estimate
from jaxlens.pytrees import pytree

Scalar = Float[Array, ""] | float


@pytree
class WallPlug:
    """What the electricity meter sees of an estimate."""

    joules_per_output_token: Scalar
    joules_per_request: Scalar
    joules_host_per_output_token: Scalar  # before the building's share
    watts_per_gpu: Scalar


def wall_plug(
    estimate: Estimate, host_watts: Scalar = 0.0, pue: Scalar = 1.0
) -> WallPlug:
    """Returns energy at the wall.

    Args:
        estimate: What the GPUs take.
        host_watts: Power of the server outside its GPUs, per GPU, assumed constant.
        pue: Power usage effectiveness of the building, at least 1.
    """
    gpu_seconds = estimate.gpus / estimate.output_tokens_per_second
    host = host_watts * gpu_seconds
    joules = pue * (estimate.joules_per_output_token + host)
    tokens = estimate.joules_per_request / estimate.joules_per_output_token
    return WallPlug(
        joules_per_output_token=joules,
        joules_per_request=joules * tokens,
        joules_host_per_output_token=host,
        watts_per_gpu=pue * (estimate.watts_per_gpu + host_watts),
    )
