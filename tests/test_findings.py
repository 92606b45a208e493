import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxlens.archives import ABSENT, empty, insert, ordered_bits, shift_of
from jaxlens.batch import QUICK_OPTIONS
from jaxlens.findings import condense, gaps, union
from jaxlens.fronts import pareto_front

EPSILON_SHIFT = 13  # cells of 2^-10
BLOCK = 64

inserted = jax.jit(insert, compiler_options=QUICK_OPTIONS)


def keys_of(values):
    return np.asarray(ordered_bits(jnp.asarray(values, jnp.float32)))


def archived(values, capacity, epsilon_shift=EPSILON_SHIFT):
    """Returns the front of points in rows, block by block on the device."""
    padding = np.full((-len(values) % BLOCK, values.shape[1]), np.nan)
    padded = np.concatenate([values, padding])
    keys = np.where(np.isnan(padded).T, ABSENT, keys_of(padded).T)
    archive, shift = empty(values.shape[1], capacity), jnp.int32(epsilon_shift)
    for begin in range(0, len(padded), BLOCK):
        low = jnp.arange(begin, begin + BLOCK, dtype=jnp.int32)
        block = jnp.asarray(keys[:, begin : begin + BLOCK])
        archive = inserted(archive, shift, block, jnp.int32(0), low)
    there = np.asarray(archive.keys[0]) < ABSENT
    return np.sort(np.asarray(archive.low)[there]), int(archive.level)


def test_bits_are_in_the_order_of_numbers():
    values = np.array([-np.inf, -3e38, -1.0, -1e-30, -0.0, 0.0, 1e-30, 2.0, np.inf])
    bits = keys_of(values)
    assert (np.diff(bits) >= 0).all()
    assert bits[4] == bits[5]
    assert np.unique(bits).size == values.size - 1
    assert bits.max() < ABSENT


@settings(deadline=None, max_examples=25)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 300), st.sampled_from([2, 3, 4])),
        elements=st.integers(-4, 5).map(float),
    )
)
def test_a_front_that_fits_is_exact_and_takes_the_first_of_equals(points):
    found, level = archived(points, capacity=320)
    assert level == 0
    assert found.tolist() == sorted(pareto_front(points).tolist())


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_a_front_that_does_not_fit_is_that_of_cells(objectives):
    generator = np.random.default_rng(objectives)
    directions = generator.dirichlet(np.ones(objectives), 3000)
    points = np.exp(2.0 * directions**0.7 + 0.02 * generator.random((3000, 1)))
    points[100:130] = points[:30]  # some come again
    points[:, 0] -= 100.0 if objectives == 3 else 0.0  # negative, and coarser
    points = points.astype(np.float32)
    keys = keys_of(points).T
    everything = np.arange(len(points))
    for order in (everything, everything[::-1], generator.permutation(len(points))):
        found, level = archived(points[order], capacity=100)
        expected = condense(keys, np.argsort(order), level, 10**6, EPSILON_SHIFT)
        assert level > 0
        assert 10 < found.size <= 100
        assert found.tolist() == np.sort(expected.index).tolist()
    exact = set(pareto_front(points).tolist())
    assert set(everything[order][found].tolist()) <= exact | set(range(100, 130))


def test_every_point_is_within_epsilon_of_one_that_is_kept():
    generator = np.random.default_rng(0)
    points = np.exp(generator.normal(size=(3000, 2)))
    points[:, 1] = 1.0 / points[:, 0] + 0.01 * points[:, 1]
    points = points.astype(np.float32)
    found, level = archived(points, capacity=64)
    epsilon = 2.0 ** (int(shift_of(level, EPSILON_SHIFT)) - 23)
    kept = points[found]
    worst = (kept[:, None] / points[None]).max(axis=2).min(axis=0)
    assert level > 0
    assert worst.max() <= 1.0 + epsilon


def test_condensing_twice_is_condensing_once():
    generator = np.random.default_rng(1)
    values = np.exp(generator.dirichlet(np.ones(3), 2000)).astype(np.float32)
    keys, index = keys_of(values).T, np.arange(2000)
    once = condense(keys, index, 6, 10**6, EPSILON_SHIFT)
    for level in (0, 1, 3, 5):
        finer = condense(keys, index, level, 10**6, EPSILON_SHIFT)
        twice = condense(finer.keys, finer.index, 6, 10**6, EPSILON_SHIFT)
        assert sorted(twice.index) == sorted(once.index)


def test_ranges_join_and_leave_gaps():
    assert union([(5, 5), (0, 2), (2, 3)]) == ((0, 10),)
    assert gaps((), 3, 4) == ((3, 4),)
    assert gaps(((3, 4),), 3, 4) == ()
    with pytest.raises(ValueError, match="index 4 twice"):
        union([(0, 5), (4, 2)])
