"""Seconds and joules of measured rows: the same prices that predictions add up.

A row is a step of one operation (or, of a whole model, of many): `stacked_steps.line` prices
it at the clock and on the share of the SMs that it had, and power is charged as for a step of
a serving engine:

    E = P_static(V) t + P_busy v^2 (f/f0) t_active + v^2 E_flop + E_memory + E_links

Where the clock was not read, the power limit decides on it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.calibration.stacked_steps import StackedStep, line
from jaxlens.deployments import Deployment
from jaxlens.hardware import Chip, Stack
from jaxlens.power import capped_slowdown, joules, static_watts
from jaxlens.pytrees import pytree, static
from jaxlens.rooflines import Machine
from jaxlens.steps import draw

Rows = Float[Array, " row"]

UNCAPPED_WATTS = 1e9
COMMUNICATION_SMS = Deployment().communication_sms


@pytree
class MachineRows:
    """Rows of a run, ready to be priced with any coefficients."""

    step: StackedStep
    clock_share: Rows  # of the boost clock, as measured; 1 where not known
    sm_share: Rows
    cap_watts: Rows  # `UNCAPPED_WATTS` where the clock is known
    idle: Rows  # 1 for a second without any kernel
    capped: bool = static(default=False)  # whether any row is


def price(rows: MachineRows, chip: Chip, stack: Stack) -> tuple[Rows, Rows]:
    """Returns seconds and joules; leaves of the coefficients are one number per row."""
    clock = rows.clock_share * chip.boost_hz
    machine = Machine(
        chip=chip,
        stack=stack,
        clock_share=rows.clock_share,
        sm_share=rows.sm_share,
    )
    machine = jax.tree.map(
        lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), clock.shape), machine
    )
    sms = jnp.full_like(clock, COMMUNICATION_SMS)
    need = draw(line(rows.step, machine, sms), stack.gap_power)
    slowdown = jnp.ones_like(clock)
    if rows.capped:
        slowdown = capped_slowdown(need, clock, rows.cap_watts, chip)
        slowdown = jnp.where(rows.cap_watts < UNCAPPED_WATTS, slowdown, 1.0)
    seconds = need.seconds + need.clocked_seconds * (1.0 / slowdown - 1.0)
    busy_joules = joules(need, slowdown, clock, chip)[0]
    resting = rows.idle > 0.5
    return (
        jnp.where(resting, 1.0, seconds),
        jnp.where(resting, static_watts(clock, chip), busy_joules),
    )
