"""What can be read beside the clock while kernels run: energy, power, clocks, throttling."""

import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from jaxlens.measure.nvml import Gpu
from jaxlens.measure.rapl import Rapl, open_rapl
from jaxlens.measure.refusals import Unavailable


@dataclass(frozen=True, kw_only=True)
class Reading:
    """State of a device at one moment; None where it has no such sensor."""

    at_seconds: float
    joules: float | None = None  # a counter: only differences mean something
    watts: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: tuple[str, ...] = ()


class Gauge(Protocol):
    """A source of readings."""

    has_energy: bool
    period_seconds: float  # between readings, 0 for only before and after

    def read(self) -> Reading:
        """Returns the state now."""
        ...


class GpuGauge:
    """Readings of one GPU. Its energy counter steps about every 20 to 100 ms.

    Source: ML.ENERGY, "Thermally stable profiling", 2025, https://ml.energy/blog.
    """

    period_seconds = 0.005

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.has_counter = gpu.joules() is not None
        self.has_energy = self.has_counter or gpu.watts() is not None

    def read(self) -> Reading:
        """Returns the state now."""
        gpu = self._gpu
        joules = gpu.joules() if self.has_counter else None
        at_seconds = time.perf_counter()
        return Reading(
            at_seconds=at_seconds,
            joules=joules,
            watts=gpu.watts(),
            sm_clock_hz=gpu.sm_clock_hz(),
            memory_clock_hz=gpu.memory_clock_hz(),
            temperature_celsius=gpu.temperature_celsius(),
            throttle_reasons=gpu.throttle_reasons(),
        )


class CpuGauge:
    """Readings of the processor: RAPL energy where the machine shows it, else time only."""

    period_seconds = 0.0

    def __init__(self, rapl: Rapl | None = None) -> None:
        self._rapl = rapl
        self.has_energy = rapl is not None

    def read(self) -> Reading:
        """Returns the state now."""
        joules = None if self._rapl is None else self._rapl.joules()
        return Reading(at_seconds=time.perf_counter(), joules=joules)


def cpu_gauge() -> CpuGauge:
    """Returns the processor's gauge on this machine."""
    return CpuGauge(open_rapl())


@dataclass
class Recorder:
    """Reads a gauge in a thread of its own while a block runs.

    An error of the gauge ends the thread and rises at the end of the block.
    """

    gauge: Gauge
    readings: list[Reading] = field(default_factory=list)

    def __enter__(self) -> "Recorder":
        self.readings.append(self.gauge.read())
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        if self.gauge.period_seconds > 0.0:
            self._thread = threading.Thread(target=self._record, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and kind is None:
            raise self._error
        if kind is None:
            self.readings.append(self.gauge.read())

    def _record(self) -> None:
        try:
            while not self._stop.wait(self.gauge.period_seconds):
                self.readings.append(self.gauge.read())
        except Unavailable as lost:
            self._error = lost


def steady_watts(readings: list[Reading]) -> float | None:
    """Returns the mean power from one step of the energy counter to another.

    P = (E_last - E_first) / (t_last - t_first), both taken where the counter has just moved:
    so the period of the counter cancels. Without two steps, from end to end; without a
    counter, the mean of sampled power over time.

    >>> steady_watts([Reading(at_seconds=t, joules=j) for t, j in
    ...               ((0.0, 1.0), (0.1, 6.0), (0.15, 6.0), (0.2, 16.0), (0.25, 16.0))])
    100.0
    """
    counted = [(r.at_seconds, r.joules) for r in readings if r.joules is not None]
    if not counted:
        return _sampled_watts(readings)
    pairs = pairwise(counted)
    steps = [now for before, now in pairs if now[1] > before[1]]
    first, last = (steps[0], steps[-1]) if len(steps) > 1 else (counted[0], counted[-1])
    elapsed = last[0] - first[0]
    return (last[1] - first[1]) / elapsed if elapsed > 0.0 else None


def _sampled_watts(readings: list[Reading]) -> float | None:
    drawn = [(r.at_seconds, r.watts) for r in readings if r.watts is not None]
    if len(drawn) < 2 or drawn[-1][0] <= drawn[0][0]:
        return None
    area = sum(0.5 * (a[1] + b[1]) * (b[0] - a[0]) for a, b in pairwise(drawn))
    return area / (drawn[-1][0] - drawn[0][0])


def mean(values: list[float | None]) -> float | None:
    """Returns the mean of the values that are known, None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
