import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
import synthetic_runs

from jaxlens import cli
from jaxlens.calibration.calibrate import NOTE, calibrate
from jaxlens.calibration.calibrating import FOLDS, POLISH
from jaxlens.calibration.checkpoints import Checkpoint, beside, fingerprint
from jaxlens.calibration.fits import Options, Polish

COMMAND = "import sys; from jaxlens import cli; sys.exit(cli.main(sys.argv[1:]))"
OPTIONS = Options(starts=1, steps=3, polish=12)


class Killed(Exception):
    """Stands for whatever ends a fit in the middle."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rows = synthetic_runs.measured(folder, {"chip.hbm_j_per_byte": 1.3})
    return synthetic_runs.write(folder / "runs.csv", rows)


@pytest.fixture(scope="module")
def undisturbed(runs):
    return calibrate([runs], options=OPTIONS)


def state(value=1.0):
    return Polish(
        scores=jnp.asarray([value, 0.1]),
        loss=jnp.asarray(value),
        damping=jnp.asarray(1e-3),
        decrease=jnp.asarray(1.0),
        count=jnp.asarray(3),
    )


def stopper(stage, done, seen):
    """Notes what it is told, and ends the fit once `done` of `stage` are done."""

    def progress(*told):
        seen.append(told)
        if told[0] == stage and told[1] >= done:
            raise Killed

    return progress


def assert_same(found, expected):
    for name, value in vars(expected.fit).items():
        np.testing.assert_array_equal(getattr(found.fit, name), value, err_msg=name)
    np.testing.assert_array_equal(
        found.validation.residuals, expected.validation.residuals
    )
    assert found.report == expected.report
    assert found.profiles == expected.profiles


@pytest.mark.parametrize(("stage", "done"), [(POLISH, 0), (POLISH, 5), (FOLDS, 0)])
def test_an_interrupted_fit_ends_with_the_same_result(
    runs, undisturbed, tmp_path, stage, done
):
    path, before, after = tmp_path / "checkpoint.npz", [], []
    with pytest.raises(Killed):
        calibrate(
            [runs],
            options=OPTIONS,
            checkpoint=path,
            progress=stopper(stage, done, before),
        )
    assert path.exists()
    found = calibrate(
        [runs], options=OPTIONS, checkpoint=path, progress=lambda *t: after.append(t)
    )
    assert_same(found, undisturbed)
    assert after[0] == (NOTE, 0, 0, f"continuing from {path}")
    assert not list(tmp_path.iterdir())
    # Nothing was done twice: the restart began where the fit was.
    first = next(t[1] for t in after if t[0] == stage)
    assert first >= max(t[1] for t in before if t[0] == stage)


def test_every_fold_is_fitted_once_and_padding_changes_nothing(
    undisturbed, monkeypatch
):
    from jaxlens.calibration import calibrating

    folds = calibrating.random_folds(len(undisturbed.task.labels["gpu"]), 3)
    told, checkpoint = [], Checkpoint()
    arguments = undisturbed.task, folds, OPTIONS, undisturbed.fit.scores
    expected = calibrating.cross_validate(*arguments)
    monkeypatch.setattr(calibrating, "FOLDS_AT_ONCE", 2)
    found = calibrating.cross_validate(
        *arguments, checkpoint=checkpoint, progress=lambda *t: told.append(t)
    )
    assert told == [(FOLDS, done, 3, "") for done in (0, 2, 3)]
    np.testing.assert_array_equal(found.residuals, expected.residuals)
    told.clear()
    again = calibrating.cross_validate(
        *arguments, checkpoint=checkpoint, progress=lambda *t: told.append(t)
    )
    assert told == [(FOLDS, 3, 3, "")]
    np.testing.assert_array_equal(again.residuals, expected.residuals)


def test_a_checkpoint_of_another_fit_is_not_used(runs, undisturbed, tmp_path):
    path, told = tmp_path / "checkpoint.npz", []
    Checkpoint(path, "another").keep(polish=state())
    found = calibrate(
        [runs], options=OPTIONS, checkpoint=path, progress=lambda *t: told.append(t)
    )
    assert told[0] == (NOTE, 0, 0, f"{path} is of another fit; starting afresh")
    assert_same(found, undisturbed)


def test_states_come_back_exactly(tmp_path):
    path = tmp_path / "new" / "checkpoint.npz"
    Checkpoint(path, "mine").keep(polish=state(1.0 / 3.0))
    found = Checkpoint(path, "mine").kept("polish", Polish)
    assert found is not None
    assert found.scores.tolist() == [1.0 / 3.0, 0.1]
    assert int(found.count) == 3
    assert Checkpoint(path, "mine").kept("other", Polish) is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint"])
def test_a_damaged_file_is_replaced(tmp_path, content):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(content)
    opened = Checkpoint(path, "mine")
    assert "cannot be read" in opened.note
    assert opened.kept("polish", Polish) is None
    opened.keep(polish=state())
    assert Checkpoint(path, "mine").kept("polish", Polish) is not None


def test_a_failed_write_leaves_the_earlier_state(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    checkpoint = Checkpoint(path, "mine")
    checkpoint.keep(polish=state(1.0))

    def full(*arguments, **states):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.keep(polish=state(2.0))
    found = Checkpoint(path, "mine").kept("polish", Polish)
    assert found is not None
    assert float(found.loss) == 1.0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_fingerprint_covers_numbers_and_settings():
    numbers = {"a": np.arange(3.0)}
    same = fingerprint(numbers, OPTIONS)
    assert fingerprint({"a": np.arange(3.0)}, OPTIONS) == same
    assert fingerprint({"a": np.arange(3.0) + 1e-15}, OPTIONS) != same
    assert fingerprint(numbers, Options(seed=1)) != same


def test_a_killed_command_goes_on(runs, tmp_path, capsys):
    out, plain = tmp_path / "mine.toml", tmp_path / "plain.toml"
    asked = ["calibrate", str(runs), "--starts", "1", "--steps", "30", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *asked, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not beside(out).exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert cli.main([*asked, "--out", str(plain)]) == 0
    expected = capsys.readouterr()
    assert cli.main([*asked, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert f"continuing from {beside(out)}" in said.err
    assert expected.err == ""
    assert said.out == expected.out.replace(str(plain), str(out))
    assert out.read_bytes() == plain.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {out.name, plain.name}
