import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic_runs

from jaxlens import cli
from jaxlens.calibration import fits
from jaxlens.calibration.calibrate import calibrate
from jaxlens.calibration.calibrating import (
    QUICK_COMPILE,
    cross_validate,
    random_folds,
    residuals_at,
)
from jaxlens.calibration.fits import Options
from jaxlens.calibration.results import save
from jaxlens.calibration.validation import validate
from jaxlens.fitted_profiles import read_fitted_profile, save_profile
from jaxlens.profiles import load_profile, load_profile_card

QUICK = Options(starts=1, steps=5, polish=15)
# The machine of the synthetic runs: how far it is from the priors.
FACTORS = {"chip.hbm_j_per_byte": 1.3, "stack.gemm_byte_efficiency": 0.8}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return synthetic_runs.measured(tmp_path_factory.mktemp("truth"), FACTORS)


@pytest.fixture(scope="module")
def runs(rows, tmp_path_factory):
    return synthetic_runs.write(tmp_path_factory.mktemp("runs") / "runs.csv", rows)


@pytest.fixture(scope="module")
def found(runs):
    return calibrate([runs], options=QUICK)


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "profile.toml"
    path.write_text("# an earlier profile\n", "utf-8")
    return path


def fitted(found):
    (profile,) = found.profiles
    layers = {"chip": profile.chip_values, "stack": profile.stack_values}
    return {
        f"{layer}.{name}": value
        for layer, values in layers.items()
        for name, value in values.items()
    }


def test_shifted_coefficients_come_back_within_their_deviation(found):
    assert found.report["converged"]
    priors = load_profile_card(
        synthetic_runs.GPU, synthetic_runs.STACK, shipped=False
    ).coefficients
    for name, factor in FACTORS.items():
        value = fitted(found)[name]
        miss = np.log(value.value / (priors[name].value * factor))
        assert abs(miss) < 2.0 * value.sd, name
        # And they did move from the prior, in the right direction.
        moved = np.log(value.value / priors[name].value)
        assert moved * np.log(factor) > 0.0, name
        assert value.sd < (priors[name].spread or 0.0), name


def test_report_says_how_good_the_fit_is(found, runs):
    report = found.report
    assert report["rows"] == 16
    assert report["skipped"] == 0
    for name in ("energy", "latency"):
        assert report["in_sample"][synthetic_runs.GPU][name]["mape"] < 0.03
        assert report["left_out"][synthetic_runs.GPU][name]["mape"] < 0.2
    shares = report["identifiability"]
    assert 0 < report["scores_moved"] < report["scores"] == len(shares)
    assert all(-1e-9 < share < 1.0 for share in shares.values())
    # Nothing was sent from one GPU to another, so nothing is known about links.
    assert "link_watts of h100-sxm" in {
        name.removeprefix("chip.") for name in report["not_identified"]
    }
    json.dumps(report, allow_nan=False)
    (profile,) = found.profiles
    assert runs.name in profile.fitted_on[0]


def test_saved_profile_is_read_and_moves_predictions(found, runs, tmp_path):
    path = tmp_path / "mine.toml"
    save_profile(path, found.profiles[0])
    assert read_fitted_profile(path).rows == 16
    pair = synthetic_runs.GPU, synthetic_runs.STACK
    card = load_profile_card(*pair, path)
    assert card.fitted
    assert set(card.scatter) == {"energy", "latency"}
    mine = load_profile(*pair, profile=path)
    prior = load_profile(*pair, shipped=False)
    assert float(mine.chip.hbm_j_per_byte) > float(prior.chip.hbm_j_per_byte)
    errors = validate([runs], profile=path)
    assert errors["energy"]["mape"] < 0.03
    assert errors["latency"]["mape"] < 0.03


def test_same_seed_gives_the_same_result(found, runs):
    again = calibrate([runs], options=QUICK)
    np.testing.assert_array_equal(again.fit.scores, found.fit.scores)
    np.testing.assert_array_equal(
        again.validation.residuals, found.validation.residuals
    )


def test_a_jacobian_of_real_rows_equals_finite_differences(found):
    evidence, at = found.task.evidence, found.fit.scores
    known = evidence.parameters
    direction = jnp.asarray(
        np.random.default_rng(1).normal(size=len(known.scores)) / 10.0
    )

    @partial(jax.jit, compiler_options=QUICK_COMPILE)
    def along(evidence, scores):
        jacobian = fits.jacobian(evidence.residuals, known, scores)
        return jacobian @ direction

    step = 1e-5
    ahead = residuals_at(found.task, at + step * direction)
    behind = residuals_at(found.task, at - step * direction)
    numeric = (ahead - behind) / (2.0 * step)
    np.testing.assert_allclose(along(evidence, at), numeric, rtol=1e-4, atol=1e-6)


def test_a_fold_never_sees_its_own_rows(found):
    task, options = found.task, replace(QUICK, polish=8, tolerance=1e-4)
    folds = task.labels["architecture"]
    first = folds == folds[0]
    assert first.any() and not first.all()
    measured = np.array(task.evidence.measured)
    measured[first] *= 3.0
    other = replace(task, evidence=replace(task.evidence, measured=measured))
    start = found.fit.scores
    before = cross_validate(task, folds, options, start).residuals
    after = cross_validate(other, folds, options, start).residuals
    # The rows of the fold are now off by a factor of three more, and by nothing else.
    np.testing.assert_allclose(after[first], before[first] - np.log(3.0), rtol=1e-9)
    # The others, whose fits saw those rows, have moved.
    assert np.abs(after[~first] - before[~first]).max() > 1e-3


def test_random_folds_are_of_equal_size():
    folds = random_folds(43, 10, seed=3)
    assert set(np.bincount(folds)) == {4, 5}
    np.testing.assert_array_equal(folds, random_folds(43, 10, seed=3))


def test_without_energy_latency_alone_is_fitted(rows, tmp_path):
    kept = [
        {name: v for name, v in row.items() if name != "joules_per_output_token"}
        for row in rows
    ]
    path = synthetic_runs.write(tmp_path / "latency.csv", kept)
    said = calibrate([path], options=QUICK)
    errors = said.report["in_sample"][synthetic_runs.GPU]
    assert set(errors) == {"latency"}
    assert errors["latency"]["mape"] < 0.03
    assert set(said.profiles[0].scatter) == {"latency"}
    # Energies keep their priors.
    value = fitted(said)["chip.hbm_j_per_byte"].value
    prior = load_profile(synthetic_runs.GPU, synthetic_runs.STACK, shipped=False)
    assert value == pytest.approx(float(prior.chip.hbm_j_per_byte), rel=0.05)


def test_profiles_of_a_folder_are_named_by_pair(found, tmp_path):
    folder = tmp_path / "profiles"
    paths = save(folder, found.profiles)
    assert [p.name for p in paths] == ["h100-sxm.vllm-0.11.toml"]
    assert [p.name for p in folder.iterdir()] == [p.name for p in paths]
    assert read_fitted_profile(paths[0]).chip == "h100-sxm"


def bad_tables(rows):
    header = ",".join(rows[0])
    kernels = "gpu,m,n,k,dtype,latency_ms\nh100-sxm,1,2,3,bf16,0.1\n"
    return {
        "empty": (header + "\n", "expected at least one row"),
        "one row": (rows[:1], "at least 2 usable rows, got 1"),
        "all equal": ([rows[0]] * 4, "at least 2 usable rows, got 1"),
        "unclean": ([{**r, "clean": "False"} for r in rows], "at least one usable row"),
        "unknown lengths": (
            [{**r, "prompt_tokens": ""} for r in rows],
            "at least one usable row",
        ),
        "unknown chip": ([{**r, "gpu": "nonesuch"} for r in rows], "nonesuch"),
        "kernels": (kernels, "expected --out to be a folder"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "empty",
        "one row",
        "all equal",
        "unclean",
        "unknown lengths",
        "unknown chip",
        "kernels",
    ],
)
def test_bad_tables_leave_the_old_profile_alone(name, rows, tmp_path, old, capsys):
    content, message = bad_tables(rows)[name]
    path = tmp_path / "bad.csv"
    if isinstance(content, str):
        path.write_text(content, "utf-8")
    else:
        synthetic_runs.write(path, content)
    assert cli.main(["calibrate", str(path), "--out", str(old)]) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert message in complaint
    assert "Traceback" not in complaint
    assert old.read_text("utf-8") == "# an earlier profile\n"


@pytest.fixture
def command(runs, monkeypatch):
    """The command on the runs, with a fit in place of its own."""
    return partial(_command, runs, monkeypatch)


def _command(runs, monkeypatch, found, *arguments):
    module = "jaxlens.calibration.calibrate.calibrate"
    monkeypatch.setattr(module, lambda *args, **kwargs: found)
    return cli.main(["calibrate", str(runs), *map(str, arguments)])


def test_command_writes_a_profile_and_says_what_it_knows(found, old, command, capsys):
    assert command(found, "--out", old) == 0
    out = capsys.readouterr().out
    moved, scores = found.report["scores_moved"], found.report["scores"]
    assert f"moved {moved} of {scores} scores" in out
    assert "link_watts" in out
    assert "least identified" in out
    assert read_fitted_profile(old).chip == "h100-sxm"
    assert [p.name for p in old.parent.iterdir()] == [old.name]


def test_a_fit_that_has_not_converged_replaces_nothing(found, old, command, capsys):
    report = {**found.report, "converged": False, "reason": "stopped after 3 steps"}
    stopped = replace(found, report=report)
    assert command(stopped, "--out", old, "--json") == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["written"] == []
    assert "stopped after 3 steps; nothing written" in said.err
    assert old.read_text("utf-8") == "# an earlier profile\n"


def test_several_pairs_need_a_folder(found, old, command, capsys):
    other = replace(found.profiles[0], chip="h200-sxm")
    pair = replace(found, profiles=(*found.profiles, other))
    assert command(pair, "--out", old) == 2
    assert "expected --out to be a folder" in capsys.readouterr().err
    assert old.read_text("utf-8") == "# an earlier profile\n"
    assert command(pair, "--out", old.parent / "all") == 0
    assert len(list((old.parent / "all").iterdir())) == 2
