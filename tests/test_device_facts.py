from dataclasses import replace
from types import SimpleNamespace

import pytest

from jaxlens.measure import device_facts
from jaxlens.measure.arithmetic_rates import RATES, rates
from jaxlens.measure.chip_files import chip_path, refuse_other, save_chip
from jaxlens.measure.device_facts import GpuFacts, gpu_chip, gpu_facts
from jaxlens.measure.nvml import open_gpu
from jaxlens.measure.provenance import chip_id
from jaxlens.profiles import (
    load_chip,
    load_profile,
    load_profile_card,
    supported_clocks,
)
from tests.fake_nvml import INVALID_ARGUMENT, NOT_SUPPORTED, FakeNvml

pynvml = pytest.importorskip("pynvml", reason="the extra `measure` is not installed")

MIB, GIB = 2.0**20, 2.0**30


def clocks(low, high, step=15):
    return tuple(1e6 * megahertz for megahertz in range(low, high + 1, step))


def facts(name, capability, sms, megahertz, memory, watts, **more):
    """Facts as published; `memory` is its clock in MHz and its width in bits."""
    given = {
        "clocks_hz": clocks(210, megahertz),
        "memory_bytes": 80 * GIB,
        "l2_bytes": 50 * MIB,
        "pcie": (4, 16),
    }
    return GpuFacts(
        name=name,
        capability=capability,
        sms=sms,
        sm_clock_hz=1e6 * megahertz,
        memory_clock_hz=1e6 * memory[0],
        memory_bus_bits=memory[1],
        tdp_watts=watts,
        **{**given, **more},
    )


# What CUDA and NVML report of chips that the catalogue knows.
PUBLISHED = {
    "v100-sxm-32gb": facts(
        "Tesla V100-SXM2-32GB", (7, 0), 80, 1530, (877, 4096), 300, l2_bytes=6 * MIB
    ),
    "a100-sxm-80gb": facts(
        "A100-SXM4-80GB", (8, 0), 108, 1410, (1593, 5120), 400, l2_bytes=40 * MIB
    ),
    "a100-sxm-40gb": facts(
        "A100-SXM4-40GB", (8, 0), 108, 1410, (1215, 5120), 400, l2_bytes=40 * MIB
    ),
    "a10": facts("A10", (8, 6), 72, 1695, (6251, 384), 150, l2_bytes=6 * MIB),
    "l40s": facts("L40S", (8, 9), 142, 2520, (9001, 384), 350, l2_bytes=96 * MIB),
    "rtx-4090": facts(
        "GeForce RTX 4090", (8, 9), 128, 2520, (10501, 384), 450, l2_bytes=72 * MIB
    ),
    "h100-sxm": facts("H100 80GB HBM3", (9, 0), 132, 1980, (2619, 5120), 700),
    "h100-pcie": facts("H100 PCIe", (9, 0), 114, 1755, (1593, 5120), 350),
    "h200-sxm": facts("H200", (9, 0), 132, 1980, (3201, 6144), 700),
    "b200-sxm": facts(
        "B200", (10, 0), 148, 1965, (3750, 8192), 1000, l2_bytes=126 * MIB
    ),
    "rtx-pro-6000": facts(
        "RTX PRO 6000", (12, 0), 188, 2617, (14001, 512), 600, l2_bytes=128 * MIB
    ),
}
TENSOR = [f"peak_{unit}_flop_per_s" for unit in ("tf32", "bf16", "fp8", "fp4")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_properties_give_the_datasheet(name):
    built, known = load_chip(gpu_chip(PUBLISHED[name], "own")), load_chip(name)
    for field in (*TENSOR, "hbm_bytes_per_s", "l2_bytes", "boost_hz"):
        expected = pytest.approx(getattr(known, field), rel=0.05)
        assert getattr(built, field) == expected, field
    # Datasheets of Hopper and Blackwell give fp32 at a higher clock than tensor peaks.
    assert built.peak_fp32_flop_per_s == pytest.approx(
        known.peak_fp32_flop_per_s, rel=0.08
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_priors_of_a_known_chip_come_near_its_own(name):
    built, known = (
        gpu_chip(PUBLISHED[name], "own"),
        load_profile_card(name, shipped=False),
    )
    for coefficient, stated in built["coefficients"].items():
        own = known.coefficients[f"chip.{coefficient}"]
        assert stated["spread"] >= (own.spread or 0.0)
        assert "prior: " in stated["source"]
    idle = built["coefficients"]["idle_watts"]["value"]
    assert idle == pytest.approx(load_chip(name).idle_watts, rel=0.35)


def test_an_unknown_gpu_is_a_whole_chip_that_predicts(tmp_path):
    card = facts(
        "NVIDIA GeForce RTX 3090",
        (8, 6),
        82,
        1695,
        (9751, 384),
        350,
        l2_bytes=6 * MIB,
        clocks_hz=clocks(210, 2100),
    )
    identifier = chip_id(card.name)
    assert identifier == "geforce-rtx-3090"
    path = chip_path(tmp_path / "run.parquet")
    save_chip(path, gpu_chip(card, identifier))
    chip = load_chip(path)
    # 71 TFLOP/s of bf16 with fp32 accumulation and 936 GB/s, as its whitepaper says.
    assert chip.peak_bf16_flop_per_s == pytest.approx(71e12, rel=0.01)
    assert chip.peak_tf32_flop_per_s == pytest.approx(35.6e12, rel=0.01)
    assert chip.hbm_bytes_per_s == pytest.approx(936e9, rel=0.01)
    assert chip.link_bytes_per_s == pytest.approx(31.5e9, rel=0.01)
    assert supported_clocks(chip)[[0, -1]].tolist() == [2.1e8, 2.1e9]
    profile, known = load_profile(path), load_profile_card(path)
    assert profile.chip == chip and known.vendor == "NVIDIA"
    assert known.coefficients["chip.idle_watts"].source.startswith("prior: scaled")
    assert "a10" in known.coefficients["chip.bf16_j_per_flop"].source


def test_nvlinks_count_where_they_are_up():
    eight = replace(PUBLISHED["h100-sxm"], nvlinks=18, node_gpus=8)
    found = gpu_chip(eight, "own")["facts"]
    assert found["link_bytes_per_s"]["value"] == 4.5e11
    assert "18 NVLinks" in found["link_bytes_per_s"]["source"]
    assert found["node_gpus"]["value"] == 8.0
    blackwell = gpu_chip(replace(PUBLISHED["b200-sxm"], nvlinks=18), "own")["facts"]
    assert blackwell["link_bytes_per_s"]["value"] == 9e11


def test_newer_parts_are_taken_for_the_newest_that_is_known():
    assert rates((12, 1)) is RATES[12, 0]
    assert rates((8, 7)) is RATES[8, 6]
    with pytest.raises(ValueError, match=r"capability 7.0 or later .* got 6.1"):
        rates((6, 1))


def test_a_run_goes_on_only_on_the_chip_of_its_file(tmp_path):
    path = tmp_path / "run.chip.toml"
    refuse_other(path, "one")  # nothing is there yet
    save_chip(path, gpu_chip(PUBLISHED["a10"], "one"))
    refuse_other(path, "one")
    with pytest.raises(ValueError, match=r"expected a run on one, .* got other"):
        refuse_other(path, "other")


@pytest.fixture
def install(monkeypatch):
    def put(**replies):
        library = FakeNvml(**replies)
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return library

    return put


def device(monkeypatch, **told):
    """What torch tells of an H200."""
    monkeypatch.setattr(device_facts, "properties", lambda _: SimpleNamespace(**told))
    return SimpleNamespace(
        name="NVIDIA H200",
        capability=(9, 0),
        sms=132,
        cache_bytes=50 * MIB,
        memory_bytes=140e9,
    )


def test_torch_and_nvml_tell_the_facts(install, monkeypatch):
    install()
    found = gpu_facts(device(monkeypatch, clock_rate=1_980_000), open_gpu())
    assert found.sm_clock_hz == 1.98e9
    assert (found.memory_clock_hz, found.memory_bus_bits) == (3.201e9, 6144)
    assert found.memory_bytes == 150_754_820_096
    assert (found.nvlinks, found.pcie, found.node_gpus) == (18, (5, 16), 8)
    assert found.clocks_hz[-1] == 1.98e9 and found.tdp_watts == 700.0
    chip = load_chip(gpu_chip(found, "own"))
    assert chip.hbm_bytes_per_s == pytest.approx(4.8e12, rel=0.03)


def test_what_nvml_keeps_to_itself_torch_tells(install, monkeypatch):
    install(
        nvmlDeviceGetMaxClockInfo=NOT_SUPPORTED,
        nvmlDeviceGetMemoryBusWidth=NOT_SUPPORTED,
        nvmlDeviceGetSupportedMemoryClocks=NOT_SUPPORTED,
        nvmlDeviceGetNvLinkState=NOT_SUPPORTED,
        nvmlDeviceGetMaxPcieLinkGeneration=NOT_SUPPORTED,
    )
    told = {"clock_rate": 1_980_000, "memory_clock_rate": 3_201_000}
    told["memory_bus_width"] = 6144
    found = gpu_facts(device(monkeypatch, **told), open_gpu())
    assert (found.clocks_hz, found.nvlinks, found.pcie) == ((), 0, None)
    chip = load_chip(gpu_chip(found, "own"))
    assert chip.link_bytes_per_s == pytest.approx(31.5e9, rel=0.01)  # PCIe 4.0 x16
    assert chip.min_hz <= chip.boost_hz <= chip.max_hz == 1.98e9


def test_what_nobody_tells_is_named(install, monkeypatch):
    install(nvmlDeviceGetMemoryBusWidth=NOT_SUPPORTED)
    with pytest.raises(ValueError, match=r"memory bus.*RUN.chip.toml by hand"):
        gpu_facts(device(monkeypatch), open_gpu())


def test_links_beyond_those_of_a_gpu_are_no_error(install):
    install(nvmlDeviceGetNvLinkState=INVALID_ARGUMENT)
    assert open_gpu().nvlinks() == 0
