import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlens.spaces import (
    LARGEST_AXIS,
    at,
    choices,
    coordinates,
    digits,
    grid,
    index,
    integers,
    log_grid,
    point,
    powers_of_two,
    space,
    tabled,
)


def decoded(asked, start, count):
    first = np.array(digits(asked, start), np.float32)
    offsets = np.arange(count, dtype=np.float32)
    found = jax.vmap(lambda offset: coordinates(asked, first, offset))(offsets)
    return {name: np.asarray(values) for name, values in found.items()}


def test_the_last_axis_varies_fastest():
    asked = space(powers_of_two("tp", 1, 4), integers("batch", 10, 30, 10))
    assert asked.size == 9
    points = [point(asked, i) for i in range(9)]
    assert [p["tp"] for p in points] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert [p["batch"] for p in points] == [10, 20, 30] * 3


def test_a_grid_has_both_ends():
    asked = space(grid("clock_share", 0.4, 1.0, 4))
    values = [point(asked, i)["clock_share"] for i in range(4)]
    np.testing.assert_allclose(values, [0.4, 0.6, 0.8, 1.0])


def test_the_device_decodes_what_the_host_does_across_a_carry():
    asked = space(
        choices("a", [3.0, 1.0, 2.0]), integers("b", 0, 6), grid("c", 0.0, 1.0, 11)
    )
    found = decoded(asked, 70, 100)
    for offset in range(100):
        for name, value in point(asked, 70 + offset).items():
            assert found[name][offset] == pytest.approx(value, rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(1, LARGEST_AXIS), min_size=1, max_size=4),
    seed=st.floats(0.0, 1.0),
)
def test_decoding_is_exact_in_spaces_that_cannot_be_built(counts, seed):
    asked = space(*(integers(f"k{i}", 0, n - 1) for i, n in enumerate(counts)))
    start = int(seed * (asked.size - 1))
    last = min(64, asked.size - start)
    found = decoded(asked, start, last)
    for offset in (0, last // 2, last - 1):
        expected = digits(asked, start + offset)
        assert tuple(int(v[offset]) for v in found.values()) == expected


def test_a_space_of_a_billion_of_billions_knows_its_size():
    asked = space(*(integers(f"k{i}", 1, 10**6) for i in range(3)))
    assert asked.size == 10**18
    assert index(asked, digits(asked, 10**18 - 1)) == 10**18 - 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choices("tp", []), "tp: expected finite values"),
        (lambda: choices("tp", [float("nan")]), "tp: expected finite values"),
        (lambda: powers_of_two("tp", 1, 6), "tp: expected two powers of two"),
        (lambda: powers_of_two("tp", 8, 4), "tp: expected two powers of two"),
        (lambda: integers("batch", 4, 1), "batch: expected low <= high"),
        (lambda: integers("batch", 1, 10**8), "take a coarser step"),
        (lambda: grid("clock", 1.0, 0.0, 3), "clock: expected low <= high"),
        (lambda: space(), "expected axes of different names"),
        (lambda: point(space(integers("b", 1, 3)), 3), "index from 0 to 2"),
    ],
)
def test_what_makes_no_space_says_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_log_grid_has_equal_ratios():
    asked = space(log_grid("batch", 1.0, 1000.0, 4))
    values = [point(asked, i)["batch"] for i in range(4)]
    np.testing.assert_allclose(values, [1.0, 10.0, 100.0, 1000.0])
    with pytest.raises(ValueError, match="expected 0 < low < high"):
        log_grid("batch", 0.0, 10.0, 3)


def test_listed_values_and_ranges_have_one_structure():
    listed = tabled(choices("x", [1.0, 5.0, 7.0]))
    ranged = tabled(grid("x", 1.0, 3.0, 1000))
    assert jax.tree.structure(listed) == jax.tree.structure(ranged)
    shapes = [jax.tree.map(np.shape, axis) for axis in (listed, ranged)]
    assert shapes[0] == shapes[1]
    assert point(space(ranged), 999) == pytest.approx({"x": 3.0})
    assert decoded(space(ranged), 500, 1)["x"][0] == pytest.approx(2.001, rel=1e-4)


def test_values_are_exact_on_the_host():
    asked = space(choices("x", [0.1, 412.3]), grid("y", 1.0, 2.0, 3))
    assert point(asked, 4) == {"x": 412.3, "y": 1.5}


def test_one_configuration_is_a_space_of_the_same_structure():
    asked = space(tabled(choices("x", [3.0, 1.0])), tabled(grid("y", 0.0, 1.0, 11)))
    one = at(asked, 14)
    assert one.size == 1
    assert point(one, 0) == pytest.approx(point(asked, 14))
    assert jax.tree.structure(one) == jax.tree.structure(asked)
    assert decoded(one, 0, 1)["y"][0] == pytest.approx(0.3)
