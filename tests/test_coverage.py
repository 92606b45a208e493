from types import SimpleNamespace

import numpy as np
import pytest

from jaxlens.calibration.calibrating import CrossValidation
from jaxlens.calibration.coverage import MIN_ROWS, NORMAL_80, coverage, scatter


def case(residuals, folds, gpus=None, measured=None):
    residuals = np.asarray(residuals, float)
    rows = len(residuals)
    measured = np.ones((rows, 2)) if measured is None else measured
    task = SimpleNamespace(
        evidence=SimpleNamespace(measured=measured),
        labels={"gpu": np.array(["h100-sxm"] * rows if gpus is None else gpus)},
    )
    both = np.stack([residuals, residuals], axis=1)
    return task, CrossValidation(residuals=both, folds=np.asarray(folds))


def test_a_scatter_makes_the_interval_hold_four_fifths():
    residuals = np.linspace(-1.0, 1.0, 101)
    half = NORMAL_80 * scatter(residuals)
    assert np.mean(np.abs(residuals) <= half) == pytest.approx(0.8, abs=0.02)


def test_too_few_residuals_have_no_scatter():
    assert scatter(np.full(MIN_ROWS - 1, 0.1)) is None


def test_an_architecture_does_not_widen_its_own_interval():
    # Ten rows that are well predicted, ten that are not: neither knows of the other.
    task, validation = case([0.1] * 10 + [-0.5] * 10, ["a"] * 10 + ["b"] * 10)
    found = coverage(task, validation)["h100-sxm"]["energy"]
    assert found["coverage"] == pytest.approx(0.5)  # a is held by b, b not by a
    assert found["rows"] == 20
    widths = [np.exp(h) - np.exp(-h) for h in (0.5, 0.1)]
    assert found["median_width"] == pytest.approx(np.mean(widths))


def test_equal_architectures_are_covered_as_promised():
    residuals = np.random.default_rng(0).normal(scale=0.1, size=4000)
    task, validation = case(residuals, np.arange(4000) % 8)
    found = coverage(task, validation)["h100-sxm"]["latency"]
    assert found["coverage"] == pytest.approx(0.8, abs=0.02)
    width = 2.0 * np.sinh(0.1 * NORMAL_80)
    assert found["median_width"] == pytest.approx(width, rel=0.05)


def test_chips_are_judged_by_themselves_and_left_out_where_rows_are_few():
    gpus = ["h100-sxm"] * 20 + ["b200-sxm"] * 4
    task, validation = case([0.1] * 20 + [2.0] * 4, ["a", "b"] * 12, gpus)
    assert set(coverage(task, validation)) == {"h100-sxm"}


def test_what_was_not_measured_does_not_count():
    measured = np.ones((20, 2))
    measured[:, 0] = np.nan
    measured[:2, 1] = np.nan
    task, validation = case([0.1] * 20, ["a", "b"] * 10, measured=measured)
    found = coverage(task, validation)["h100-sxm"]
    assert set(found) == {"latency"}
    assert found["latency"]["rows"] == 18
