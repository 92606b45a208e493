"""What the harness itself costs: windows over a loop that does nothing."""

import statistics
import time

from jaxlens.measure.benches import Bench, Columns
from jaxlens.measure.gauges import Recorder, steady_watts
from jaxlens.measure.windows import Loop, Window, calls_for, run_window

READS = 50


def nothing() -> None:
    """Does nothing: stands in for a launch."""


def overhead_columns(found: Columns) -> Columns:
    """Returns what each row of a run keeps of `overheads`.

    `harness_seconds` is the time of a launch that does nothing, `harness_watts` what the
    device draws in such windows beyond sleeping ones.
    """
    empty, asleep = found["empty_watts"], found["asleep_watts"]
    return {
        "harness_seconds": found["seconds_per_empty_launch"],
        "harness_watts": None if None in (empty, asleep) else empty - asleep,
    }


def overheads(bench: Bench, windows: int = 3) -> Columns:
    """Returns seconds of an empty launch, of a reading, and watts of an empty window.

    `seconds_per_empty_launch` is the floor below which times are the harness's own.
    `empty_watts` above `asleep_watts` is what polling and the loop draw from the device that
    is measured; on a processor both are its own work, on a GPU it should be nothing.
    """
    loop = Loop(calls=(nothing,))
    calls = calls_for(bench.device, loop, bench.rules.window_seconds)
    empty = [run_window(bench.device, bench.gauge, loop, calls) for _ in range(windows)]
    start = time.perf_counter()
    for _ in range(READS):
        bench.gauge.read()
    read_seconds = (time.perf_counter() - start) / READS
    with Recorder(bench.gauge) as recorder:
        time.sleep(bench.rules.window_seconds)
    return {
        "seconds_per_empty_launch": statistics.median(w.seconds for w in empty),
        "seconds_per_reading": read_seconds,
        "readings_per_window": len(recorder.readings),
        "window_seconds": statistics.median(w.span_seconds for w in empty),
        "empty_watts": _median([w.watts for w in empty]),
        "asleep_watts": steady_watts(recorder.readings)
        if bench.gauge.has_energy
        else None,
        **_replay(bench),
    }


def _replay(bench: Bench) -> Columns:
    """Returns the time of one kernel of a single element, launched and replayed."""
    device = bench.device
    one = device.torch.zeros(1, device=device.place)
    calls = (lambda: one.add_(1.0),)
    launched = _seconds(bench, Loop(calls=calls))
    replays, count = device.replayable(calls, 1000)
    replayed = _seconds(bench, Loop(calls=replays, launches_per_call=count))
    return {
        "seconds_per_tiny_launch": launched,
        "seconds_per_tiny_replay": replayed if device.kind == "cuda" else None,
    }


def _seconds(bench: Bench, loop: Loop) -> float:
    calls = calls_for(bench.device, loop, 0.2)
    window: Window = run_window(bench.device, bench.gauge, loop, calls)
    return window.seconds


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
