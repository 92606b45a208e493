"""A whole session against NVML's C interface and a stand-in for CUDA: no number is a GPU's."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jaxlens.calibration.tables import read_table
from jaxlens.measure import device_facts, idle, runs, sessions
from jaxlens.measure.cases import case
from jaxlens.measure.devices import Cpu, Cuda
from jaxlens.measure.overheads import overheads
from jaxlens.measure.records import Records
from jaxlens.measure.refusals import Unavailable
from jaxlens.measure.requests import Request
from jaxlens.measure.windows import Rules
from jaxlens.profiles import load_chip
from tests.fake_nvml import NO_PERMISSION, FakeNvml

pynvml = pytest.importorskip("pynvml", reason="the extra `measure` is not installed")

UUID = "GPU-11111111-2222-3333-4444-555555555555"
CASES = [
    case("gemm", {"m": 8, "n": 32, "k": 16, "dtype": "float32"}),
    case("gemm", {"m": 16, "n": 32, "k": 16, "dtype": "float32"}),
]

COST = {"seconds_per_empty_launch": 1e-8, "empty_watts": 301.0, "asleep_watts": 300.0}


class StandIn(Cuda):
    """Answers like a GPU and computes on the processor."""

    def __init__(self):
        self._cpu = Cpu()
        self.torch, self.place, self.uuid = torch, torch.device("cpu"), UUID
        self.name, self.sms, self.capability = "NVIDIA H200", 132, (9, 0)
        self.cache_bytes, self.memory_bytes = 1e6, 1e9
        self.stream = None

    def seconds(self, launches, count):
        return self._cpu.seconds(launches, count)

    def synchronize(self):
        pass

    def replayable(self, launches, count):
        return launches, 1


@pytest.fixture
def install(monkeypatch):
    def put(**replies):
        counter = {
            "nvmlDeviceGetTotalEnergyConsumption": lambda: (
                int(300e3 * time.perf_counter()),
            )
        }
        library = FakeNvml(**{**counter, **replies})
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return library

    monkeypatch.setattr(sessions, "open_device", lambda name: StandIn())
    monkeypatch.setattr(sessions, "plan", lambda *_: CASES)
    monkeypatch.setattr(sessions, "keep_jax_off_the_gpu", lambda: None)
    monkeypatch.setattr(sessions, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(sessions, "overheads", lambda *_, **__: COST)
    monkeypatch.setattr(idle, "LOADED_BYTES", 4096)
    monkeypatch.setattr(runs, "PAUSE_SECONDS", 0.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    rules = {
        "window_seconds": 0.1,
        "warmup_seconds": 0.02,
        "longest_warmup_seconds": 0.1,
        "most_windows": 3,
    }
    monkeypatch.setattr(
        sessions,
        "rules",
        lambda request, gauge: Rules(
            **rules,
            allow_disturbed=request.allow_disturbed,
            clocks_locked=request.lock_clock_hz is not None,
        ),
    )
    return put


def asked(tmp_path, **more):
    return Request(out=tmp_path / "run.parquet", **more)


def quiet(text):
    pass


def test_energy_modes_and_clocks_are_kept_with_every_row(install, tmp_path):
    install()
    outcome = sessions.measure(asked(tmp_path), report=quiet)
    assert outcome.tally.measured == 2 and not outcome.tally.problems
    rows = Records(tmp_path / "run.parquet").rows
    (row, *_) = [row for row in rows if row["kind"] == "gemm"]
    assert row["watts"] == pytest.approx(300.0, rel=0.1)
    assert row["joules"] == pytest.approx(row["watts"] * row["seconds"], rel=0.2)
    # The stand-in's counter runs as fast at rest: nothing is left above idle.
    assert row["idle_watts"] == pytest.approx(300.0, rel=0.2)
    assert abs(row["joules_above_idle"]) < 0.3 * row["joules"]
    assert row["driver"] == "570.124.06" and row["gpu_uuid"] == UUID
    assert row["ecc"] is True and row["mig"] is False
    assert row["sm_clock_hz"] == 1.98e9 and row["power_cap_watts"] == 700.0
    assert row["clock_setting"] == "free"


def test_tables_with_energy_are_what_calibration_reads(install, tmp_path):
    install()
    sessions.measure(asked(tmp_path), report=quiet)
    table = read_table(tmp_path / "run.gemm.parquet", strict=True)
    assert set(table["gpu"]) == {"h200-sxm"}
    assert table.has("watts") and table.has("power_cap_watts")
    resting = read_table(tmp_path / "run.clocks_idle.parquet")
    assert resting.kind == "clocks_idle"
    held = read_table(tmp_path / "run.loaded_idle.parquet")
    assert held.kind == "loaded_idle" and held.has("loaded_idle_watts")
    assert not (tmp_path / "run.chip.toml").exists()  # the catalogue knows it


def test_a_gpu_that_the_catalogue_lacks_is_described_beside_its_rows(
    install, tmp_path, monkeypatch
):
    install(nvmlDeviceGetName=(b"NVIDIA H700",))
    device = StandIn()
    device.name = "NVIDIA H700"
    monkeypatch.setattr(sessions, "open_device", lambda name: device)
    told = SimpleNamespace(clock_rate=1_980_000)
    monkeypatch.setattr(device_facts, "properties", lambda device: told)
    outcome = sessions.measure(asked(tmp_path), report=quiet)
    assert outcome.chip == str(tmp_path / "run.chip.toml")
    chip = load_chip(Path(outcome.chip))
    assert (chip.sms, chip.tdp_watts) == (132.0, 700.0)
    table = read_table(tmp_path / "run.gemm.parquet", strict=True)
    assert set(table["gpu"]) == {"h700"}
    # What a user corrects in the file stays.
    text = Path(outcome.chip).read_text()
    Path(outcome.chip).write_text(text.replace("NVML: default", "a meter, not"))
    sessions.measure(asked(tmp_path), report=quiet)
    assert "a meter, not" in Path(outcome.chip).read_text()


def test_the_harness_reports_what_it_takes_and_draws_itself(
    install, tmp_path, monkeypatch
):
    install()
    monkeypatch.setattr(sessions, "overheads", overheads)
    outcome = sessions.measure(asked(tmp_path), report=quiet)
    assert outcome.overhead["empty_watts"] == pytest.approx(300.0, rel=0.2)
    rows = [r for r in Records(tmp_path / "run.parquet").rows if r["kind"] == "gemm"]
    # The stand-in's counter runs as fast whatever is launched.
    assert all(abs(row["harness_watts"]) < 60.0 for row in rows)
    assert all(0.0 < row["harness_seconds"] < 1e-4 for row in rows)


def test_throttling_from_outside_is_not_reported_as_a_result(install, tmp_path):
    bits = (0x80,)
    install(
        nvmlDeviceGetCurrentClocksThrottleReasons=bits,
        nvmlDeviceGetCurrentClocksEventReasons=bits,
    )
    outcome = sessions.measure(asked(tmp_path), report=quiet)
    assert outcome.tally.measured == 0
    assert "power brake from outside" in outcome.tally.problems[0]
    assert not (tmp_path / "run.gemm.parquet").exists()


def test_other_users_are_refused_unless_allowed(install, tmp_path):
    install(nvmlDeviceGetComputeRunningProcesses_v3=[4711])
    with pytest.raises(Unavailable, match="pid 4711"):
        sessions.measure(asked(tmp_path), report=quiet)
    outcome = sessions.measure(asked(tmp_path, allow_disturbed=True), report=quiet)
    assert outcome.tally.measured == 2
    rows = Records(tmp_path / "run.parquet").rows
    assert all("4711" in row["disturbances"] for row in rows)


def test_clocks_are_left_alone_unless_asked(install, tmp_path):
    library = install()
    sessions.measure(asked(tmp_path), report=quiet)
    changing = ("Set", "Reset", "Lock")
    assert not [name for name, _ in library.calls if any(w in name for w in changing)]


def test_locked_clocks_are_given_back_and_their_rows_kept_apart(install, tmp_path):
    library = install()
    request = asked(tmp_path, lock_clock_hz=1.41e9)
    outcome = sessions.measure(request, report=quiet)
    assert outcome.tally.measured == 2
    assert len(library.called("nvmlDeviceSetGpuLockedClocks")) == 1
    assert len(library.called("nvmlDeviceResetGpuLockedClocks")) == 1
    assert not (tmp_path / "run.gemm.parquet").exists()
    assert read_table(tmp_path / "run.clock_gemm.parquet").kind == "clock_gemm"
    rows = [r for r in Records(request.out).rows if r["kind"] == "clock_gemm"]
    assert all(row["limited_seconds"] > 0.0 for row in rows)


def test_without_the_right_to_lock_nothing_is_measured(install, tmp_path):
    install(nvmlDeviceSetGpuLockedClocks=NO_PERMISSION)
    with pytest.raises(Unavailable, match="ask an administrator"):
        sessions.measure(asked(tmp_path, lock_clock_hz=1.41e9), report=quiet)
