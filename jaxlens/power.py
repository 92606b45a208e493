"""Power of a GPU: idle, busy, clock and cap.

Voltage is flat up to a knee and rises along a parabola above it. With v = V / V(boost) and
x = (f - f_knee) / (f_boost - f_knee), at least 0,

    V(f) = V_flat (1 + rise ((1 - bend) x + bend x^2))

    P(f) = P_idle (V / V_flat)^1.5 + [P_busy v^2 (f/f0) t_active + v^2 E_flop + E_memory] / t(f)

Static power is charged for all of the time, switching energy goes with V^2. A power cap limits
the mean power of a step, so it is a constraint on the clock of the step: f = min(f_requested, f
at which P(f) = cap).
"""

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.hardware import Chip
from jaxlens.pytrees import pytree
from jaxlens.smooth import smooth_min

Scalar = Float[Array, ""] | float

KNEE_SOFTNESS = 1e-3
SOFT_TOP = 1.0 / (1.0 + (1.0 + KNEE_SOFTNESS) ** 0.5)  # so that boost is at 1
CAP_SOFTNESS = 1e-4
LOWEST_SLOWDOWN = 0.1
HIGHEST_SPEEDUP = 2.0
NEWTON_STEPS = 4  # before the one that is differentiated


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
    """Returns V(clock) / V(flat), at least 1.

    Measured: A100 PCIe 40 GB and A100 SXM (EnergAIzer artifact, arXiv 2604.20105, 2026):
    bend 0.59 and 0.39; a straight line puts 1.9 % too little voltage at the knee.
    """
    return _voltage_and_slope(clock_hz, chip)[0]


def _voltage_and_slope(clock_hz: Scalar, chip: Chip) -> tuple[Scalar, Scalar]:
    """The voltage, and its derivative in the clock."""
    scale = 1.0 / (chip.boost_hz - chip.knee_hz)
    above = (clock_hz - chip.knee_hz) * scale
    root = elementary.sqrt(above * above + KNEE_SOFTNESS)
    risen = SOFT_TOP * (above + root)
    bend = chip.voltage_bend
    volts = 1.0 + chip.voltage_rise * risen * (1.0 + bend * (risen - 1.0))
    slope = chip.voltage_rise * (1.0 + bend * (2.0 * risen - 1.0))
    return volts, slope * (risen * scale / root)


def static_watts(clock_hz: Scalar, chip: Chip) -> Scalar:
    """Returns watts without any kernel, clocks up: leakage goes with about V^1.5.

    Measured: A100 PCIe and SXM idle power against supply voltage (EnergAIzer artifact,
    arXiv 2604.20105): exponents 1.6 and 1.5 between the flat part and 1410 MHz.
    """
    volts = voltage(clock_hz, chip)
    return chip.idle_watts * volts * elementary.sqrt(volts)


def switching(clock_hz: Scalar, chip: Chip) -> Scalar:
    """Returns (V / V(boost))^2, the factor on every switching energy."""
    ratio = voltage(clock_hz, chip) * (1.0 / (1.0 + chip.voltage_rise))
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
    busy = (chip.busy_watts / chip.boost_hz) * clock * factor * active
    dynamic = draw.flop_joules * factor + draw.memory_joules + draw.link_joules
    return static + busy + dynamic, static, busy


def capped_slowdown(
    draw: Draw, clock_hz: Scalar, cap_watts: Scalar, chip: Chip
) -> Scalar:
    """Returns the clock under a power cap, relative to the requested one, at most 1.

    Power increases with the clock, so Newton's method from the requested clock meets the
    cap in a few steps. The last one is differentiated, which is the derivative of the
    solution.
    """
    limit = cap_watts * chip.cap_share

    def step(ratio: Scalar, draw: Draw, clock: Scalar, limit: Scalar) -> Scalar:
        value, slope = _watts_and_slope(draw, ratio, clock, chip)
        closer = ratio - (value - limit) / elementary.stop_gradient(slope)
        return elementary.clip(closer, LOWEST_SLOWDOWN, HIGHEST_SPEEDUP)

    known = elementary.stop_gradient((draw, clock_hz, limit))
    ratio = 1.0 + 0.0 * known[1]
    for _ in range(NEWTON_STEPS):
        ratio = step(ratio, *known)
    return smooth_min(1.0, step(ratio, draw, clock_hz, limit), CAP_SOFTNESS)


def _watts_and_slope(
    draw: Draw, slowdown: Scalar, clock_hz: Scalar, chip: Chip
) -> tuple[Scalar, Scalar]:
    """Mean watts and their derivative in the slowdown s, without any 1 / s.

    P(s) = P_idle u^1.5 + s (v^2 (s_busy a + E_flop) + E_other) / w

    with u = V / V_flat, w = s seconds(s), a = s active(s) and the busy floor in s_busy.
    """
    volts, rise = _voltage_and_slope(clock_hz * slowdown, chip)
    rise = rise * clock_hz
    root = elementary.sqrt(volts)
    fixed_seconds = draw.seconds - draw.clocked_seconds
    fixed_active = draw.active_seconds - draw.clocked_seconds
    scaled_seconds = fixed_seconds * slowdown + draw.clocked_seconds
    scaled_active = fixed_active * slowdown + draw.clocked_seconds
    floor = (chip.busy_watts / chip.boost_hz) * clock_hz
    inverse_boost = 1.0 / (1.0 + chip.voltage_rise)
    charge = inverse_boost * inverse_boost * volts
    switched = floor * scaled_active + draw.flop_joules
    held = charge * volts * switched + draw.memory_joules + draw.link_joules
    bent = 2.0 * rise * switched + volts * (floor * fixed_active)
    per_second = 1.0 / scaled_seconds
    dynamic = slowdown * held * per_second
    moved = held + slowdown * charge * bent - dynamic * fixed_seconds
    return (
        chip.idle_watts * volts * root + dynamic,
        1.5 * chip.idle_watts * root * rise + moved * per_second,
    )
