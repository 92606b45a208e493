from types import SimpleNamespace

import pytest

from jaxlens.measure.chip_files import chip_beside
from jaxlens.measure.processor_facts import clocks, processor_chip
from jaxlens.measure.records import Records
from jaxlens.profiles import load_chip, load_profile_card
from jaxlens.requests import PROCESSOR

pytest.importorskip("pyarrow", reason="the extra `calibration` is not installed")

OWN = "cpu-some-processor-2-threads"
DEVICE = SimpleNamespace(
    name="cpu: some processor, 2 threads",
    cache_bytes=32.0 * 2**20,
    torch=SimpleNamespace(get_num_threads=lambda: 2),
)


def row(kind, case, **columns):
    return {
        "kind": kind,
        "case": f"{kind}/{case}",
        "gpu": OWN,
        "status": "ok",
        "run": 1,
        "seconds": 1e-3,
        **columns,
    }


ROWS = [
    row("gemm", "small", flop=1e7, dtype="float32"),
    row("gemm", "large", flop=8e7, dtype="float32"),
    row("gemm", "half", flop=5e7, dtype="bfloat16"),
    row("elementwise", "norm", flop=9e9, dtype="float32"),
    row("copy", "cached", bytes=9e9, fills_cache=False),
    row("copy", "streamed", bytes=2e7, fills_cache=True),
    row("gemm", "elsewhere", flop=1e12, dtype="float32") | {"gpu": "cpu-other"},
    row("gemm", "failed", flop=1e12, dtype="float32") | {"status": "failed: x"},
]


def test_peaks_are_the_highest_rates_of_the_run():
    chip = load_chip(processor_chip(DEVICE, ROWS, OWN))
    assert chip.peak_fp32_flop_per_s == pytest.approx(8e10)
    assert chip.peak_bf16_flop_per_s == chip.peak_fp8_flop_per_s == pytest.approx(5e10)
    assert chip.hbm_bytes_per_s == pytest.approx(2e10)
    assert (chip.sms, chip.l2_bytes) == (2.0, 32.0 * 2**20)


def test_energies_are_placeholders_of_a_vendor_that_predictions_refuse():
    card = load_profile_card(processor_chip(DEVICE, ROWS, OWN))
    assert card.vendor == PROCESSOR
    for name in ("idle_watts", "busy_watts", "hbm_j_per_byte", "bf16_j_per_flop"):
        assert card.coefficients[f"chip.{name}"].source.startswith("placeholder")


def test_without_a_product_or_a_copy_what_is_assumed_is_said():
    facts = processor_chip(DEVICE, [], OWN)["facts"]
    for name in ("peak_fp32_flop_per_s", "hbm_bytes_per_s"):
        assert facts[name]["value"] > 0.0
        assert facts[name]["source"].startswith("assumed")


def test_clocks_are_those_that_the_system_shows(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    nothing = clocks(cpufreq=tmp_path, cpuinfo=cpuinfo)
    assert nothing.source.startswith("assumed")
    cpuinfo.write_text("model name\t: some processor\ncpu MHz\t\t: 2596.0\n")
    assert clocks(cpufreq=tmp_path, cpuinfo=cpuinfo).high_hz == 2.596e9
    (tmp_path / "cpuinfo_min_freq").write_text("800000\n")
    (tmp_path / "cpuinfo_max_freq").write_text("3500000\n")
    shown = clocks(cpufreq=tmp_path, cpuinfo=cpuinfo)
    assert (shown.low_hz, shown.high_hz) == (8e8, 3.5e9)


def test_the_file_is_written_at_the_end_and_at_an_early_one(tmp_path):
    records = Records(tmp_path / "run.parquet")
    with (
        pytest.raises(KeyboardInterrupt),
        chip_beside(records, DEVICE, None, OWN) as path,
    ):
        assert "assumed" in path.read_text()
        for one in ROWS:
            records.add(one)
        raise KeyboardInterrupt
    assert path == tmp_path / "run.chip.toml"
    assert load_chip(path).peak_fp32_flop_per_s == pytest.approx(8e10)


def test_a_chip_of_the_catalogue_needs_no_file(tmp_path):
    records = Records(tmp_path / "run.parquet")
    with chip_beside(records, DEVICE, None, "h200-sxm") as path:
        assert path is None
    assert not list(tmp_path.iterdir())
