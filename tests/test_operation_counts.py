import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.operation_counts import bare_kernel, operations

SIZE = 64
ARRAY = np.full(SIZE, 0.5, np.float32)


def counts(function, *arguments):
    return operations(jax.jit(function).lower(*arguments), SIZE)


def test_every_operation_of_a_configuration_counts_once():
    def function(x, y):
        shared = x * y + 1.0  # two plain operations, in two results
        return shared / y, jnp.exp(shared) + jnp.sqrt(x)

    found = counts(function, ARRAY, 2.0 * ARRAY)
    assert found == {"plain": 3.0, "divide": 1.0, "exponential": 1.0, "sqrt": 1.0}


def test_what_all_configurations_share_counts_next_to_nothing():
    found = counts(lambda x, scale: x * jnp.exp(scale), ARRAY, np.float32(1.0))
    assert found["plain"] == pytest.approx(1.0, abs=0.1)
    assert found["exponential"] == pytest.approx(1.0 / SIZE)


def test_wide_results_count_for_each_element():
    def function(x):
        column = np.arange(8, dtype=np.float32)[:, None]
        return jnp.sum(jnp.log(column + x[None]), axis=0)

    assert counts(function, ARRAY)["log"] == 8.0


def test_a_bare_kernel_does_what_it_is_asked_for():
    asked = {
        "plain": 200.0,
        "divide": 10.0,
        "sqrt": 5.0,
        "log": 3.0,
        "exponential": 4.0,
    }
    found = counts(bare_kernel(asked), ARRAY, ARRAY, ARRAY)
    assert found.pop("plain") == pytest.approx(asked.pop("plain"), rel=0.1)
    assert found == asked
