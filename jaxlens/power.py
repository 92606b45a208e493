"""Power of a GPU: idle, busy, clock and cap.

Voltage is flat up to a knee and rises linearly with clock above it. With v = V / V(boost),

    P(f) = P_idle (V / V_flat)^1.5 + [P_busy v^2 (f/f0) t_active + v^2 E_flop + E_memory] / t(f)

Static power is charged for all of the time, switching energy goes with V^2. A power cap limits
the mean power of a step, so it is a constraint on the clock of the step: f = min(f_requested, f
at which P(f) = cap).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.hardware import Chip
from jaxlens.pytrees import pytree
from jaxlens.smooth import smooth_min

Scalar = Float[Array, ""] | float

KNEE_SOFTNESS = 1e-3
CAP_SOFTNESS = 1e-4
LOWEST_SLOWDOWN = 0.1
HIGHEST_SPEEDUP = 2.0
NEWTON_STEPS = 4


@pytree
class Draw:
    """What a step asks of one GPU at the requested clock, energies at boost voltage."""

    seconds: Scalar
    clocked_seconds: Scalar  # the part that goes with 1 / clock
    active_seconds: Scalar  # with a kernel running, gaps weighed by what they draw
    flop_joules: Scalar
    memory_joules: Scalar
    link_joules: Scalar


def voltage(clock_hz: Scalar, chip: Chip) -> Scalar:
    """Returns V(clock) / V(flat), at least 1."""
    above = (clock_hz - chip.knee_hz) / (chip.boost_hz - chip.knee_hz)
    bent = 0.5 * (above + jnp.sqrt(above * above + KNEE_SOFTNESS))
    top = 0.5 * (1.0 + (1.0 + KNEE_SOFTNESS) ** 0.5)
    return 1.0 + chip.voltage_rise * bent / top


def static_watts(clock_hz: Scalar, chip: Chip) -> Scalar:
    """Returns watts without any kernel, clocks up: leakage goes with about V^1.5.

    Measured: A100 PCIe and SXM idle power against supply voltage (EnergAIzer artifact,
    arXiv 2604.20105): exponents 1.6 and 1.5 between the flat part and 1410 MHz.
    """
    volts = voltage(clock_hz, chip)
    return chip.idle_watts * volts * jnp.sqrt(volts)


def switching(clock_hz: Scalar, chip: Chip) -> Scalar:
    """Returns (V / V(boost))^2, the factor on every switching energy."""
    ratio = voltage(clock_hz, chip) / (1.0 + chip.voltage_rise)
    return ratio * ratio


def watts(draw: Draw, slowdown: Scalar, clock_hz: Scalar, chip: Chip) -> Scalar:
    """Returns mean watts of `draw` with the clock scaled by `slowdown` (1: as requested)."""
    seconds = draw.seconds + draw.clocked_seconds * (1.0 / slowdown - 1.0)
    return joules(draw, slowdown, clock_hz, chip)[0] / seconds


def joules(
    draw: Draw, slowdown: Scalar, clock_hz: Scalar, chip: Chip
) -> tuple[Scalar, Scalar, Scalar]:
    """Returns joules in total, of the static part and of the busy floor."""
    clock = clock_hz * slowdown
    stretch = 1.0 / slowdown - 1.0
    seconds = draw.seconds + draw.clocked_seconds * stretch
    active = draw.active_seconds + draw.clocked_seconds * stretch
    factor = switching(clock, chip)
    static = static_watts(clock, chip) * seconds
    busy = chip.busy_watts * factor * (clock / chip.boost_hz) * active
    dynamic = draw.flop_joules * factor + draw.memory_joules + draw.link_joules
    return static + busy + dynamic, static, busy


def capped_slowdown(
    draw: Draw, clock_hz: Scalar, cap_watts: Scalar, chip: Chip
) -> Scalar:
    """Returns the clock under a power cap, relative to the requested one, at most 1.

    Power increases with the clock, so Newton's method from the requested clock meets the
    cap in a few steps; a step too many is harmless and the result is differentiable.
    """
    limit = cap_watts * chip.cap_share

    def excess(slowdown: Scalar) -> Scalar:
        return watts(draw, slowdown, clock_hz, chip) - limit

    ratio = 1.0 + 0.0 * clock_hz
    for _ in range(NEWTON_STEPS):
        value, slope = jax.jvp(excess, (ratio,), (jnp.ones_like(ratio),))
        ratio = jnp.clip(ratio - value / slope, LOWEST_SLOWDOWN, HIGHEST_SPEEDUP)
    return smooth_min(1.0, ratio, CAP_SOFTNESS)
