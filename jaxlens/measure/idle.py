"""Power of a device that does nothing: before any launch, and with a context and memory."""

import time
from collections.abc import Callable

from jaxlens.measure.benches import Bench, Columns
from jaxlens.measure.gauges import Gauge, Recorder, mean, steady_watts

LOADED_BYTES = 2**30


def idle(gauge: Gauge, seconds: float, *, wait: Callable[[float], None]) -> Columns:
    """Returns watts, clock and temperature over `seconds` without a launch."""
    with Recorder(gauge) as recorder:
        wait(seconds)
    readings = recorder.readings
    clock = mean([reading.sm_clock_hz for reading in readings])
    return {
        "idle_watts": steady_watts(readings) if gauge.has_energy else None,
        "sm_clock_hz": clock,
        "sm_clock_mhz": None if clock is None else clock / 1e6,
        "temperature_celsius": mean([r.temperature_celsius for r in readings]),
        "power_window_seconds": seconds,
    }


def loaded_idle(bench: Bench, seconds: float) -> Columns:
    """Returns the same with a context open and memory held, right after a launch."""
    torch = bench.device.torch
    held = torch.zeros(LOADED_BYTES // 4, device=bench.device.place)
    held.add_(1.0)
    bench.device.synchronize()
    columns = idle(bench.gauge, seconds, wait=time.sleep)
    del held
    columns["loaded_idle_watts"] = columns.pop("idle_watts")
    return columns
