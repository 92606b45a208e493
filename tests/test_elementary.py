import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlens import elementary

VALUES = np.array([0.25, 1.0, 3.5])


@pytest.mark.parametrize(
    "name", ["exp", "expm1", "log", "log1p", "log2", "sqrt", "floor", "nearest"]
)
def test_numpy_and_jax_agree(name):
    function = getattr(elementary, name)
    found = function(VALUES)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, jax.jit(function)(VALUES), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_keep_their_type_beside_plain_floats(dtype):
    number = dtype(0.3)
    for found in (
        elementary.maximum(number, 0.5),
        elementary.clip(number, 0.0, 0.25),
        elementary.where(number > 0.0, number, 1.0),
        elementary.constant(2.0, number),
        *elementary.lifted(number, 2.0, 3),
    ):
        assert found.dtype == dtype


def test_plain_floats_alone_are_for_jax():
    assert isinstance(elementary.minimum(1.0, 2.0), jax.Array)
    assert not elementary.on_numpy(1.0, jnp.ones(2))
    assert not elementary.on_numpy(np.ones(2), jnp.ones(2))
    assert elementary.on_numpy(np.float64(1.0), 2.0)


def test_an_entry_has_the_type_that_is_asked_for():
    table = np.array([1.0, 2.0, 3.0], np.float32)
    found = elementary.entry(table, elementary.position(np.array([2.0, 0.0])))
    np.testing.assert_array_equal(found, [3.0, 1.0])
    traced = elementary.entry(table, jnp.array(1), jnp.array(0.0))
    assert (float(traced), traced.dtype) == (2.0, np.float64)


def test_a_derivative_of_its_own_is_used_where_jax_differentiates():
    @elementary.CustomJvp
    def squared(x):
        return x * x

    @squared.defjvp
    def _(primals, tangents):
        return squared(*primals), 7.0 * tangents[0]

    assert jax.grad(squared)(3.0) == 7.0
    found = squared(np.float64(3.0))
    assert isinstance(found, np.float64)
    assert found == 9.0


def test_stopped_numbers_are_the_same_and_have_no_derivative():
    tree = {"x": np.float64(2.0), "y": VALUES}
    assert elementary.stop_gradient(tree) is tree
    assert jax.grad(lambda x: x * elementary.stop_gradient(x))(3.0) == 3.0
