"""Seconds and joules of forward passes: the shared step model, and what eager launches cost.

The host starts every kernel of an eager pass one by one, so a pass takes the slower of the
GPU's kernels and the host's launches:

    t = max_w(sum of kernels, host_step_seconds + launches x host_launch_seconds)

The wait for the host does not depend on the clock, and draws `gap_power` of the busy floor.
Every kernel starts and drains in t_k (1 - s + s boost / clock). Activations that fit into the
L2 cache save part of their traffic:

    bytes = bytes (1 - saving / (1 + (bytes / (l2_share L2))^2))
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.calibration.clock_curves import bent
from jaxlens.calibration.forward.rows import ForwardRows
from jaxlens.calibration.stacked_steps import ROLES, StackedStep, line
from jaxlens.deployments import Deployment
from jaxlens.hardware import Chip, Stack
from jaxlens.pytrees import pytree
from jaxlens.serving import machine, requested_clock, settle

Rows = Float[Array, " row"] | float


@pytree
class EagerCosts:
    """Coefficients of eager execution, one number per row."""

    host_launch_seconds: Rows  # CPU time of one kernel launch
    launch_clocked: Rows  # s: share of a kernel's start that goes with 1 / clock
    fp32_reach: Rows  # efficiency of fp32 products over that of others
    l2_saving: Rows  # share of the traffic that L2 takes
    l2_share: Rows  # of L2 that one tensor may fill
    traffic: Rows  # of element-wise kernels over what their passes count
    head_half: Rows  # head width at which attention products reach half their rate
    knee_hz: Rows  # of the voltage curve with the bend that follows
    voltage_bend: Rows


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
    deployment = Deployment(clock_hz=rows.clock_hz)
    clock = jnp.asarray(requested_clock(chip, deployment))
    chip = bent(replace(chip, knee_hz=eager.knee_hz), eager.voltage_bend, clock)
    chip = replace(
        chip, peak_fp32_flop_per_s=chip.peak_fp32_flop_per_s * eager.fp32_reach
    )
    slowed = 1.0 + eager.launch_clocked * (chip.boost_hz / clock - 1.0)
    stack = replace(stack, kernel_seconds=stack.kernel_seconds * slowed)
    whole = jax.tree.map(
        lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), clock.shape),
        machine(chip, stack, deployment),
    )
    summed = line(_eager(rows.step, chip, eager), whole, jnp.ones_like(clock))
    host = stack.host_step_seconds + rows.launches * eager.host_launch_seconds
    cost = settle(summed, {}, host, chip, stack, deployment)
    return ForwardPrediction(
        seconds=cost.seconds, joules=cost.joules, clock_hz=cost.clock_hz
    )


def _eager(step: StackedStep, chip: Chip, eager: EagerCosts) -> StackedStep:
    """What reaches HBM, and what narrow heads multiply."""
    work = step.work
    elementwise = step.roles[..., ROLES.index("elementwise")]
    attention = step.roles[..., ROLES.index("attention")]
    room = jnp.asarray(chip.l2_bytes * eager.l2_share)[:, None]
    filled = work.activation_bytes / room
    kept = jnp.asarray(eager.l2_saving)[:, None] / (1.0 + filled * filled)
    moved = work.hbm_bytes - kept * work.activation_bytes
    moved = moved * (1.0 + elementwise * (jnp.asarray(eager.traffic)[:, None] - 1.0))
    half = jnp.asarray(eager.head_half)[:, None]
    narrow = (1.0 + half / work.depth) * (1.0 + half / work.columns)
    flop = work.flop * (1.0 + attention * (narrow - 1.0))
    return replace(step, work=replace(work, hbm_bytes=moved, flop=flop))
