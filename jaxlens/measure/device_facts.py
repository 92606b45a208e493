"""A GPU that no catalogue knows as a chip: what it tells of itself, and priors for the rest.

Facts come from CUDA's device properties and from NVML:

    peak = SMs x FLOPs per clock x boost clock,   bandwidth = 2 x memory clock x bus width / 8

CUDA and NVML give half of the data rate of a pin as the memory clock, of HBM and of every GDDR
alike, hence the 2. Coefficients are those of the nearest chip of the catalogue, scaled by TDP
and peaks, with a wider spread.

Source: M. Harris, "How to Implement Performance Metrics in CUDA C/C++", NVIDIA Developer Blog,
2012, https://developer.nvidia.com/blog/how-implement-performance-metrics-cuda-cc/ (bandwidth).
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxlens.measure.arithmetic_rates import Rates, accumulation_share, rates
from jaxlens.measure.devices import Cuda
from jaxlens.measure.nvml import Gpu
from jaxlens.profile_files import CHIPS, Entry, normalised, read_entry
from jaxlens.profile_values import unit_of

DATA_RATES = 2.0  # bits of a pin in one cycle of the memory clock that is reported
PCIE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
WIDER = 1.5  # spreads of what is taken over from another chip
WIDEST = 1.0
STEP_HZ = 15e6  # between clocks that can be locked, where NVML does not list them
FORMATS = ("fp32", "tf32", "bf16", "fp8", "fp4")
WITH_TDP = ("idle_watts", "busy_watts", "link_watts")

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """What a GPU tells of itself."""

    name: str
    capability: tuple[int, int]
    sms: int
    sm_clock_hz: float  # the highest that CUDA reports
    clocks_hz: tuple[float, ...]  # that can be locked, ascending; may be empty
    memory_bytes: float
    memory_clock_hz: float
    memory_bus_bits: int
    l2_bytes: float
    tdp_watts: float
    nvlinks: int = 0  # that are up
    pcie: tuple[int, int] | None = None  # generation, lanes
    node_gpus: int = 1


def gpu_facts(device: Cuda, gpu: Gpu) -> GpuFacts:
    """Returns what torch and NVML tell of a GPU; NVML first where both know.

    The SM clock is CUDA's: NVML's highest one is out of reach of GeForce parts under load.
    """
    found = properties(device)
    clock = 1e3 * float(getattr(found, "clock_rate", 0.0))
    memory_clock = 1e3 * float(getattr(found, "memory_clock_rate", 0.0))
    modes = gpu.modes()
    known = {
        "SM clock": clock or gpu.highest_clock_hz("sm"),
        "memory clock": gpu.highest_clock_hz("memory") or memory_clock,
        "memory bus": gpu.memory_bus_bits() or getattr(found, "memory_bus_width", 0),
        "power limit": modes.default_power_limit_watts or modes.power_limit_watts,
    }
    missing = [what for what, value in known.items() if not value]
    if missing:
        raise ValueError(
            f"chip file of {device.name}: expected torch or NVML to tell its "
            f"{', '.join(missing)}, got neither; write RUN.chip.toml by hand, those of "
            "jaxlens/data/chips show how."
        )
    return GpuFacts(
        name=device.name,
        capability=device.capability,
        sms=device.sms,
        sm_clock_hz=float(known["SM clock"]),
        clocks_hz=gpu.supported_sm_clocks_hz(),
        memory_bytes=gpu.memory_bytes() or device.memory_bytes,
        memory_clock_hz=float(known["memory clock"]),
        memory_bus_bits=int(known["memory bus"]),
        l2_bytes=device.cache_bytes,
        tdp_watts=float(known["power limit"]),
        nvlinks=gpu.nvlinks(),
        pcie=gpu.pcie(),
        node_gpus=gpu.neighbours(),
    )


def properties(device: Cuda) -> Any:
    """Returns CUDA's properties of a device; recent torch tells clocks and bus width."""
    return device.torch.cuda.get_device_properties(device.place)


def gpu_chip(facts: GpuFacts, identifier: str) -> Tables:
    """Returns the tables of a chip file called `identifier`."""
    entry = rates(facts.capability)
    stated = _facts(facts, entry)
    numbers = {name: item["value"] for name, item in stated.items()}
    relative = nearest_relative(entry.relatives, numbers)
    network = relative.values["network_bytes_per_s"]
    stated["network_bytes_per_s"] = _fact(
        "network_bytes_per_s", network.value, f"prior: taken from {relative.id}"
    )
    return {
        "identity": {
            "id": identifier,
            "name": facts.name,
            "vendor": "NVIDIA",
            "architecture": entry.architecture,
            "aliases": [normalised(facts.name)],
            "formats": list(entry.formats),
        },
        "facts": stated,
        "coefficients": scaled_coefficients(relative, numbers),
    }


def nearest_relative(candidates: tuple[str, ...], facts: dict[str, float]) -> Entry:
    """Returns the catalogue chip among `candidates` that is nearest to `facts`.

    Distance: |log ratio| of TDP, bandwidth and bf16 peak, added up.
    """
    compared = ("tdp_watts", "hbm_bytes_per_s", "peak_bf16_flop_per_s")

    def distance(entry: Entry) -> float:
        return sum(
            abs(math.log(facts[name] / entry.values[name].value)) for name in compared
        )

    return min((read_entry(CHIPS, name) for name in candidates), key=distance)


def scaled_coefficients(
    relative: Entry, facts: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Returns the coefficients of `relative`, moved to a chip of `facts`.

    Power goes with the TDP and clocks with boost. An operation would cost as much as on the
    relative if the silicon were the same, and (TDP / rate) times as much if both used up
    their TDP: the prior is the geometric mean of both and its spread holds either.
    """
    power = facts["tdp_watts"] / relative.values["tdp_watts"].value
    boost = facts["boost_hz"] / relative.values["boost_hz"].value
    rate_of = {"hbm_j_per_byte": "hbm_bytes_per_s"}
    rate_of |= {f"{name}_j_per_flop": f"peak_{name}_flop_per_s" for name in FORMATS}
    found = {}
    for name, known in relative.values.items():
        if known.spread is None:
            continue
        factor, doubt = 1.0, 0.0
        if name in WITH_TDP:
            factor = power
        elif name == "knee_hz":
            factor = boost
        elif name in rate_of:
            rate = facts[rate_of[name]] / relative.values[rate_of[name]].value
            factor = math.sqrt(power / rate)
            doubt = abs(math.log(factor))
        spread = min(WIDEST, math.hypot(WIDER * known.spread, doubt))
        how = "taken" if factor == 1.0 else f"scaled by {factor:.3g}"
        found[name] = {
            "value": known.value * factor,
            "unit": unit_of(name),
            "spread": float(f"{max(spread, known.spread):.3g}"),
            "source": f"prior: {how} from {relative.id}",
        }
    return found


def _facts(facts: GpuFacts, entry: Rates) -> dict[str, dict[str, Any]]:
    boost = facts.sm_clock_hz * entry.peak_share
    clocks = facts.clocks_hz or (boost,)
    low, high = min(clocks[0], boost), max(clocks[-1], facts.sm_clock_hz)
    step = (clocks[-1] - clocks[0]) / max(len(clocks) - 1, 1) or STEP_HZ
    told = "CUDA device properties"
    listed = "NVML supported SM clocks" if facts.clocks_hz else told
    at = (
        ""
        if entry.peak_share == 1.0
        else f" x {entry.peak_share:.3f}, as datasheets do"
    )
    link, link_source = _link(facts, entry)
    bandwidth = DATA_RATES * facts.memory_clock_hz * facts.memory_bus_bits / 8.0
    memory = f"{facts.memory_bus_bits} bit at {facts.memory_clock_hz / 1e6:.0f} MHz"
    found = {
        "sms": (float(facts.sms), told),
        **_peaks(facts, entry, boost),
        "boost_hz": (boost, f"{told}: highest SM clock{at}"),
        "min_hz": (low, listed),
        "max_hz": (high, listed),
        "step_hz": (step, f"{listed}, mean step"),
        "hbm_bytes": (facts.memory_bytes, "NVML: total memory"),
        "hbm_bytes_per_s": (bandwidth, f"NVML: 2 x {memory}"),
        "l2_bytes": (facts.l2_bytes, told),
        "tdp_watts": (facts.tdp_watts, "NVML: default power limit"),
        "link_bytes_per_s": (link, link_source),
        "node_gpus": (float(facts.node_gpus), "NVML: GPUs of this machine"),
    }
    return {name: _fact(name, *pair) for name, pair in found.items()}


def _peaks(
    facts: GpuFacts, entry: Rates, boost_hz: float
) -> dict[str, tuple[float, str]]:
    share = accumulation_share(facts.name, entry)
    major, minor = facts.capability
    peaks = {}
    for name in FORMATS:
        has_unit = name in entry.formats or name in ("fp32", "tf32", "bf16")
        own = share if name in ("tf32", "bf16", "fp8") or not has_unit else 1.0
        per_clock = max(own * getattr(entry, name), entry.fp32 * (name == "tf32"))
        source = (
            f"{per_clock:g} FLOP per clock and SM at compute capability {major}.{minor}: "
            f"{entry.source}"
            if has_unit
            else f"no {name} unit: the bf16 peak"
        )
        peaks[f"peak_{name}_flop_per_s"] = (facts.sms * per_clock * boost_hz, source)
    return peaks


def _link(facts: GpuFacts, entry: Rates) -> tuple[float, str]:
    """Bandwidth to the other GPUs, in one direction: NVLink where it is up, else PCIe."""
    if facts.nvlinks:
        each = entry.link_bytes_per_s
        return facts.nvlinks * each, f"NVML: {facts.nvlinks} NVLinks x {each:g} B/s"
    generation, lanes = facts.pcie or (4, 16)
    each = PCIE_BYTES_PER_S.get(generation, PCIE_BYTES_PER_S[max(PCIE_BYTES_PER_S)])
    source = f"PCIe {generation} x{lanes}"
    return lanes * each, f"NVML: {source}" if facts.pcie else f"prior: {source}"


def _fact(name: str, value: float, source: str) -> dict[str, Any]:
    return {"value": float(value), "unit": unit_of(name), "source": source}
