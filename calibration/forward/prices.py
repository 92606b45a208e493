"""Seconds and joules of forward passes: the shared step model, and what eager launches cost.

The host starts every kernel of an eager pass one by one, so a pass takes the slower of the
GPU's kernels and the host's launches:

    t = max_w(sum of kernels, host_step_seconds + launches x host_launch_seconds)

The wait for the host does not depend on the clock, and draws `gap_power` of the busy floor.
Products outside the matrix units reach `fp32_reach` of what the others reach of their peak.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.calibration.forward.rows import ForwardRows
from jaxlens.calibration.stacked_steps import line
from jaxlens.deployments import Deployment
from jaxlens.hardware import Chip, Stack
from jaxlens.pytrees import pytree
from jaxlens.serving import machine, settle

Rows = Float[Array, " row"]


@pytree
class EagerCosts:
    """Coefficients of eager execution, one number per row."""

    host_launch_seconds: Rows  # CPU time of one kernel launch
    fp32_reach: Rows  # efficiency of fp32 products over that of others


@pytree
class ForwardPrediction:
    """What a model says of every row."""

    seconds: Rows
    joules: Rows
    clock_hz: Rows


def price(
    rows: ForwardRows, chip: Chip, stack: Stack, eager: EagerCosts
) -> ForwardPrediction:
    """Returns the prediction of every row; leaves of the coefficients are per row."""
    chip = replace(
        chip, peak_fp32_flop_per_s=chip.peak_fp32_flop_per_s * eager.fp32_reach
    )
    deployment = Deployment(clock_hz=rows.clock_hz)
    whole = jax.tree.map(
        lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), rows.clock_hz.shape),
        machine(chip, stack, deployment),
    )
    summed = line(rows.step, whole, jnp.ones_like(rows.clock_hz))
    host = stack.host_step_seconds + rows.launches * eager.host_launch_seconds
    cost = settle(summed, {}, host, chip, stack, deployment)
    return ForwardPrediction(
        seconds=cost.seconds, joules=cost.joules, clock_hz=cost.clock_hz
    )
