"""A step on a processor against its kernels alone, both in the same rounds.

Each round runs the step, timed kernel by kernel, and then every kind of kernel alone, so that
both see the same machine. With q the estimate of `estimators` over all rounds and n_k the times
that kernel k comes up in the step,

    seconds         = sum over k of n_k q(k in the step)
    kernels_seconds = sum over k of n_k q(k alone)
    kernels_ratio   = kernels_seconds / seconds.

A step of a second never runs undisturbed as a whole; its kernels do at one time or another.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlens.measure.benches import Bench, Columns
from jaxlens.measure.devices import Cpu, Launch
from jaxlens.measure.disturbances import between, counters
from jaxlens.measure.estimators import (
    of_blocks,
    of_redrawn_windows,
    of_windows,
    redrawn,
    spread,
)
from jaxlens.measure.gauges import Recorder, steady_watts
from jaxlens.measure.visits import visit
from jaxlens.measure.windows import Loop, Window

ESTIMATOR = "low quantile of each kernel in the step"
FEWEST_ROUNDS, MOST_ROUNDS = 12, 24  # of a second or more each
Kernels = Mapping[str, Sequence[Launch]]  # in the order of the step, by name
Rounds = Mapping[str, Sequence[Window]]  # one window a round, by name


@dataclass(frozen=True)
class StepWindow:
    """One run of a step: the whole, and the spans of its kernels by name."""

    whole: Window
    kernels: Mapping[str, Sequence[float]]


def measure_in_rounds(
    parts: Sequence[tuple[str, Launch]], alone: Kernels, bench: Bench
) -> Columns:
    """Returns time and energy of a step and of its kernels alone.

    Args:
        parts: Name and launch of each kernel of the step, in order.
        alone: Launches of the kernels of each name that can run by themselves.
        bench: With what; its device is a processor.
    """
    device, rules = bench.device, bench.rules
    assert isinstance(device, Cpu)
    steps: list[StepWindow] = []
    others: dict[str, list[Window]] = {name: [] for name in alone}
    run_step(parts, bench)  # the first one allocates
    while True:
        steps.append(run_step(parts, bench))
        for name, calls in alone.items():
            loop = Loop(calls=calls)
            others[name].append(visit(device, bench.gauge, loop, rules))
        if len(steps) < min(rules.fewest_windows, FEWEST_ROUNDS):
            continue
        found = _columns(steps, others, bench)
        if found["tight"] or len(steps) >= min(rules.most_windows, MOST_ROUNDS):
            return found


def run_step(parts: Sequence[tuple[str, Launch]], bench: Bench) -> StepWindow:
    """Runs a step once and returns what each kernel took."""
    assert isinstance(bench.device, Cpu)
    clock = bench.device.clock
    kernels: dict[str, list[float]] = {name: [] for name, _ in parts}
    before = counters()
    with Recorder(bench.gauge) as recorder:
        begin, last = time.perf_counter(), clock()
        for name, launch in parts:
            launch()
            now = clock()
            kernels[name].append(now - last)
            last = now
        span_seconds = time.perf_counter() - begin
    whole = Window(
        seconds=span_seconds,
        launches=1,
        span_seconds=span_seconds,
        watts=steady_watts(recorder.readings) if bench.gauge.has_energy else None,
        sm_clock_hz=None,
        memory_clock_hz=None,
        temperature_celsius=None,
        throttle_reasons=frozenset(),
        disturbance=between(before, counters(), span_seconds),
    )
    return StepWindow(whole, kernels)


def _columns(steps: Sequence[StepWindow], others: Rounds, bench: Bench) -> Columns:
    rules = bench.rules
    within = {name: [of_blocks(one.kernels[name]) for one in steps] for name in others}
    apart = {name: [one.seconds for one in rounds] for name, rounds in others.items()}
    counts = {name: len(steps[0].kernels[name]) for name in others}
    seconds, drawn = _summed(within, counts)
    kernels_seconds, kernels_drawn = _summed(apart, counts)
    ratio = kernels_seconds / seconds
    seconds_spread = spread(seconds, drawn)
    windows = [one.whole for one in steps]
    watts = _mean([window.watts for window in windows])
    joules = [
        counts[name] * of_windows(apart[name]) * drawn_watts
        for name, rounds in others.items()
        if (drawn_watts := _mean([window.watts for window in rounds])) is not None
    ]
    return {
        "seconds": seconds,
        "seconds_spread": seconds_spread,
        "whole_seconds": of_windows([window.seconds for window in windows]),
        "watts": watts,
        "joules": None if watts is None else watts * seconds,
        "idle_watts": bench.idle_watts,
        "windows": len(steps),
        "launches": len(steps),
        "power_window_seconds": statistics.median(w.span_seconds for w in windows),
        "warmup_seconds": rules.warmup_seconds,
        "steady": True,
        "tight": seconds_spread <= rules.seconds_tolerance,
        "estimator": ESTIMATOR,
        "threads": bench.device.torch.get_num_threads(),
        "disturbed_windows": sum(window.disturbance.found for window in windows),
        "discarded_windows": 0,
        "stolen_seconds": sum(w.disturbance.stolen_seconds for w in windows),
        "kernels_seconds": kernels_seconds,
        "kernels_joules": sum(joules) or None,
        "kernels_count": sum(counts.values()),
        "kernels_ratio": ratio,
        "kernels_ratio_spread": spread(ratio, kernels_drawn / drawn),
    }


def _summed(
    rounds: Mapping[str, Sequence[float]], counts: Mapping[str, int]
) -> tuple[float, np.ndarray]:
    """Returns the sum of the estimates of all kernels, and the same for drawn rounds."""
    draws = redrawn(len(next(iter(rounds.values()))))
    total = sum(counts[name] * of_windows(values) for name, values in rounds.items())
    drawn = [
        counts[name] * of_redrawn_windows(values, draws)
        for name, values in rounds.items()
    ]
    return total, np.sum(drawn, axis=0)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
