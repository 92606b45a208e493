import contextlib
import io
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import machine_runs
import numpy as np
import pytest

from jaxlens import calibration
from jaxlens.calibration.machines import kernel_tables, runs
from jaxlens.calibration.machines.chips import facts_of
from jaxlens.calibration.machines.fitting import fit_machine, folds, problem
from jaxlens.calibration.machines.rows import asked
from jaxlens.calibration.machines.runs import is_run, operation, read_run
from jaxlens.cli import main
from jaxlens.fitted_profiles import toml_text
from jaxlens.kernel_works import message, works
from jaxlens.profile_files import DATA
from jaxlens.profiles import load_chip, load_profile
from jaxlens.requests import prepare
from jaxlens.rooflines import Machine, kernel

SDS = 4.0  # of a coefficient: what an interval of all of them together must hold


def command(*arguments: str) -> dict:
    """Runs the command line and returns what it says as JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*arguments, "--json"])
    assert code in (0, None)
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def h200(tmp_path_factory):
    """A machine that was measured, and the report of its calibration."""
    folder = tmp_path_factory.mktemp("h200")
    truth = machine_runs.truth()
    rows = machine_runs.measured(
        [
            *machine_runs.cases(),
            *machine_runs.limited_cases(),
            *machine_runs.steps(),
        ],
        truth,
    )
    resting = [{**machine_runs.PROVENANCE, **row} for row in machine_runs.idle(truth)]
    failed = {**rows[0], "status": "failed: no reason", "seconds": None}
    quick = machine_runs.write(folder / "quick.parquet", [*rows, *resting, failed])
    others = machine_runs.measured(machine_runs.cases(17, 1), truth)
    full = machine_runs.write(folder / "full.parquet", [*rows, *others])
    report = command(
        "calibrate",
        str(quick),
        "--held-out",
        str(full),
        "--out",
        str(folder / "mine"),
        "--no-kernels",
    )
    return folder / "mine", report


def test_a_run_gives_back_the_machine_that_it_was_measured_on(h200):
    _, report = h200
    truth = machine_runs.truth()
    assert report["converged"] and report["failed"] == 1
    measured = {c["name"]: c for c in report["coefficients"] if c["measured"]}
    for name, found in measured.items():
        layer, field = name.split(".")
        expected = getattr(getattr(truth, layer), field)
        off = abs(np.log(found["value"] / expected))
        assert off < SDS * found["sd"] + 0.01, name
    for name in (
        "chip.idle_watts",
        "chip.hbm_j_per_byte",
        "chip.bf16_j_per_flop",
        "chip.hbm_saturation",
        "stack.gemm_flop_efficiency",
        "stack.gemm_byte_efficiency",
        "stack.attention_byte_efficiency",
        "stack.elementwise_byte_efficiency",
        "stack.kernel_seconds",
        "stack.collective_seconds",
        "stack.collective_byte_efficiency",
    ):
        layer, field = name.split(".")
        expected = getattr(getattr(truth, layer), field)
        assert measured[name]["value"] == pytest.approx(expected, rel=0.08), name
    assert "chip.fp4_j_per_flop" not in measured  # no row has such a product


def test_errors_are_those_of_the_noise_also_on_cases_left_out(h200):
    _, report = h200
    for family, part in report["families"].items():
        if family in runs.IDLE:
            continue
        assert part["time"]["held_out"] < 0.04, family
        assert part["energy"]["held_out"] < 0.05, family
        assert part["time"]["spread"] == pytest.approx(0.02)
    assert {"gemm", "moe"} <= report["held_out"].keys()
    for part in report["held_out"].values():
        assert part["time"]["profile"] < 0.05
    assert len(report["steps"]) == 2
    for step in report["steps"]:
        assert abs(step["seconds_error"]) < 0.06
        assert abs(step["joules_error"]) < 0.06


def test_predictions_take_the_measured_chip_with_any_stack(h200):
    folder, _ = h200
    chip = folder / "h200-sxm.toml"
    serving = prepare("Qwen/Qwen3-8B", str(chip))
    assert serving.card.stack == "vllm-0.11"
    assert serving.profile.chip.idle_watts == pytest.approx(82.0, rel=0.05)
    assert "measured: quick.parquet" in chip.read_text()
    found = command("predict", "Qwen/Qwen3-8B", "--gpu", str(chip))
    assert found
    profile = folder / "h200-sxm.torch.toml"
    kernels = prepare("Qwen/Qwen3-8B", profile=profile)
    assert (kernels.card.chip, kernels.card.stack) == ("h200-sxm", "torch")
    assert kernels.profile.stack.gemm_flop_efficiency == pytest.approx(0.79, rel=0.05)
    assert kernels.card.provenance["driver"] == "580.0"
    assert 0.0 < kernels.card.scatter["latency"] < 0.06
    covariance = kernels.card.covariance
    assert np.linalg.eigvalsh(covariance).min() > -1e-6


def test_the_report_lies_beside_the_files(h200):
    folder, report = h200
    kept = json.loads((folder / "report.json").read_text())
    assert kept == report
    assert sorted(path.name for path in folder.iterdir()) == [
        "h200-sxm.toml",
        "h200-sxm.torch.toml",
        "report.json",
    ]


@pytest.fixture
def processor(tmp_path):
    """Times of a processor without an energy counter, with its facts beside them."""
    tables = tomllib.loads((DATA / "chips" / "h200-sxm.toml").read_text())
    name = "cpu-some-processor-2-threads"
    tables["identity"] |= {"id": name, "vendor": "processor", "aliases": []}
    (tmp_path / "run.chip.toml").write_text(toml_text(tables))
    rows = machine_runs.measured(
        machine_runs.cases(13), machine_runs.truth(), energy=False
    )
    rows = [{**row, "gpu": name} for row in rows]
    return machine_runs.write(tmp_path / "run.parquet", rows)


def test_a_processor_without_energy_keeps_its_priors_and_gets_no_prediction(processor):
    out = processor.parent / "mine"
    report = command("calibrate", str(processor), "--out", str(out), "--no-kernels")
    assert any(note.startswith("time only") for note in report["notes"])
    assert report["families"]["gemm"]["energy"]["held_out"] is None
    measured = {c["name"] for c in report["coefficients"] if c["measured"]}
    assert not any(name.endswith(("_watts", "_per_flop")) for name in measured)
    chip = out / "cpu-some-processor-2-threads.toml"
    assert "time only" in chip.read_text().splitlines()[1]
    assert load_chip(chip).idle_watts == load_chip("h200-sxm").idle_watts
    with pytest.raises(ValueError, match="expected a chip whose power is known"):
        prepare("Qwen/Qwen3-8B", str(chip))


def test_the_profile_that_is_written_says_what_the_fit_says(processor):
    out = processor.parent / "mine"
    report = command("calibrate", str(processor), "--out", str(out), "--no-kernels")
    found = command("validate", str(processor), "--profile", str(out), "--by", "kind")
    judged = found["by"]["kind"]
    assert judged.keys() >= {"gemm", "attention_prefill", "attention_decode", "moe"}
    for family, said in judged.items():
        errors = report["families"][family]["time"]
        assert said["time"]["mape"] == pytest.approx(errors["in_sample"], abs=0.005)


def test_a_measured_processor_is_known_within_stated_errors(tmp_path):
    table = Path(calibration.__file__).parent / "data" / "amd-epyc-1-thread.parquet"
    out = tmp_path / "mine"
    report = command("calibrate", str(table), "--out", str(out), "--no-kernels")
    errors = {k: f["time"]["held_out"] for k, f in report["families"].items()}
    assert errors["attention_prefill"] < 0.15
    assert errors["gemm"] < 0.2
    assert errors["attention_decode"] < 0.25
    prefill = [s for s in report["steps"] if s["phase"] == "prefill"]
    assert len(prefill) == 2
    assert all(abs(step["seconds_error"]) < 0.15 for step in prefill)


def test_a_chip_that_nobody_knows_needs_its_facts(tmp_path):
    row = {**machine_runs.PROVENANCE, "gpu": "Some GPU", "case": "a", "kind": "copy"}
    run = machine_runs.write(tmp_path / "run.parquet", [{**row, "seconds": 1e-3}])
    with pytest.raises(ValueError, match=r"run\.chip\.toml beside the run"):
        facts_of(read_run([run]))
    assert facts_of(read_run([run]), "h200-sxm") == "h200-sxm"
    (tmp_path / "run.chip.toml").write_text("")
    assert facts_of(read_run([run])).endswith("run.chip.toml")


def test_runs_are_told_by_their_columns(tmp_path):
    row = {**machine_runs.PROVENANCE, "case": "a", "kind": "copy", "seconds": 1e-3}
    run = machine_runs.write(tmp_path / "run.parquet", [row])
    other = machine_runs.write(tmp_path / "other.parquet", [{"m": 1.0, "n": 2.0}])
    (tmp_path / "run.csv").write_text("case,kind,status,gpu\na,copy,ok,h200-sxm\n")
    assert is_run(run) and is_run(tmp_path / "run.csv")
    assert not is_run(other) and not is_run(tmp_path / "nowhere.parquet")
    assert main(["calibrate", str(run), str(other), "--out", str(tmp_path / "x")]) == 2
    assert main(["calibrate", str(run), "--out", str(tmp_path / "x.toml")]) == 2
    broken = machine_runs.write(tmp_path / "b.parquet", [{**row, "status": "failed"}])
    with pytest.raises(ValueError, match="expected rows with status ok"):
        read_run([broken])
    twin = machine_runs.write(tmp_path / "c.parquet", [{**row, "gpu": "b200-sxm"}])
    with pytest.raises(ValueError, match="expected runs on one chip"):
        read_run([run, twin])


def test_conditions_of_a_row_are_not_its_operation():
    assert operation({"kind": "clock_attention_decode"}) == "attention_decode"
    assert operation({"kind": "clocks_idle"}) == "clocks_idle"
    assert operation({"kind": "sm_share", "operation_kind": "gemm"}) == "gemm"
    beside = {"kind": "sm_share", "joules": 1.0, "limited_seconds": 2.0}
    assert (runs.seconds(beside), runs.joules(beside)) == (2.0, 1.0)
    assert np.isnan(runs.joules({**beside, "sm_limit": "occupier"}))


def test_rows_without_words_for_them_are_set_aside():
    row = {"case": "a", "kind": "gemm", "m": 1, "n": 2, "k": 3, "seconds": 1.0}
    found = asked(
        [
            {**row, "dtype": "bfloat16"},
            {**row, "dtype": "int2"},
            {**row, "kind": "dance"},
            {"case": "b", "kind": "gemm", "m": 1, "dtype": "bfloat16", "seconds": 1.0},
            {"case": "c", "kind": "copy", "bytes": 1.0},
            {"case": "d", "kind": "overlap", "seconds": 1.0},
        ]
    )
    assert len(found.rows) == 1
    assert len(found.reasons) == 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"m": 0.0}, "m: expected a finite number above 0, got 0"),
        ({"k": float("nan")}, "k: expected a finite number above 0, got nan"),
        ({"n": -8.0}, "n: expected a finite number above 0, got -8"),
        ({"k": None}, "k: expected a finite number above 0"),
        ({"seconds": float("inf")}, "no time and no power"),
    ],
)
def test_impossible_rows_are_set_aside_with_their_reason(change, reason):
    row = {"case": "a", "kind": "gemm", "m": 8.0, "n": 64.0, "k": 32.0}
    row |= {"dtype": "bfloat16", "seconds": 1e-5}
    assert not asked([row]).reasons
    changed = {k: v for k, v in {**row, **change}.items() if v is not None}
    found = asked([changed])
    assert not found.rows
    assert reason in found.reasons[0]


def test_folds_keep_repeats_of_a_case_together():
    cases = ["a", "b", "c", "a", "d", "e", "f", "judged"]
    weights = np.ones((8, 2))
    weights[7] = 0.0
    masks = folds(cases, weights)
    assert np.sum(masks, axis=0).tolist() == [1] * 7 + [0]
    assert all(mask[0] == mask[3] for mask in masks)


def test_an_expert_layer_asks_for_what_its_parts_do():
    # 8 tokens, each to 2 of 4 experts: 16 rows, 4 of them to each expert.
    sizes = {"tokens": 8, "width": 16, "expert_width": 32, "top_k": 2, "experts": 4}
    parts = works("moe", {**sizes, "dtype": "bfloat16"})
    assert sum(part.flop for part in parts.values()) == 6.0 * 16 * 16 * 32
    up = parts["experts up"]
    assert (up.rows, up.columns, up.depth) == (4.0, 64.0, 16.0)
    assert up.hbm_bytes == 2.0 * (4 * 64 * 16 + 16 * (64 + 16))
    with pytest.raises(ValueError, match="expected one of gemm"):
        works("dance", {})
    with pytest.raises(ValueError, match="expected one of bfloat16"):
        works("gemm", {"m": 1, "n": 1, "k": 1, "dtype": "int2"})


def test_attention_counts_what_a_causal_mask_leaves():
    sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "dtype": "bfloat16"}
    prefill = works(
        "attention_prefill", {**sizes, "prompt_tokens": 3, "cached_tokens": 5}
    )["attention"]
    # Queries see 6, 7 and 8 tokens: 21 scores of 8 numbers, twice, for 8 heads.
    assert prefill.flop == 4.0 * 8 * 21 * 8
    assert prefill.kv_bytes == 2.0 * 2 * 2 * 2 * 8 * 8
    decode = works("attention_decode", {**sizes, "context_tokens": 10})["attention"]
    assert decode.flop == 4.0 * 8 * 10 * 8
    assert (
        message({"operation": "alltoall", "bytes": 8, "gpus": 4}).kind == "all-to-all"
    )


def test_prices_of_attention_have_a_start_of_their_own():
    profile = load_profile("h200-sxm", "torch")
    work = works(
        "attention_decode",
        {
            "batch": 1,
            "heads": 8,
            "kv_heads": 8,
            "head_dim": 128,
            "context_tokens": 512,
        },
    )["attention"]

    def seconds(extra):
        stack = replace(profile.stack, attention_seconds=extra)
        at = Machine(chip=profile.chip, stack=stack, clock_share=1.0, sm_share=1.0)
        return float(kernel(work, at).seconds)

    assert seconds(5e-6) - seconds(0.0) == pytest.approx(5e-6)


def test_rows_of_a_run_are_op_tables_too(tmp_path):
    rows = machine_runs.measured(machine_runs.cases(40), machine_runs.truth())
    gemms = [row for row in rows if row["kind"] == "gemm"]
    table = kernel_tables.kernel_table("gemm", gemms, "run.parquet", "abc")
    assert len(table) == len(gemms)
    assert table.provenance["sha256"] == "abc"
    assert set(table["stack"]) == {"torch-2.13.0"}


def test_a_formula_that_fails_takes_nothing_from_the_rest(tmp_path, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("no formula today")

    monkeypatch.setattr(kernel_tables, "fit_kernels", failing)
    rows = machine_runs.measured(machine_runs.cases(30), machine_runs.truth())
    run = read_run([machine_runs.write(tmp_path / "run.parquet", rows)])
    found, notes = kernel_tables.fit_run_kernels(run, "h200-sxm", tmp_path / "kernels")
    assert found is None
    assert "kernels: gemm: no formula: no formula today" in notes
    assert any("too few" in note for note in notes)
    assert not (tmp_path / "kernels").exists()


@pytest.mark.data
def test_few_kernels_of_an_h200_say_how_fast_the_others_are(data_folder, tmp_path):
    """Some 60 of the H200's kernels, of one source each, predict hundreds of others.

    Power in these tables differs by a third between neighbouring sizes, so only times are
    judged.
    """
    fitted = {"gemm": 28, "attention_prefill": 14, "attention_decode": 14, "moe": 8}
    every = {kind: count + 60 for kind, count in fitted.items()}
    seen = dict.fromkeys(fitted, 0)
    few, others = [], []
    for row in machine_runs.from_tables(data_folder, every):
        seen[row["kind"]] += 1
        (few if seen[row["kind"]] <= fitted[row["kind"]] else others).append(row)
    run = read_run([machine_runs.write(tmp_path / "few.parquet", few)])
    found = fit_machine(problem(run, "h200-sxm", others))
    task = found.problem
    judged = task.weights.sum(axis=1) == 0.0
    errors = np.abs(found.predicted[:, 0] / task.measured[:, 0] - 1.0)
    bars = {"gemm": 0.09, "attention_decode": 0.1, "attention_prefill": 0.16}
    for family, bar in {**bars, "moe": 0.15}.items():
        assert errors[judged & (task.families == family)].mean() < bar, family


def test_a_step_is_what_torch_makes_of_it():
    row = {**machine_runs.steps()[1], "seconds": 1.0}
    items = {item.name: item for item in asked([row]).items[0]}
    activation = items["feed-forward: activation"].asks
    # 64 tokens of 3072 in bf16: a gate and a product, each reads and writes once.
    assert activation.repeat == "passes"
    assert activation.hbm_bytes == pytest.approx(2.0 * 2.0 * 64 * 3072)
    written = items["attention: query key value kept"]
    assert written.layers == 2.0 * items["attention: query key value"].layers
    assert written.asks.hbm_bytes == items["attention: query key value"].asks.kv_bytes
    assert load_profile("h200-sxm", "torch").stack.sampling_seconds_per_logit == 0.0
