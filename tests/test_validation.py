import json
import math

import numpy as np
import pytest
import synthetic_runs

from jaxlens import cli
from jaxlens.calibration.tables import read_table
from jaxlens.calibration.validation import report, validate

FACTORS = {"chip.hbm_j_per_byte": 1.3}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return synthetic_runs.measured(tmp_path_factory.mktemp("truth"), FACTORS)


@pytest.fixture(scope="module")
def runs(rows, tmp_path_factory):
    """Sixteen runs: the last two not clean, the one before without prompt length."""
    changed = [*rows[:-3], {**rows[-3], "prompt_tokens": ""}]
    changed += [{**row, "clean": "False"} for row in rows[-2:]]
    return synthetic_runs.write(tmp_path_factory.mktemp("runs") / "runs.csv", changed)


@pytest.fixture(scope="module")
def found(runs):
    return validate([runs], by=("model", "gpus"))


def test_report_has_the_promised_keys(found):
    promised = {"rows", "skipped", "energy", "latency", "spearman", "by"}
    assert promised <= set(found)
    assert found["rows"] == 16
    assert found["skipped"] == 0
    for name in ("energy", "latency"):
        assert {"mape", "median_ape", "bias"} <= set(found[name])
        assert found[name]["rows"] == 15
    assert 0.9 < found["spearman"] <= 1.0
    json.dumps(found, allow_nan=False)


def test_groups_add_up(found):
    models = found["by"]["model"]
    assert set(models) == set(synthetic_runs.MODELS)
    total = sum(
        part["energy"]["mape"] * part["rows"] for part in models.values()
    ) / sum(part["rows"] for part in models.values())
    assert total == pytest.approx(found["energy"]["mape"])
    assert set(found["by"]["gpus"]) == {"1"}


def test_rows_that_are_not_clean_are_shown_apart(found):
    assert {k: v["rows"] for k, v in found["by"]["clean"].items()} == {
        "yes": 13,
        "no": 2,
    }


def test_rows_that_cannot_be_predicted_are_noted_with_a_cure(found):
    (note,) = (note for note in found["notes"] if "cannot be predicted" in note)
    assert note.startswith("runs.csv: 1 of 16 rows")
    assert "fill prompt_tokens" in note


def test_noise_floor_stands_beside_the_errors(found):
    assert any("noise floor" in note for note in found["notes"])


def test_unknown_column_is_named_with_those_there_are(runs):
    with pytest.raises(ValueError, match=r"expected --by one of .*model.*'colour'"):
        validate([runs], by=("colour",))


def test_one_row_is_judged_without_a_rank(rows, tmp_path):
    path = synthetic_runs.write(tmp_path / "one.csv", rows[:1])
    found = validate([path], by=("model",))
    assert found["rows"] == 1
    assert found["spearman"] is None
    assert math.isfinite(found["energy"]["mape"])
    json.dumps(found, allow_nan=False)


def test_tables_of_two_kinds_are_refused(runs, tmp_path):
    path = tmp_path / "kernels.csv"
    path.write_text("gpu,m,n,k,dtype,latency_ms\nh100-sxm,1,2,3,bf16,0.1\n", "utf-8")
    with pytest.raises(ValueError, match="tables of one kind"):
        validate([runs, path])


def test_nothing_to_validate_is_an_error():
    with pytest.raises(ValueError, match="at least one table"):
        validate([])


def test_errors_are_those_of_the_predictions(runs):
    table = read_table(runs)
    joules = np.asarray(table["joules_per_output_token"])
    seconds = np.asarray(table["latency_seconds"])
    said = {
        "joules_per_output_token": 1.1 * joules,
        "latency_seconds": 0.8 * seconds,
    }
    found = report([table], [said], ())
    assert found["energy"]["mape"] == pytest.approx(0.1)
    assert found["energy"]["bias"] == pytest.approx(0.1)
    assert found["latency"]["median_ape"] == pytest.approx(0.2)
    assert found["latency"]["bias"] == pytest.approx(-0.2)


def test_targets_that_nobody_predicts_are_left_out(runs):
    table = read_table(runs)
    said = {
        "joules_per_output_token": None,
        "latency_seconds": table["latency_seconds"],
    }
    found = report([table], [said], ())
    assert "energy" not in found
    assert found["latency"]["mape"] == 0.0


def test_command_prints_the_targets_of_the_kind(monkeypatch, capsys):
    errors = {"rows": 3, "mape": 0.12, "median_ape": 0.1, "bias": -0.05}
    found = {"kind": "gemm", "rows": 3, "skipped": 0, "time": errors, "by": {}}
    asked = []

    def validated(tables, **options):
        asked.append(options)
        return found

    monkeypatch.setattr("jaxlens.calibration.validation.validate", validated)
    options = ["--kind", "gemm", "--gpu", "h100-sxm", "--stack", "sglang", "--strict"]
    assert cli.main(["validate", "kernels.csv", *options]) == 0
    out = capsys.readouterr().out
    assert "time mape" in out
    assert "energy" not in out
    assert {
        "kind": "gemm",
        "gpu": "h100-sxm",
        "stack": "sglang",
        "strict": True,
    }.items() <= (asked[0].items())


def test_large_tables_are_announced_on_stderr(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("jaxlens.cli.validate.LARGE_BYTES", 10)
    found = {"kind": "gemm", "rows": 0, "skipped": 0, "by": {}}
    monkeypatch.setattr(
        "jaxlens.calibration.validation.validate", lambda *args, **options: found
    )
    path = tmp_path / "kernels.csv"
    path.write_text("x" * 100, "utf-8")
    assert cli.main(["validate", str(path), "--json"]) == 0
    said = capsys.readouterr()
    assert "kernels.csv" in said.err
    assert json.loads(said.out)["rows"] == 0


# Errors over clean rows by chip, a fifth above those of the shipped profiles.
BOUNDS = {
    "mlenergy_v3": {"h100-sxm": (0.10, 0.09), "b200-sxm": (0.16, 0.21)},
    "mlenergy_v2": {"h100-sxm": (0.09, 0.10), "a100-sxm-40gb": (0.12, 0.08)},
    "memory_gap": {"h100-sxm-64gb": (0.09, 0.09)},
}


@pytest.mark.data
@pytest.mark.parametrize("name", BOUNDS)
def test_shipped_profiles_stay_as_close_to_public_runs_as_they_are(name, data_folder):
    found = validate([data_folder / "serving" / f"{name}.csv"], by=("gpu",))
    for gpu, (energy, latency) in BOUNDS[name].items():
        errors = found["by"]["gpu"][gpu]
        assert errors["energy"]["mape"] < energy, gpu
        assert errors["latency"]["mape"] < latency, gpu
        assert abs(errors["energy"]["bias"]) < energy, gpu
