"""Scores against numbers computed by hand."""

import json
import math

import numpy as np
import pytest

from jaxlens.calibration.scores import (
    bias,
    bootstrap,
    grouped,
    mape,
    median_ape,
    ranks,
    spearman,
    summary,
    top1_regret,
)


def test_errors_by_hand():
    # Errors are +10 %, -20 %, +40 %.
    predicted, measured = [1.1, 1.6, 14.0], [1.0, 2.0, 10.0]
    assert mape(predicted, measured) == pytest.approx(0.7 / 3.0)
    assert median_ape(predicted, measured) == pytest.approx(0.2)
    assert bias(predicted, measured) == pytest.approx(0.1)


def test_pairs_that_are_unknown_do_not_count():
    assert mape([1.1, math.nan, 5.0], [1.0, 2.0, math.nan]) == pytest.approx(0.1)
    assert math.isnan(mape([math.nan], [1.0]))


def test_ties_share_the_mean_of_their_ranks():
    assert ranks([10.0, 30.0, 10.0, 20.0]).tolist() == [1.5, 4.0, 1.5, 3.0]


def test_spearman_by_hand():
    assert spearman([1.0, 2.0, 4.0], [10.0, 20.0, 21.0]) == pytest.approx(1.0)
    assert spearman([3.0, 2.0, 1.0], [1.0, 2.0, 9.0]) == pytest.approx(-1.0)
    # Ranks 1 2 3 4 and 1 2.5 2.5 4: covariance 4.5, variances 5 and 4.5.
    expected = 4.5 / math.sqrt(5.0 * 4.5)
    assert spearman([1, 2, 3, 4], [1.0, 2.0, 2.0, 3.0]) == pytest.approx(expected)
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0]))


def test_regret_of_a_wrong_choice():
    predicted, measured = [1.0, 2.0, 3.0], [6.0, 5.0, 4.0]
    assert top1_regret(predicted, measured) == pytest.approx(0.5)
    assert top1_regret(predicted, measured, [False, True, True]) == pytest.approx(0.25)
    assert top1_regret(measured, measured) == 0.0


def test_regret_where_the_limit_is_misjudged():
    predicted, measured = [1.0, 2.0], [1.0, 2.0]
    allowed = [False, True]
    assert top1_regret(predicted, measured, allowed, [True, True]) == math.inf
    assert top1_regret(predicted, measured, allowed, [False, False]) == math.inf
    assert math.isnan(top1_regret(predicted, measured, [False, False]))


def test_groups_are_ready_for_json():
    by = grouped([1.1, 2.0, 3.0], [1.0, 2.0, 2.0], [8.0, "b", 8.0])
    assert list(by) == ["8", "b"] or list(by) == ["8.0", "b"]
    assert by["b"] == {
        "rows": 1,
        "mape": 0.0,
        "median_ape": 0.0,
        "bias": 0.0,
        "spearman": None,
    }
    json.dumps(by, allow_nan=False)


def test_groups_by_number_and_by_several_labels():
    gpus = np.array([1.0, 2.0, 1.0])
    assert list(grouped([1, 1, 1], [1, 1, 1], gpus)) == ["1", "2"]
    labels = list(zip(["a", "a", "b"], gpus, strict=True))
    assert list(grouped([1, 1, 1], [1, 1, 1], labels)) == ["a | 1", "a | 2", "b | 1"]


def test_summary_without_pairs_is_empty():
    assert summary([], [])["mape"] is None
    assert summary([], [])["rows"] == 0


def test_bootstrap_interval_holds_the_statistic_and_repeats_by_seed():
    measured = np.linspace(1.0, 2.0, 50)
    predicted = measured * (1.0 + 0.1 * np.sin(np.arange(50.0)))
    low, high = bootstrap(mape, predicted, measured, draws=200)
    assert low < mape(predicted, measured) < high
    assert (low, high) == bootstrap(mape, predicted, measured, draws=200)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="one length"):
        mape([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="above 0"):
        mape([1.0], [0.0])
    with pytest.raises(ValueError, match="label"):
        grouped([1.0], [1.0], ["a", "b"])
