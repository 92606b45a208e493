"""Seconds and joules of forward passes: the shared step model, without fusion.

The host starts every kernel of an eager pass one by one, so a pass takes the slower of the
GPU's kernels and the host's launches:

    t = max_w(sum of kernels, host_step_seconds + launches x host_launch_seconds)

The wait for the host does not depend on the clock, and draws `gap_power` of the busy floor.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.calibration.forward.rows import ForwardRows
from jaxlens.calibration.stacked_steps import line
from jaxlens.deployments import Deployment
from jaxlens.hardware import Chip, Stack
from jaxlens.pytrees import pytree
from jaxlens.serving import host_seconds, machine, requested_clock, settle

Rows = Float[Array, " row"] | float


@pytree
class ForwardPrediction:
    """What a model says of every row."""

    seconds: Rows
    joules: Rows
    clock_hz: Rows


def price(rows: ForwardRows, chip: Chip, stack: Stack) -> ForwardPrediction:
    """Returns the prediction of every row; leaves of the coefficients are per row."""
    deployment = Deployment(clock_hz=rows.clock_hz, fused=False)
    clock = jnp.asarray(requested_clock(chip, deployment))
    whole = jax.tree.map(
        lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), clock.shape),
        machine(chip, stack, deployment),
    )
    summed = line(rows.step, whole, jnp.ones_like(clock))
    host = host_seconds(stack, deployment, rows.load, rows.launches)
    cost = settle(summed, {}, host, chip, stack, deployment)
    return ForwardPrediction(
        seconds=cost.seconds, joules=cost.joules, clock_hz=cost.clock_hz
    )
