from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlens.calibration.contention import fit_contention, judge_contention
from jaxlens.profiles import load_chip

CHIP = load_chip("h200-sxm")
# A product of little traffic beside a copy at 4.3 TB/s.
PAIR = {
    "kind": "overlap",
    "m": 8192,
    "n": 28672,
    "k": 4096,
    "dtype": "bfloat16",
    "copied_bytes": 2**30,
    "seconds_alone": 3e-3,
    "copy_seconds_alone": 2.5e-4,
    "seconds_spread": 0.01,
}
TRAFFIC = 2.0 * (8192 * 4096 + 28672 * 4096 + 8192 * 28672) / 3e-3
SHARED = TRAFFIC / (2**30 / 2.5e-4)  # of the product's time that its HBM traffic takes


def pair(contention, copy_slowdown):
    """Slowdowns that leave a unit of time full: (1 - a')(1 - b) = w a' b."""
    b = 1.0 / copy_slowdown
    whole = (1.0 - b) / (1.0 - b + contention * b)  # max(a, a u + b)
    a = min(whole, (whole - b) / SHARED)
    return {**PAIR, "product_slowdown": 1.0 / a, "copy_slowdown": copy_slowdown}


def rows(contention):
    """Copies slowed at least so much that the product can have its share."""
    least = contention**0.5
    return [pair(contention, 1.0 + least * more) for more in (1.3, 1.6, 2.0, 3.0)]


@settings(max_examples=20, deadline=None)
@given(st.floats(0.03, 0.7))
def test_the_contention_of_pairs_is_found_again(contention):
    value, sd = fit_contention(rows(contention), CHIP)
    assert value == pytest.approx(contention, rel=0.25)
    assert sd < 0.5


def test_without_shared_traffic_it_is_the_product_of_both_slowdowns_above_one():
    # Hardly any bytes: (1.2 - 1)(2.0 - 1) = 0.2
    one = {**PAIR, "seconds_alone": 1.0}
    one |= {"product_slowdown": 1.2, "copy_slowdown": 2.0}
    value, _ = fit_contention([one] * 50, CHIP)
    assert value == pytest.approx(0.2, rel=0.03)


def test_no_rows_leave_the_prior():
    assert fit_contention([], CHIP) == (CHIP.overlap_contention, 1.0)
    assert fit_contention([{"kind": "gemm", "m": 8.0}], CHIP)[1] == 1.0
    with pytest.raises(ValueError, match="--suite overlap"):
        judge_contention([], CHIP)


def test_few_noisy_rows_stay_near_the_prior():
    noisy = [{**pair(0.4, 2.0), "seconds_spread": 1.0}]
    sure = [{**pair(0.4, 2.0), "seconds_spread": 0.0}]
    far, near = fit_contention(sure, CHIP), fit_contention(noisy, CHIP)
    assert CHIP.overlap_contention < near[0] < far[0]
    assert near[1] > far[1]


def test_the_prior_is_that_of_the_chip():
    doubtful = [{**pair(0.2, 2.0), "seconds_spread": 1.0}]
    low = fit_contention(doubtful, replace(CHIP, overlap_contention=0.01))
    high = fit_contention(doubtful, replace(CHIP, overlap_contention=0.5))
    assert low[0] < high[0]


def test_the_fit_is_compared_with_perfect_overlap_and_with_the_prior():
    found = judge_contention(rows(0.3), CHIP)
    assert found.rows == 4
    assert found.low < found.value < found.high <= 1.0
    assert found.fitted_error < found.prior_error < found.hard_error
    assert found.fitted_error < 0.02


def test_pairs_that_take_turns_on_one_core_are_no_overlap_at_all():
    # Measured: one thread of an AMD EPYC for each of both, on two shared cores, 2026.
    sizes = {"m": 256, "n": 512, "k": 512, "dtype": "float32", "copied_bytes": 2**24}
    measured = {
        **sizes,
        "product_slowdown": 1.952,
        "copy_slowdown": 2.270,
        "seconds_alone": 4.554e-3,
        "copy_seconds_alone": 2.107e-3,
        "seconds_spread": 0.125,
    }
    found = judge_contention([measured], CHIP)
    assert found.value > 0.5
    assert found.fitted_error < 0.5 * found.prior_error < found.hard_error
    # Slower than one after the other: the noise is inflated, not the certainty.
    worse = measured | {"product_slowdown": 2.943, "copy_slowdown": 2.548}
    _, sd = fit_contention([worse], CHIP)
    assert np.isfinite(sd) and sd > found.sd
