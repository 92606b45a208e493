"""A processor as a chip, from what the machine shows and what a run measured.

A processor has no datasheet peak that its kernels come near, so the peaks are the highest
rates that this run reached: of products in FLOP/s, of copies beyond the caches in B/s.
Coefficients of energy are placeholders, there because a chip has them; no prediction may use
them.
"""

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlens.measure.devices import Cpu, processor_name
from jaxlens.measure.records import GOOD
from jaxlens.profile_values import unit_of
from jaxlens.requests import PROCESSOR

CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
CPUINFO = Path("/proc/cpuinfo")
POWER_LIMIT = Path("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw")
PRODUCTS = ("gemm", "moe", "attention_prefill", "attention_decode")
ASSUMED_HZ = 2e9  # where neither /sys nor /proc shows a clock
ASSUMED_FLOP = 16.0  # per clock and core: one fused multiply-add on eight floats
ASSUMED_BYTES_PER_S = 1e10
ASSUMED_WATTS = 1e3
PLACEHOLDER = "placeholder: no prediction of a processor's energy may use it"

Row = Mapping[str, Any]
Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """Lowest, highest and present clock of a core, and where they are shown."""

    low_hz: float
    high_hz: float
    source: str


def processor_chip(device: Cpu, rows: Iterable[Row], identifier: str) -> Tables:
    """Returns the tables of a chip file called `identifier`, from the `rows` of a run."""
    rows = [row for row in rows if row["status"] == GOOD and row["gpu"] == identifier]
    cores = float(device.torch.get_num_threads())
    return {
        "identity": {
            "id": identifier,
            "name": processor_name(),
            "vendor": PROCESSOR,
            "architecture": platform.machine(),
            "aliases": [],
            "formats": [],
        },
        "facts": _facts(rows, cores, device.cache_bytes, clocks()),
        "coefficients": _coefficients(clocks().high_hz),
    }


def clocks(cpufreq: Path = CPUFREQ, cpuinfo: Path = CPUINFO) -> Clocks:
    """Returns the clocks that the kernel shows of the first core."""
    ends = [cpufreq / f"cpuinfo_{end}_freq" for end in ("min", "max")]
    if all(path.is_file() for path in ends):
        low, high = (1e3 * float(path.read_text()) for path in ends)
        return Clocks(low_hz=low, high_hz=high, source="cpufreq of /sys")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("cpu MHz"):
                now = 1e6 * float(line.partition(":")[2])
                return Clocks(low_hz=now, high_hz=now, source="/proc/cpuinfo, at rest")
    return Clocks(low_hz=ASSUMED_HZ, high_hz=ASSUMED_HZ, source="assumed: not shown")


def highest_flop_per_s(rows: Iterable[Row], dtypes: Iterable[str]) -> float | None:
    """Returns the highest rate of the products of a run in one of `dtypes`.

    >>> row = {"kind": "gemm", "dtype": "float32", "flop": 6.0, "seconds": 2.0}
    >>> highest_flop_per_s([row], ["float32"])
    3.0
    """
    wanted = frozenset(dtypes)
    reached = [
        row["flop"] / row["seconds"]
        for row in rows
        if row["kind"] in PRODUCTS and row.get("dtype") in wanted and row.get("flop")
    ]
    return max(reached, default=None)


def highest_bytes_per_s(rows: Iterable[Row]) -> float | None:
    """Returns the highest rate of copies between buffers that no cache holds together."""
    reached = [
        row["bytes"] / row["seconds"]
        for row in rows
        if row["kind"] == "copy" and row.get("fills_cache")
    ]
    return max(reached, default=None)


def _facts(
    rows: list[Row], cores: float, cache_bytes: float, shown: Clocks
) -> dict[str, dict[str, Any]]:
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    bandwidth = highest_bytes_per_s(rows)
    copies = "highest rate that copies of this run reached beyond the caches"
    watts, limit = _power_limit(rows)
    found = {
        "sms": (cores, "threads that torch ran on"),
        **_peaks(rows, cores * shown.high_hz * ASSUMED_FLOP),
        "boost_hz": (shown.high_hz, shown.source),
        "min_hz": (shown.low_hz, shown.source),
        "max_hz": (shown.high_hz, shown.source),
        "step_hz": (1e8, "assumed: clocks of a processor are not locked"),
        "hbm_bytes": (memory, "memory of the machine"),
        "hbm_bytes_per_s": (bandwidth, copies)
        if bandwidth
        else (ASSUMED_BYTES_PER_S, "assumed: no copy of this run exceeds the caches"),
        "l2_bytes": (cache_bytes, "last cache, /sys"),
        "tdp_watts": (watts, limit),
        "link_bytes_per_s": (
            bandwidth or ASSUMED_BYTES_PER_S,
            "placeholder: one processor, memory bandwidth",
        ),
        "node_gpus": (1.0, "one processor"),
        "network_bytes_per_s": (1.25e9, "placeholder: 10 Gb/s"),
    }
    return {
        name: {"value": float(value), "unit": unit_of(name), "source": source}
        for name, (value, source) in found.items()
    }


def _peaks(rows: list[Row], assumed: float) -> dict[str, tuple[float, str]]:
    reached = "highest rate that products of this run reached"
    single = highest_flop_per_s(rows, ["float32"])
    fp32 = (single, reached) if single else (assumed, "assumed: no product measured")
    half = highest_flop_per_s(rows, ["bfloat16", "float16"])
    narrow = (half, reached) if half else (fp32[0], "no product measured: fp32's")
    return {
        "peak_fp32_flop_per_s": fp32,
        "peak_tf32_flop_per_s": (fp32[0], "no tf32 unit: the fp32 peak"),
        "peak_bf16_flop_per_s": narrow,
        "peak_fp8_flop_per_s": (narrow[0], "no fp8 unit: the bf16 peak"),
        "peak_fp4_flop_per_s": (narrow[0], "no fp4 unit: the bf16 peak"),
    }


def _power_limit(rows: list[Row]) -> tuple[float, str]:
    try:
        return 1e-6 * float(POWER_LIMIT.read_text()), "RAPL: power limit of the package"
    except (OSError, ValueError):
        pass
    drawn = max((row["watts"] for row in rows if row.get("watts")), default=None)
    if drawn:
        return drawn, "highest power that this run drew"
    return ASSUMED_WATTS, PLACEHOLDER


def _coefficients(clock_hz: float) -> dict[str, dict[str, Any]]:
    """Placeholders for all that is about energy, where RAPL may move them; priors of time."""
    energies = {f"{name}_j_per_flop": 1e-11 for name in ("fp32", "tf32", "bf16")}
    energies |= {f"{name}_j_per_flop": 1e-11 for name in ("fp8", "fp4")}
    found = {
        "knee_hz": (0.5 * clock_hz, PLACEHOLDER),
        "voltage_rise": (0.0, PLACEHOLDER),
        "voltage_bend": (0.0, PLACEHOLDER),
        "idle_watts": (20.0, PLACEHOLDER),
        "busy_watts": (50.0, PLACEHOLDER),
        "hbm_j_per_byte": (1e-10, PLACEHOLDER),
        **{name: (value, PLACEHOLDER) for name, value in energies.items()},
        "link_watts": (0.0, PLACEHOLDER),
        "cap_share": (0.98, PLACEHOLDER),
        "hbm_saturation": (0.5, "prior: half of the cores saturate the memory"),
        "overlap_contention": (0.05, "prior: as for GPUs"),
        "network_seconds": (5e-6, PLACEHOLDER),
    }
    return {
        name: {
            "value": value,
            "unit": unit_of(name),
            "spread": 1.0,
            "source": source,
        }
        for name, (value, source) in found.items()
    }
