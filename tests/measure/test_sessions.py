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
from jaxlens.measure import overlap_pairs, plans, rounds, runs, sessions
from jaxlens.measure.benches import Bench
from jaxlens.measure.cases import case
from jaxlens.measure.devices import Cpu, processor_name
from jaxlens.measure.gauges import CpuGauge
from jaxlens.measure.operations import kernel
from jaxlens.measure.records import Records
from jaxlens.measure.refusals import Disturbed, Unavailable
from jaxlens.measure.requests import Request
from jaxlens.measure.suites import OPERATIONS, full
from jaxlens.measure.windows import Rules
from jaxlens.profiles import known_chips, load_chip, load_profile_card

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
    assert outcome.tally.windows >= 2 * 2 * len(OPERATIONS)
    assert 0.0 < outcome.overhead["seconds_per_empty_launch"] < 1e-4


def test_the_quick_suite_fits_its_budget(bench):
    pytest.importorskip("kmedoids", reason="the extra `calibration` is not installed")
    rules = Rules(window_seconds=0.2, warmup_seconds=0.1)
    minute, ten = Request(budget_seconds=60.0), Request(budget_seconds=510.0, runs=10)
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
    asked, outcome = run
    gpus = {row["gpu"] for row in Records(asked.out).rows}
    assert all(name.startswith("cpu-") for name in gpus)
    assert not gpus & set(known_chips())
    card = load_profile_card(Path(outcome.chip), "torch")
    assert (card.vendor, card.chip_name) == ("processor", processor_name())
    assert {card.chip} == gpus


def test_the_chip_file_holds_the_highest_rate_of_the_run(run):
    asked, outcome = run
    rows = [r for r in Records(asked.out).rows if r["kind"] in ("gemm", "moe")]
    reached = max(row["flop"] / row["seconds"] for row in rows)
    assert load_chip(Path(outcome.chip)).peak_fp32_flop_per_s >= reached


def test_another_processor_needs_another_file(run, monkeypatch):
    asked, _ = run
    monkeypatch.setattr(sessions, "chip_id", lambda name: "cpu-of-another")
    with pytest.raises(ValueError, match="choose another --out"):
        sessions.measure(asked, report=lambda text: None)


def test_every_row_carries_its_spread_and_provenance(run):
    asked, _ = run
    for row in Records(asked.out).rows:
        assert row["status"] == "ok"
        for name in (
            "seconds_spread",
            "windows",
            "tight",
            "steady",
            "threads",
            "estimator",
            "disturbed_windows",
            "discarded_windows",
            "harness_seconds",
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
    def fail(one, device):
        if one.kind == "gemm":
            raise error
        return kernel(one, device)

    monkeypatch.setattr(rounds, "kernel_of", fail)
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


@pytest.mark.parametrize(("visits", "rows"), [(3, 0), (4, 1), (5, 2), (7, 2)])
def test_an_interrupt_keeps_what_was_measured(
    tmp_path, monkeypatch, capsys, visits, rows
):
    """Two cases in turn, each worth a row after two visits."""
    real, seen = rounds.visit, []

    def stop(*arguments):
        seen.append(arguments)
        if len(seen) == visits:
            raise KeyboardInterrupt
        return real(*arguments)

    never = dataclasses.replace(SHORT, most_windows=9, seconds_tolerance=0.0)
    cost = {"seconds_per_empty_launch": 1e-8, "empty_watts": None, "asleep_watts": None}
    monkeypatch.setattr(sessions, "overheads", lambda *_, **__: cost)
    monkeypatch.setattr(rounds, "visit", stop)
    monkeypatch.setattr(sessions, "rules", lambda *_: never)
    monkeypatch.setattr(sessions, "plan", lambda *_: SMALL)
    out = tmp_path / "run.parquet"
    assert command(device="cpu", out=out, json=True) == INTERRUPTED
    assert "goes on from there" in capsys.readouterr().err
    kept = Records(out).rows
    assert len(kept) == rows
    # Visits after the fewest count too: 6 before the last interrupt, 3 of each case.
    assert all(row["windows"] == (3 if visits == 7 else 2) for row in kept)
    monkeypatch.setattr(rounds, "visit", real)
    monkeypatch.setattr(sessions, "rules", lambda *_: SHORT)
    again = sessions.measure(request(tmp_path), report=lambda text: None)
    assert (again.tally.kept, again.tally.measured) == (rows, 2 - rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"suite": "slow"}, "--suite: expected one of quick"),
        ({"operations": ("gem",)}, "--ops: expected some of gemm"),
        ({"budget_seconds": 0.0}, "--budget: expected more than 0"),
        ({"runs": 0}, "--runs: expected 1 or more"),
        ({"device": "tpu"}, "--device: expected cpu, cuda or cuda:N"),
        ({"threads": 0}, "--threads: expected 1 or more"),
        ({"threads": 2, "device": "cuda"}, "--threads: expected --device cpu"),
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


def test_a_product_and_a_copy_run_beside_each_other(bench, monkeypatch):
    monkeypatch.setattr(overlap_pairs, "SHORTEST_SECONDS", 0.02)
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
