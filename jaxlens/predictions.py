"""The estimate of one deployment: latency, energy, memory and where they come from."""

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxlens.deployments import Deployment, Workload
from jaxlens.hardware import Chip
from jaxlens.memory import Memory, memory
from jaxlens.power import switching
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.serving import Serving, StepCost, serve
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float


@pytree
class Causes:
    """Joules per output token by cause, over all GPUs."""

    static: Scalar  # leakage and memory, drawn also when nothing runs
    busy: Scalar  # clocks and schedulers while kernels run
    compute: Scalar
    hbm: Scalar  # weights, activations and states
    kv: Scalar
    link: Scalar


@pytree
class Estimate:
    """What a deployment takes and gives at steady state. Joules cover all GPUs."""

    seconds_prefill: Scalar  # one prompt alone
    seconds_per_output_token: Scalar  # mean over steps: TPOT
    seconds_decode_step: Scalar  # without prefill: the median inter-token latency
    seconds_mixed_step: Scalar
    mixed_step_share: Scalar
    output_tokens_per_second: Scalar
    requests_per_second: Scalar
    joules_to_first_token: Scalar  # ETFT
    joules_per_output_token: Scalar  # EPOT, prefill included
    joules_prefill_per_output_token: Scalar
    joules_decode_per_output_token: Scalar
    joules_per_request: Scalar
    watts_per_gpu: Scalar
    clock_hz: Scalar  # of a decode step, under the power cap
    gpus: Scalar
    memory_slack_bytes: Scalar
    memory: Memory
    causes: Causes
    decode_seconds_by_operation: dict[str, Scalar]
    decode_joules_by_operation: dict[str, Scalar]
    prefill_seconds_by_operation: dict[str, Scalar]
    prefill_joules_by_operation: dict[str, Scalar]


# Fields of an estimate that are one number each, in the order in which they are told.
NUMBERS = (
    "seconds_prefill",
    "seconds_per_output_token",
    "seconds_decode_step",
    "seconds_mixed_step",
    "mixed_step_share",
    "output_tokens_per_second",
    "requests_per_second",
    "joules_to_first_token",
    "joules_per_output_token",
    "joules_prefill_per_output_token",
    "joules_decode_per_output_token",
    "joules_per_request",
    "watts_per_gpu",
    "clock_hz",
    "gpus",
    "memory_slack_bytes",
)


def predict(
    model: Model, profile: Profile, deployment: Deployment, workload: Workload
) -> Estimate:
    """Returns the estimate of `deployment`: scalar in, scalar out, no jit inside.

    Differentiable in every float of every argument; `jax.vmap` it for many.
    """
    chip, stack = profile.chip, profile.stack
    serving = serve(model, chip, stack, deployment, workload)
    held = memory(model, chip, stack, deployment, workload)
    replica = deployment.tensor_parallel * deployment.pipeline_parallel
    gpus = replica * deployment.data_parallel
    per_token = gpus / deployment.batch
    joules = per_token * serving.joules_per_step
    decode_joules = per_token * serving.decode.joules
    rate = deployment.batch / serving.seconds_per_step
    chunks = serving.traffic.prefill_chunks
    return Estimate(
        seconds_prefill=chunks * serving.prefill.seconds,
        seconds_per_output_token=serving.seconds_per_step,
        seconds_decode_step=serving.decode.seconds,
        seconds_mixed_step=serving.mixed.seconds,
        mixed_step_share=serving.traffic.mixed_share,
        output_tokens_per_second=rate,
        requests_per_second=rate / workload.output_tokens,
        # The other stages of a pipeline work for other requests meanwhile.
        joules_to_first_token=(
            chunks * serving.prefill.joules * deployment.tensor_parallel
        ),
        joules_per_output_token=joules,
        joules_prefill_per_output_token=joules - decode_joules,
        joules_decode_per_output_token=decode_joules,
        joules_per_request=joules * workload.output_tokens,
        watts_per_gpu=serving.joules_per_step / serving.seconds_per_step,
        clock_hz=serving.decode.clock_hz,
        gpus=gpus,
        memory_slack_bytes=held.slack_bytes,
        memory=held,
        causes=_causes(serving, per_token),
        decode_seconds_by_operation=_seconds(serving.decode),
        decode_joules_by_operation=_joules(serving.decode, chip, gpus),
        prefill_seconds_by_operation=_seconds(serving.prefill),
        prefill_joules_by_operation=_joules(
            serving.prefill, chip, deployment.tensor_parallel
        ),
    )


def exact(
    model: Model, profile: Profile, deployment: Deployment, workload: Workload
) -> Estimate:
    """Returns `predict` in float64 at once: nothing is traced or compiled.

    Where numbers are arrays, so are those of the estimate.
    """
    given = (model, profile, deployment, workload)
    with np.errstate(all="ignore"):
        return predict(*jax.tree.map(lambda leaf: np.asarray(leaf, float)[()], given))


def _causes(serving: Serving, per_token: Scalar) -> Causes:
    def mean(name: str) -> Scalar:
        decode, mixed = getattr(serving.decode, name), getattr(serving.mixed, name)
        return per_token * (decode + serving.traffic.mixed_share * (mixed - decode))

    return Causes(
        static=mean("static_joules"),
        busy=mean("busy_joules"),
        compute=mean("compute_joules"),
        hbm=mean("hbm_joules"),
        kv=mean("kv_joules"),
        link=mean("link_joules"),
    )


def _seconds(step: StepCost) -> dict[str, Scalar]:
    seconds = {name: line.seconds for name, line in step.lines.items()}
    shown = sum(seconds.values())
    # What the power cap adds is spread over what goes with the clock.
    clocked = {name: line.clocked_seconds for name, line in step.lines.items()}
    slower = (step.seconds - step.host_seconds - shown) / (
        sum(clocked.values()) + 1e-30
    )
    result = {name: seconds[name] + slower * clocked[name] for name in seconds}
    return {**result, "host: waiting": step.host_seconds}


def _joules(step: StepCost, chip: Chip, gpus: Scalar) -> dict[str, Scalar]:
    """Joules by operation: its own switching and traffic, and its share of the time."""
    factor = switching(step.clock_hz, chip)
    floor = (step.static_joules + step.busy_joules) / step.seconds
    seconds = _seconds(step)
    result = {"host: waiting": gpus * floor * step.host_seconds}
    for name, line in step.lines.items():
        own = line.flop_joules * factor + line.hbm_joules + line.kv_joules
        result[name] = gpus * (own + line.link_joules + floor * seconds[name])
    return result
