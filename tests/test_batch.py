import jax.numpy as jnp
import numpy as np
import pytest

from jaxlens.batch import CHUNK, compilations, evaluate
from jaxlens.spaces import choices, grid, integers, space


def area(scale, values):
    return {"area": scale * values["x"] * values["y"], "y": values["y"]}


def reciprocal(scale, values):
    return {"share": scale * values["x"] / values["x"]}


def other(scale, values):
    return {"root": jnp.sqrt(scale * values["x"])}


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
