"""A device with its gauges and rules, and what it makes of one case: columns of a row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Device
from jaxlens.measure.gauges import Gauge
from jaxlens.measure.kernels import Kernel, Prepared, prepare
from jaxlens.measure.operations import kernel as kernel_of
from jaxlens.measure.windows import Agree, Measurement, Rules, measured

Columns = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything that a measurement needs beside the case."""

    device: Device
    gauge: Gauge
    rules: Rules
    idle_watts: float | None = None  # before the first launch
    agree: Agree = float
    intruders: Callable[[], frozenset[int]] = frozenset  # processes that came since


def measure_kernel(case: Case, bench: Bench) -> Columns:
    """Returns time and energy of the kernel of `case`."""
    kernel = kernel_of(case, bench.device)
    prepared = prepare(kernel, bench.device)
    result = measured(
        bench.device, bench.gauge, prepared.loop, bench.rules, bench.agree
    )
    return {
        **measurement_columns(result, bench.idle_watts),
        **kernel_columns(kernel, prepared),
    }


def measurement_columns(result: Measurement, idle_watts: float | None) -> Columns:
    """Returns a measurement as columns; energy with and without the idle draw.

    joules_above_idle = (watts - idle_watts) x seconds
    """
    above = None
    if result.joules is not None and idle_watts is not None:
        above = result.joules - idle_watts * result.seconds
    return {
        "seconds": result.seconds,
        "seconds_spread": result.seconds_spread,
        "watts": result.watts,
        "watts_spread": result.watts_spread,
        "joules": result.joules,
        "idle_watts": idle_watts,
        "joules_above_idle": above,
        "windows": result.windows,
        "launches": result.launches,
        "power_window_seconds": result.window_seconds,
        "warmup_seconds": result.warmup_seconds,
        "steady": result.steady,
        "tight": result.tight,
        "sm_clock_hz": result.sm_clock_hz,
        "memory_clock_hz": result.memory_clock_hz,
        "temperature_celsius": result.temperature_celsius,
        "throttle_reasons": "; ".join(result.throttle_reasons),
        "estimator": result.estimator,
        "disturbed_windows": result.disturbed_windows,
        "discarded_windows": result.discarded_windows,
        "stolen_seconds": result.stolen_seconds,
    }


def kernel_columns(kernel: Kernel, prepared: Prepared) -> Columns:
    """Returns what a kernel is and how it was run."""
    return {
        "kernel_source": kernel.source,
        "flop": kernel.flop or None,
        "bytes": kernel.moved_bytes,
        "input_sets": prepared.sets,
        "fills_cache": prepared.fills_cache,
        "replayed": prepared.replayed,
    }
