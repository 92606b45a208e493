"""Time and energy per launch over windows: warmed up, repeated until the result is tight.

A window runs one kernel back to back for a given time; its seconds per launch come from the
device's clock and its watts from the steps of the energy counter, so that

    joules per launch = watts x seconds per launch.

Windows have to be long against the counter's period: at a second or more a step of 20 to
100 ms is a small part, and taking both ends at a step removes most of that.

Source: Z. Yang et al., "Part-time Power Measurements", 2023,
https://arxiv.org/abs/2312.02741 (why short windows mislead).
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxlens.measure.devices import Device, Launch
from jaxlens.measure.disturbances import Disturbance
from jaxlens.measure.gauges import Gauge, Recorder, mean, steady_watts
from jaxlens.measure.refusals import Disturbed
from jaxlens.measure.throttling import foreign

Agree = Callable[[float], float]  # the largest over ranks, so that all decide the same


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How long and how often to measure, and when a result counts as tight."""

    window_seconds: float = 1.0
    warmup_seconds: float = 1.0  # over which nothing may change any more
    longest_warmup_seconds: float = 20.0
    steady_tolerance: float = 0.01  # of time, relative
    seconds_tolerance: float = 0.01  # half-width of the interval, relative
    joules_tolerance: float = 0.03
    fewest_windows: int = 3
    most_windows: int = 8
    clocks_locked: bool = False
    allow_disturbed: bool = False


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Launches that are run in turn; each stands for `launches_per_call`."""

    calls: Sequence[Launch]
    launches_per_call: int = 1
    refresh: Callable[[], None] = lambda: None  # new random values in the inputs


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window: means over its launches."""

    seconds: float  # per launch
    launches: int
    span_seconds: float
    watts: float | None
    sm_clock_hz: float | None
    memory_clock_hz: float | None
    temperature_celsius: float | None
    throttle_reasons: frozenset[str]
    disturbance: Disturbance = field(default_factory=Disturbance)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What windows say together, with their spreads. Joules include the idle draw."""

    seconds: float
    seconds_spread: float  # half-width of the 95 % interval, relative
    joules: float | None
    watts: float | None
    watts_spread: float | None
    windows: int
    launches: int
    window_seconds: float
    warmup_seconds: float
    steady: bool  # whether warm-up ended because nothing changed any more
    tight: bool  # whether both spreads are within the rules
    sm_clock_hz: float | None
    memory_clock_hz: float | None
    temperature_celsius: float | None
    throttle_reasons: tuple[str, ...]
    estimator: str = "median of windows"
    disturbed_windows: int | None = None  # beside which something else ran
    discarded_windows: int | None = None  # of those, left out
    stolen_seconds: float | None = None  # by the hypervisor, during windows


def run_window(
    device: Device, gauge: Gauge, loop: Loop, calls: int, lead: int = 0
) -> Window:
    """Returns one window of `calls` calls, after `lead` calls that do not count."""
    if lead:
        device.seconds(loop.calls, lead)
    with Recorder(gauge) as recorder:
        span = device.seconds(loop.calls, calls)
    readings = recorder.readings
    inner = readings[1:-1] or readings
    reasons = frozenset(r for reading in inner for r in reading.throttle_reasons)
    return Window(
        seconds=span / (calls * loop.launches_per_call),
        launches=calls * loop.launches_per_call,
        span_seconds=span,
        watts=steady_watts(readings) if gauge.has_energy else None,
        sm_clock_hz=mean([reading.sm_clock_hz for reading in inner]),
        memory_clock_hz=mean([reading.memory_clock_hz for reading in inner]),
        temperature_celsius=mean([reading.temperature_celsius for reading in inner]),
        throttle_reasons=reasons,
    )


def calls_for(device: Device, loop: Loop, seconds: float, agree: Agree = float) -> int:
    """Returns how many calls take about `seconds`, by measured run time."""
    calls = 1
    while True:
        span = max(agree(device.seconds(loop.calls, calls)), 1e-9)
        if span >= min(0.02, seconds) or calls >= 10**7:
            break
        calls = max(2 * calls, min(100 * calls, round(calls * 0.02 / span)))
    return max(1, math.ceil(calls * seconds / span))


def measured(
    device: Device,
    gauge: Gauge,
    loop: Loop,
    rules: Rules,
    agree: Agree = float,
) -> Measurement:
    """Returns time and energy of one launch of `loop`.

    Raises:
        Disturbed: something else than the kernel slowed the device down.
    """
    # Compiles, allocates and fills caches of plans.
    device.seconds(loop.calls, len(loop.calls))
    calls_for(device, loop, 0.02, agree)
    warm_seconds, steady = _warm_up(device, gauge, loop, rules, agree)
    calls = calls_for(device, loop, rules.window_seconds, agree)
    lead = max(1, calls // 10)
    windows: list[Window] = []
    while True:
        loop.refresh()
        window = run_window(device, gauge, loop, calls, lead)
        _refuse_disturbed(window, rules, agree)
        windows.append(window)
        done = len(windows) >= rules.fewest_windows and _is_tight(windows, rules)
        if agree(float(done or len(windows) >= rules.most_windows)):
            return _summary(windows, rules, warm_seconds, steady)


def _warm_up(
    device: Device, gauge: Gauge, loop: Loop, rules: Rules, agree: Agree
) -> tuple[float, bool]:
    """Runs until time, power and temperature are what they were `warmup_seconds` ago."""
    calls = calls_for(device, loop, 0.25 * rules.warmup_seconds, agree)
    spent = 0.0
    past: list[tuple[float, Window]] = []
    while True:
        window = run_window(device, gauge, loop, calls)
        earlier = [one for end, one in past if end <= spent - rules.warmup_seconds]
        spent += window.span_seconds
        past.append((spent, window))
        settled = bool(earlier) and _alike(earlier[-1], window, rules.steady_tolerance)
        if agree(float(settled)):
            return spent, True
        if agree(float(spent >= rules.longest_warmup_seconds)):
            return spent, False


def _alike(before: Window, now: Window, tolerance: float) -> bool:
    if abs(now.seconds / before.seconds - 1.0) > tolerance:
        return False
    if before.watts and now.watts and abs(now.watts / before.watts - 1.0) > 0.03:
        return False
    hot, hotter = before.temperature_celsius, now.temperature_celsius
    return hot is None or hotter is None or abs(hotter - hot) <= 1.0


def _refuse_disturbed(window: Window, rules: Rules, agree: Agree) -> None:
    found = foreign(set(window.throttle_reasons), locked=rules.clocks_locked)
    if agree(float(bool(found))) and not rules.allow_disturbed:
        shown = ", ".join(found) or "on another rank"
        raise Disturbed(f"throttled by something else: {shown}")


# Student's t for a 95 % interval, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31}


def half_width(values: Sequence[float]) -> float:
    """Returns the half-width of the 95 % interval of the mean, relative to the mean.

    >>> round(half_width([1.0, 1.01, 0.99]), 4)
    0.0248
    """
    if len(values) < 2:
        return math.inf
    factor = STUDENT.get(len(values) - 1, 2.0)
    deviation = statistics.stdev(values) / math.sqrt(len(values))
    return factor * deviation / statistics.fmean(values)


def _is_tight(windows: Sequence[Window], rules: Rules) -> bool:
    if half_width([w.seconds for w in windows]) > rules.seconds_tolerance:
        return False
    watts = [w.watts for w in windows if w.watts is not None]
    return not watts or half_width(watts) <= rules.joules_tolerance


def _summary(
    windows: Sequence[Window], rules: Rules, warm_seconds: float, steady: bool
) -> Measurement:
    seconds = statistics.median(w.seconds for w in windows)
    drawn = [w.watts for w in windows if w.watts is not None]
    watts = statistics.median(drawn) if drawn else None
    joules = statistics.median(
        [w.watts * w.seconds for w in windows if w.watts is not None] or [math.nan]
    )
    reasons = sorted({reason for w in windows for reason in w.throttle_reasons})
    return Measurement(
        seconds=seconds,
        seconds_spread=half_width([w.seconds for w in windows]),
        joules=joules if drawn else None,
        watts=watts,
        watts_spread=half_width(drawn) if len(drawn) > 1 else None,
        windows=len(windows),
        launches=sum(w.launches for w in windows),
        window_seconds=statistics.median(w.span_seconds for w in windows),
        warmup_seconds=warm_seconds,
        steady=steady,
        tight=_is_tight(windows, rules),
        sm_clock_hz=mean([w.sm_clock_hz for w in windows]),
        memory_clock_hz=mean([w.memory_clock_hz for w in windows]),
        temperature_celsius=mean([w.temperature_celsius for w in windows]),
        throttle_reasons=tuple(reasons),
    )
