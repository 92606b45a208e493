import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic_runs

from jaxlens.calibration.calibrating import QUICK_COMPILE, problem
from jaxlens.calibration.fits import Options
from jaxlens.calibration.parameters import row_scores
from jaxlens.calibration.residual_networks import (
    NetworkOptions,
    corrections,
    features,
    initial,
    left_out,
    residuals,
)
from jaxlens.calibration.tables import read_table

NETWORK = NetworkOptions(units=4, steps=8)
REFIT = Options(polish=2, tolerance=1e-2)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    rows = synthetic_runs.measured(folder, {"stack.gemm_byte_efficiency": 0.8})
    return problem([read_table(synthetic_runs.write(folder / "runs.csv", rows))])


@pytest.fixture(scope="module")
def asked(task):
    return features(task.evidence.rows.steps)


def random_weights(size):
    """Weights of a network that has something to say."""
    leaves, structure = jax.tree.flatten(initial(NETWORK))
    random = np.random.default_rng(0)
    return jax.tree.unflatten(
        structure, [jnp.asarray(size * random.normal(size=x.shape)) for x in leaves]
    )


@partial(jax.jit, compiler_options=QUICK_COMPILE)
def both(task_evidence, factors):
    u = row_scores(
        task_evidence.parameters, jnp.zeros(len(task_evidence.parameters.scores))
    )
    return task_evidence.residuals(u), residuals(task_evidence, u, factors)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_corrections_stay_within_their_bound(asked, size):
    factors = corrections(NETWORK, random_weights(size), asked, 0.15)
    assert factors.shape == (*asked.shape[:2], 2)
    assert float(factors.min()) >= np.exp(-0.15) - 1e-12
    assert float(factors.max()) <= np.exp(0.15) + 1e-12
    assert float(factors.std()) > 0.01


def test_features_are_finite_and_of_order_one(asked):
    assert bool(jnp.isfinite(asked).all())
    assert float(jnp.abs(asked).max()) < 10.0


def test_an_untrained_network_is_the_physics(task, asked):
    silent = jax.tree.map(jnp.zeros_like, initial(NETWORK))
    for weights, bound in (
        (initial(NETWORK), 0.15),
        (silent, 0.15),
        (random_weights(1.0), 0.0),
    ):
        factors = corrections(NETWORK, weights, asked, bound)
        np.testing.assert_array_equal(factors, 1.0)
    physics, corrected = both(task.evidence, jnp.ones((*asked.shape[:2], 2)))
    np.testing.assert_allclose(corrected, physics, rtol=0.0, atol=1e-12)


def test_slower_operations_take_longer_but_never_beyond_the_bound(task, asked):
    slow = jnp.full((*asked.shape[:2], 2), np.exp(-0.15))
    physics, corrected = both(task.evidence, slow)
    change = np.asarray(corrected - physics)[:, 1]
    assert np.all(change > 0.0)
    assert np.all(change <= 0.15)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e3])
def test_gradients_are_finite(asked, size):
    weights = random_weights(size)

    def total(weights, asked):
        return jnp.sum(corrections(NETWORK, weights, asked, 0.15))

    for leaf in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(weights, asked)):
        assert bool(jnp.isfinite(leaf).all())


def test_both_arms_learn_and_come_out_the_same_again(task):
    folds = task.labels["architecture"]
    start = jnp.zeros(len(task.evidence.parameters.scores))
    first = left_out(task, folds, start, REFIT, NETWORK)
    again = left_out(task, folds, start, REFIT, NETWORK)
    np.testing.assert_array_equal(first, again)
    physics, corrected = first
    assert np.isfinite(corrected).all()
    assert np.abs(corrected - physics).max() > 0.0


def test_flax_is_imported_only_by_the_network():
    code = (
        "import sys, jaxlens, jaxlens.calibration.calibrating; "
        "sys.exit('flax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
