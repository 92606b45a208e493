"""Power logs of GPUs: samples over time, and their mean over a window.

Understood are CSV logs of `nvidia-smi --query-gpu=timestamp,index,power.draw
--format=csv`, of NVML samplers (`timestamp_s, watts`), and of Zeus (one column per GPU,
or `timestamp, gpu_index, power_mw`). Times are seconds since the epoch, or local date
and time.

Source: NVIDIA, "nvidia-smi" manual, 2024,
https://docs.nvidia.com/deploy/nvidia-smi/index.html; Zeus, power monitor, 2024,
https://ml.energy/zeus.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from jaxlens.calibration.raw_tables import decoded, read_bytes

TIMES = ("timestamp", "time", "timestamp_s", "time_s", "t", "unix_time", "seconds")
DATES = ("%Y/%m/%d %H:%M:%S.%f", "%Y/%m/%d %H:%M:%S")
GPUS = ("index", "gpu", "gpu_index", "gpu_id", "uuid", "gpu_uuid", "pci.bus_id")
POWER = re.compile(r"power|watt|^gpu[ _]?\d+$", re.IGNORECASE)
NOT_POWER = re.compile(r"limit|cap|max|min|default|enforced", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PowerLog:
    """Watts of each GPU over time."""

    source: str
    series: dict[str, tuple[np.ndarray, np.ndarray]]  # GPU -> (seconds, watts)

    @property
    def span(self) -> tuple[float, float]:
        """First and last time that all GPUs have samples for."""
        starts = [float(times[0]) for times, _ in self.series.values()]
        ends = [float(times[-1]) for times, _ in self.series.values()]
        return max(starts), min(ends)

    def mean_watts(self, start: float, end: float) -> float:
        """Returns the time-weighted mean over [start, end], summed over the GPUs.

        Power is taken as linear between samples (trapezoids).
        """
        first, last = self.span
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            raise ValueError(
                f"{self.source}: expected start < end, got {start}, {end}."
            )
        if start < first - 1.0 or end > last + 1.0:
            raise ValueError(
                f"{self.source}: expected samples from {start:.1f} to {end:.1f} s, got "
                f"{first:.1f} to {last:.1f}; check the clock's time zone, or give the "
                "window."
            )
        return sum(_mean(*samples, start, end) for samples in self.series.values())


def _mean(times: np.ndarray, watts: np.ndarray, start: float, end: float) -> float:
    inside = (times > start) & (times < end)
    grid = np.concatenate(([start], times[inside], [end]))
    return float(np.trapezoid(np.interp(grid, times, watts), grid) / (end - start))


def read_power_log(path: str | Path) -> PowerLog:
    """Returns the power log at `path`."""
    text = decoded(read_bytes(path), where=path)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(row)]
    except csv.Error as error:
        raise ValueError(f"{path}: expected CSV, got: {error}.") from error
    if len(rows) < 2:
        raise ValueError(
            f"{path}: expected a header and samples, got {len(rows)} lines."
        )
    header = [cell.strip() for cell in rows[0]]
    time, gpu, powers = _columns(header, path)
    series: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            continue  # a log cut off while it was written
        where = f"{path}, line {number}"
        seconds = _seconds(row[time], where)
        for column in powers:
            name = row[gpu].strip() if gpu is not None else header[column]
            watts = _watts(row[column], header[column], where)
            series.setdefault(name, []).append((seconds, watts))
    return PowerLog(
        source=str(path),
        series={name: _sorted(pairs, path) for name, pairs in series.items()},
    )


def _columns(
    header: Sequence[str], path: str | Path
) -> tuple[int, int | None, list[int]]:
    plain = [re.sub(r"\s*\[.*\]$", "", name).lower() for name in header]
    time = next((i for i, name in enumerate(plain) if name in TIMES), None)
    powers = [
        i
        for i, name in enumerate(plain)
        if i != time and POWER.search(name) and not NOT_POWER.search(name)
    ]
    gpu = next((i for i, name in enumerate(plain) if name in GPUS), None)
    if time is None or not powers:
        raise ValueError(
            f"{path}: expected a time column ({', '.join(TIMES)}) and a power column "
            f"(power.draw, watts, power_mw, gpu0 ...), got {', '.join(header)}."
        )
    if gpu is not None or "power.draw" in plain:
        powers = powers[:1]  # one GPU a row: further ones are averages of the same
    return time, gpu, powers


def _seconds(cell: str, where: str) -> float:
    text = cell.strip()
    try:
        return float(text)
    except ValueError:
        pass
    for form in DATES:
        try:
            return datetime.strptime(text, form).timestamp()
        except ValueError:
            continue
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        message = f"{where}: expected seconds or a date and time, got {text!r}."
        raise ValueError(message) from None


def _watts(cell: str, name: str, where: str) -> float:
    match = re.fullmatch(r"([-+.\deE]+)\s*(m?W)?", cell.strip())
    try:
        value = float(match.group(1)) if match else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0.0:
        raise ValueError(
            f"{where}: expected `{name}` in W or mW, got {cell.strip()!r}."
        )
    milli = (match and match.group(2) == "mW") or re.search(
        r"_mw$|\[mw\]", name.lower()
    )
    return value * 1e-3 if milli else value


def _sorted(
    pairs: Sequence[tuple[float, float]], path: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    if len(pairs) < 2:
        raise ValueError(f"{path}: expected two samples or more per GPU, got one.")
    samples = np.array(sorted(pairs))
    if np.any(np.diff(samples[:, 0]) <= 0.0):
        raise ValueError(
            f"{path}: expected one sample per GPU and time, got more; add `index` to "
            "the query, so that GPUs are told apart."
        )
    return samples[:, 0], samples[:, 1]
