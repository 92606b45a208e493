import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxlens.smooth import at_least, presence, smooth_max, smooth_min

sizes = st.floats(1e-9, 1e9)


def test_smooth_max_by_hand():
    # (3 + 4 + sqrt((3 - 4)^2 + 4 * 0.25 * 3 * 4)) / 2 = (7 + sqrt(13)) / 2
    assert float(smooth_max(3.0, 4.0, 0.25)) == pytest.approx((7.0 + 13**0.5) / 2.0)


@pytest.mark.parametrize(("softness", "expected"), [(0.0, 4.0), (1.0, 7.0)])
def test_softness_goes_from_the_hard_maximum_to_the_sum(softness, expected):
    assert float(smooth_max(3.0, 4.0, softness)) == pytest.approx(expected)


@given(sizes, sizes, st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=50)
def test_errors_stay_within_their_stated_bounds(a, b, softness):
    factor = 1.0 + softness**0.5
    largest = float(smooth_max(a, b, softness))
    smallest = float(smooth_min(a, b, softness))
    assert max(a, b) * (1 - 1e-9) <= largest <= max(a, b) * factor * (1 + 1e-9)
    assert min(a, b) / factor * (1 - 1e-9) <= smallest <= min(a, b) * (1 + 1e-9)


def test_the_bound_is_reached_at_the_tie():
    assert float(smooth_max(5.0, 5.0, 0.04)) == pytest.approx(5.0 * 1.2)
    assert float(smooth_min(5.0, 5.0, 0.04)) == pytest.approx(5.0 / 1.2)


def test_scaling_both_scales_the_maximum_in_float32():
    for scale in (1e-12, 1e12):
        arguments = [jnp.float32(value * scale) for value in (3.0, 4.0)]
        value = smooth_max(*arguments, jnp.float32(0.05)) / jnp.float32(scale)
        assert float(value) == pytest.approx(float(smooth_max(3.0, 4.0, 0.05)), 1e-5)


@pytest.mark.parametrize("b", [1.0, 2.0, 3.0])  # left of the tie, at it and right of it
@pytest.mark.parametrize("function", [smooth_max, smooth_min])
def test_gradients_agree_with_finite_differences(function, b):
    check_grads(function, (2.0, b, 0.05), order=1, modes=("rev",), rtol=1e-5)


def test_gradients_are_finite_where_one_or_both_are_zero():
    for a, b in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
        gradient = jax.grad(smooth_max, (0, 1, 2))(a, b, 0.0)
        assert np.all(np.isfinite(gradient))


def test_rounding_up_is_right_for_none_and_for_many():
    assert float(at_least(0.0, 16.0)) == 16.0
    assert float(at_least(1e6, 16.0)) == pytest.approx(1e6)
    # One tile exactly: sqrt(2) tiles, the largest overshoot.
    assert float(at_least(16.0, 16.0)) == pytest.approx(16.0 * 2**0.5)


def test_presence_is_exact_at_whole_ranks_and_has_a_continuous_slope():
    assert [float(presence(n)) for n in (1.0, 2.0, 3.0, 64.0)] == [0.0, 1.0, 1.0, 1.0]
    slope = jax.grad(presence)
    assert float(slope(2.0 - 1e-9)) == pytest.approx(0.0, abs=1e-6)
    assert float(slope(2.0)) == float(slope(3.0)) == 0.0
