import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jaxlens.calibration.tables import read_table
from jaxlens.cli.measure import INTERRUPTED
from jaxlens.cli.measure import measure as command
from jaxlens.measure import plans, runs, sessions
from jaxlens.measure.benches import Bench
from jaxlens.measure.cases import case
from jaxlens.measure.devices import Cpu, processor_name
from jaxlens.measure.gauges import CpuGauge
from jaxlens.measure.records import Records
from jaxlens.measure.refusals import Disturbed, Unavailable
from jaxlens.measure.requests import Request
from jaxlens.measure.suites import OPERATIONS, full
from jaxlens.measure.windows import Rules
from jaxlens.profiles import known_chips

SHORT = Rules(
    window_seconds=0.02,
    warmup_seconds=0.01,
    longest_warmup_seconds=0.04,
    fewest_windows=2,
    most_windows=2,
)
SMALL = [
    case("gemm", {"m": 8, "n": 32, "k": 16, "dtype": "float32"}),
    case("copy", {"bytes": 65536}),
]


@pytest.fixture(scope="module")
def bench():
    return Bench(device=Cpu(), gauge=CpuGauge(), rules=SHORT)


def request(tmp_path, **more):
    given = {"device": "cpu", "out": tmp_path / "run.parquet", "window_seconds": 0.02}
    return Request(**{**given, **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One small case of every kind, twice: how long it takes does not matter."""
    asked = request(tmp_path_factory.mktemp("run"), suite="full", runs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "rules", lambda *_: SHORT)
        patch.setattr(sessions, "plan", lambda _, device, *__: smallest(device))
        return asked, sessions.measure(asked, report=lambda text: None)


def smallest(device):
    """Returns the first case of every kind."""
    return list({one.kind: one for one in reversed(full(device))}.values())


def test_a_run_on_the_processor_measures_every_kind(run):
    asked, outcome = run
    assert not outcome.tally.problems
    assert outcome.tally.measured == 2 * len(OPERATIONS)
    assert outcome.device.startswith("cpu: ")
    assert {path.name for path in outcome.tables} == {
        f"run.{kind}.parquet" for kind in OPERATIONS
    }
    assert all(path.exists() for path in (asked.out, *outcome.tables))
    assert outcome.seconds_repeatability is not None
    assert outcome.joules_repeatability is None


def test_the_quick_suite_fits_its_budget(bench):
    pytest.importorskip("kmedoids", reason="the extra `calibration` is not installed")
    rules = Rules(window_seconds=0.2, warmup_seconds=0.1)
    minute, ten = Request(budget_seconds=60.0), Request(budget_seconds=600.0, runs=10)
    size = plans.coreset_size(minute, bench.device, rules)
    assert size == plans.coreset_size(ten, bench.device, rules)
    assert 10 < size < len(full(bench.device))
    chosen = plans.plan(minute, bench.device, rules, 1)
    assert len(chosen) == size
    assert {one.kind for one in chosen[:6]} == set(OPERATIONS)


@pytest.mark.parametrize(
    "kind", ["gemm", "attention_prefill", "attention_decode", "moe"]
)
def test_tables_are_what_calibration_reads(run, kind):
    asked, _ = run
    path = asked.out.with_name(f"run.{kind}.parquet")
    table = read_table(path, known_gpu=lambda name: True, strict=True)
    assert table.kind == kind
    assert (table["seconds"] > 0.0).all()
    assert not table.has("watts") and not table.has("joules")
    assert set(table["stack"]) == {"torch-2.13.0"}


def test_a_processor_is_never_taken_for_a_gpu(run):
    asked, _ = run
    with pytest.raises(ValueError, match="unknown gpu"):
        read_table(asked.out.with_name("run.gemm.parquet"))
    gpus = {row["gpu"] for row in Records(asked.out).rows}
    assert all(name.startswith(f"cpu: {processor_name()}") for name in gpus)
    assert not gpus & set(known_chips())


def test_every_row_carries_its_spread_and_provenance(run):
    asked, _ = run
    for row in Records(asked.out).rows:
        assert row["status"] == "ok"
        for name in (
            "seconds_spread",
            "windows",
            "tight",
            "steady",
            "version",
            "measured_at",
            "input_sets",
            "weight",
            "suite",
        ):
            assert name in row, name


def test_a_second_call_measures_nothing_again(run, monkeypatch):
    asked, outcome = run
    before = asked.out.read_bytes()
    monkeypatch.setattr(sessions, "plan", lambda _, device, *__: smallest(device))
    again = sessions.measure(asked, report=lambda text: None)
    assert (again.tally.measured, again.tally.kept) == (0, outcome.tally.measured)
    assert asked.out.read_bytes() == before


def test_what_is_left_when_the_time_is_over_is_counted(bench, tmp_path):
    records = Records(tmp_path / "run.parquet")
    tally = runs.run_cases(SMALL, bench, records, {"gpu": "x"}, deadline=0.0)
    assert (tally.measured, tally.left) == (0, 2)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("no kernel image\nmore"), "failed: no kernel image"),
        (Disturbed("throttled by something else: x"), "refused: throttled"),
        (Unavailable("GPU 0: the GPU has fallen off the bus"), "failed: GPU 0"),
    ],
)
def test_a_case_that_fails_is_kept_with_its_reason(
    bench, tmp_path, monkeypatch, error, status
):
    def fail(one, bench):
        if one.kind == "gemm":
            raise error
        return {"seconds": 1.0, "seconds_spread": 0.0, "tight": True}

    monkeypatch.setattr(runs, "measure_kernel", fail)
    monkeypatch.setattr(runs, "PAUSE_SECONDS", 0.0)
    records = Records(tmp_path / "run.parquet")
    tally = runs.run_cases(
        SMALL, bench, records, {"gpu": "x"}, report=lambda text: None
    )
    assert (tally.measured, len(tally.problems)) == (1, 1)
    assert records.rows[0]["status"].startswith(status)
    assert not records.kind_path("gemm").exists()
    assert records.kind_path("copy").exists()


def test_a_process_that_comes_to_the_gpu_spoils_a_case(bench, monkeypatch):
    monkeypatch.setattr(runs, "PAUSE_SECONDS", 0.0)
    shared = dataclasses.replace(bench, intruders=lambda: frozenset({4711}))
    assert "pid 4711" in runs.attempted(SMALL[0], shared)["status"]
    allowing = dataclasses.replace(SHORT, allow_disturbed=True)
    shared = dataclasses.replace(shared, rules=allowing)
    assert runs.attempted(SMALL[0], shared)["status"] == "ok"


def test_an_interrupt_keeps_what_was_measured(bench, tmp_path, monkeypatch, capsys):
    seen = []

    def stop(one, bench):
        if seen:
            raise KeyboardInterrupt
        seen.append(one)
        return {"seconds": 1.0, "seconds_spread": 0.0, "tight": True}

    monkeypatch.setattr(runs, "measure_kernel", stop)
    monkeypatch.setattr(sessions, "plan", lambda *_: SMALL)
    out = tmp_path / "run.parquet"
    assert command(device="cpu", out=out, json=True) == INTERRUPTED
    assert "goes on from there" in capsys.readouterr().err
    assert len(Records(out).rows) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"suite": "slow"}, "--suite: expected one of quick"),
        ({"operations": ("gem",)}, "--ops: expected some of gemm"),
        ({"budget_seconds": 0.0}, "--budget: expected more than 0"),
        ({"runs": 0}, "--runs: expected 1 or more"),
        ({"device": "tpu"}, "--device: expected cpu, cuda or cuda:N"),
        ({"lock_clock_hz": 1e9}, "--lock-clocks: expected a GPU"),
        ({"out": Path("run.csv")}, "--out: expected a name ending in .parquet"),
    ],
)
def test_a_wrong_request_says_what_is_expected(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        sessions.measure(request(tmp_path, **options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_way_out_is_named(tmp_path):
    with pytest.raises(Unavailable, match="--device cpu"):
        sessions.measure(request(tmp_path, device="cuda"))
    assert not (tmp_path / "run.parquet").exists()


def test_the_overhead_of_the_harness_is_reported():
    arguments = ["-m", "jaxlens.measure", "--device", "cpu", "--window", "0.05"]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    found = json.loads(done.stdout)
    assert 0.0 < found["seconds_per_empty_launch"] < 1e-4
    assert found["empty_watts"] is None or found["empty_watts"] > 0.0
    assert found["seconds_per_tiny_launch"] > found["seconds_per_empty_launch"]


def test_a_product_and_a_copy_run_beside_each_other(bench):
    sizes = {"m": 128, "n": 128, "k": 128, "dtype": "float32", "copied_bytes": 2**20}
    found = runs.attempted(case("overlap", sizes), bench)
    assert found["status"] in {
        "ok",
        "failed: the two kernels did not run beside each other",
    }
    if found["status"] == "ok":
        assert found["seconds"] > 0.0 and found["product_slowdown"] > 0.1


def test_a_product_beside_a_copy_is_not_taken_for_a_product(
    bench, tmp_path, monkeypatch
):
    found = {"seconds": 1.0, "seconds_spread": 0.0}
    monkeypatch.setattr(runs, "SPECIAL", {"overlap": lambda *_: found})
    sizes = {"m": 1, "n": 1, "k": 1, "dtype": "float32", "copied_bytes": 8}
    records = Records(tmp_path / "run.parquet")
    one = case("overlap", sizes)
    runs.run_cases([one], bench, records, {"gpu": "x"}, report=lambda text: None)
    with pytest.raises(ValueError, match="expected the columns"):
        read_table(records.kind_path("overlap"))


def test_sm_shares_need_a_gpu(bench):
    one = case("sm_share", {"sms": 8, "operation_kind": "copy", "bytes": 4096})
    assert "expected a GPU" in runs.attempted(one, bench)["status"]


def test_visible_gpus_are_found_by_number_or_uuid():
    visible = {"CUDA_VISIBLE_DEVICES": "GPU-aaaa,3"}
    assert sessions.visible_gpu("cuda", {}) == (0, None)
    assert sessions.visible_gpu("cuda", {"LOCAL_RANK": "2"}) == (2, None)
    assert sessions.visible_gpu("cuda:0", visible) == (0, "GPU-aaaa")
    assert sessions.visible_gpu("cuda:1", visible) == (3, None)
    with pytest.raises(ValueError, match="2 visible GPUs"):
        sessions.visible_gpu("cuda:2", visible)
