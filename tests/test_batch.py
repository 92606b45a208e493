import jax.numpy as jnp
import numpy as np
import pytest

from jaxlens import elementary
from jaxlens.batch import (
    CHUNK,
    PLAIN_CHUNK,
    columns,
    compilations,
    elementwise,
    evaluate,
)
from jaxlens.spaces import choices, grid, integers, space


def area(scale, values):
    return {"area": scale * values["x"] * values["y"], "y": values["y"]}


def reciprocal(scale, values):
    return {"share": scale * values["x"] / values["x"]}


def other(scale, values):
    return {"root": jnp.sqrt(scale * values["x"])}


def compiled(scale, values):
    root = elementary.sqrt(scale * values["x"])
    return {"root": root, "more": elementary.exp(-root) + values["y"], "scale": scale}


@elementwise
def at_once(scale, values):
    return compiled(scale, values)


def test_results_are_in_the_order_of_the_space():
    found = evaluate(area, 2.0, space(choices("x", [1, 10]), integers("y", 1, 3)))
    np.testing.assert_array_equal(found["area"], [2, 4, 6, 20, 40, 60])
    np.testing.assert_array_equal(found["y"], [1, 2, 3, 1, 2, 3])
    assert found["area"].dtype == np.float32


def test_chunks_join_without_gap_or_rest():
    count = 2 * CHUNK + 17
    seen = []
    asked = space(integers("x", 1, 1), integers("y", 1, count))
    found = evaluate(area, 1.0, asked, seen.append)
    np.testing.assert_array_equal(found["area"], np.arange(1, count + 1))
    assert sum(seen) == count


def test_one_program_serves_other_numbers_and_other_spaces():
    before = compilations(other)
    evaluate(other, 1.0, space(grid("x", 1.0, 2.0, 5)))
    evaluate(other, 3.0, space(grid("x", 1.0, 9.0, 50)))
    evaluate(other, 3.0, space(grid("x", 0.0, 9.0, CHUNK + 1)))
    assert compilations(other) == before + 1


def test_a_nan_names_its_configuration():
    with pytest.raises(ValueError, match=r"NaN for share in 1 of 3.*'x': 0\.0"):
        evaluate(reciprocal, 1.0, space(integers("x", 0, 2)))


def test_a_part_is_the_same_rows_of_the_whole():
    asked = space(integers("x", 1, 7), grid("y", 0.1, 3.0, 2 * CHUNK + 3))
    whole = evaluate(area, 1.5, asked)
    first, count = CHUNK - 5, 3 * CHUNK + 11
    part = columns(area, 1.5, asked, first, count)
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][first : first + count])
    last = columns(area, 1.5, asked, asked.size - 1, 1)
    assert last["area"].tolist() == whole["area"][-1:].tolist()


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, 0), (4, 3), (6, 1)])
def test_a_range_outside_of_the_space_is_refused(first, count):
    with pytest.raises(ValueError, match="within the 6 configurations"):
        columns(
            area, 1.0, space(integers("x", 1, 2), integers("y", 1, 3)), first, count
        )


def test_a_nan_in_a_part_is_named_by_its_index_in_the_space():
    asked = space(integers("x", -3, 2))
    with pytest.raises(ValueError, match=r"in 1 of 4.*index 3, \{'x': 0\.0\}"):
        columns(reciprocal, 1.0, asked, 1, 4)


def test_small_spaces_of_elementwise_functions_need_no_program():
    asked = space(grid("x", 0.0, 9.0, PLAIN_CHUNK - 1), integers("y", 1, 3))
    found, expected = (evaluate(one, 2.0, asked) for one in (at_once, compiled))
    assert compilations(at_once) == 0
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
    part = columns(at_once, 2.0, asked, PLAIN_CHUNK + 5, 20)
    whole = found["more"][PLAIN_CHUNK + 5 : PLAIN_CHUNK + 25]
    np.testing.assert_array_equal(part["more"], whole)
