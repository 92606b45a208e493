"""Short windows of one kernel on a processor that lie far apart, and what they say together.

A processor is shared with whatever else the machine does, for seconds or minutes at a time.
So a case is not measured at a stretch: it is visited for a moment in every round over all
cases, windows beside which something else ran are left out where enough others remain, and
the time is a low quantile over the rest (`estimators`).
"""

import statistics
from collections.abc import Sequence

from jaxlens.measure.devices import Cpu
from jaxlens.measure.disturbances import between, counters
from jaxlens.measure.estimators import of_blocks, of_windows, spread_of_windows
from jaxlens.measure.gauges import Gauge, Recorder, steady_watts
from jaxlens.measure.windows import Loop, Measurement, Rules, Window, half_width

WINDOW_SECONDS = 0.03
LEAD_SECONDS = 0.008  # until caches and predictors know the kernel
FEWEST_ROUNDS, MOST_ROUNDS = 20, 60
ESTIMATOR = "low quantile of windows"


def visiting_rules(window_seconds: float | None, *, allow_disturbed: bool) -> Rules:
    """Returns the rules of rounds over cases."""
    return Rules(
        window_seconds=window_seconds or WINDOW_SECONDS,
        warmup_seconds=LEAD_SECONDS,
        longest_warmup_seconds=LEAD_SECONDS,
        fewest_windows=FEWEST_ROUNDS,
        most_windows=MOST_ROUNDS,
        allow_disturbed=allow_disturbed,
    )


def visit(device: Cpu, gauge: Gauge, loop: Loop, rules: Rules) -> Window:
    """Returns one window of `loop`."""
    before = counters()
    with Recorder(gauge) as recorder:
        spans = device.spans(loop.calls, rules.window_seconds, rules.warmup_seconds)
    span_seconds = recorder.readings[-1].at_seconds - recorder.readings[0].at_seconds
    return Window(
        seconds=of_blocks(spans) / loop.launches_per_call,
        launches=len(spans) * loop.launches_per_call,
        span_seconds=span_seconds,
        watts=steady_watts(recorder.readings) if gauge.has_energy else None,
        sm_clock_hz=None,
        memory_clock_hz=None,
        temperature_celsius=None,
        throttle_reasons=frozenset(),
        disturbance=between(before, counters(), span_seconds),
    )


def kept(windows: Sequence[Window], rules: Rules) -> list[Window]:
    """Returns the undisturbed windows if they are enough, else all of them."""
    quiet = [window for window in windows if not window.disturbance.found]
    return quiet if len(quiet) >= rules.fewest_windows else list(windows)


def is_complete(windows: Sequence[Window], rules: Rules) -> bool:
    """Returns whether another visit would change little, or is one too many.

    On a machine that is never quiet windows may agree on a disturbance: no reason to stop.
    """
    if len(windows) >= rules.most_windows:
        return True
    quiet = sum(not window.disturbance.found for window in windows)
    return quiet >= rules.fewest_windows and summed_up(windows, rules).tight


def summed_up(windows: Sequence[Window], rules: Rules) -> Measurement:
    """Returns time and energy of one launch.

    Watts are the mean over windows, joules = watts x seconds: both of a machine that does
    nothing else, as far as the windows show it.
    """
    chosen = kept(windows, rules)
    times = [window.seconds for window in chosen]
    seconds, spread = of_windows(times), spread_of_windows(times)
    drawn = [window.watts for window in chosen if window.watts is not None]
    watts = statistics.fmean(drawn) if drawn else None
    watts_spread = half_width(drawn) if len(drawn) > 1 else None
    tight = spread <= rules.seconds_tolerance and (
        watts_spread is None or watts_spread <= rules.joules_tolerance
    )
    return Measurement(
        seconds=seconds,
        seconds_spread=spread,
        joules=None if watts is None else watts * seconds,
        watts=watts,
        watts_spread=watts_spread,
        windows=len(chosen),
        launches=sum(window.launches for window in chosen),
        window_seconds=statistics.median(w.span_seconds for w in chosen),
        warmup_seconds=rules.warmup_seconds,
        steady=True,
        tight=tight,
        sm_clock_hz=None,
        memory_clock_hz=None,
        temperature_celsius=None,
        throttle_reasons=(),
        estimator=ESTIMATOR,
        disturbed_windows=sum(w.disturbance.found for w in windows),
        discarded_windows=len(windows) - len(chosen),
        stolen_seconds=sum(w.disturbance.stolen_seconds for w in windows),
    )
