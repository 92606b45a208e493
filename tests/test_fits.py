from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlens.calibration import fits
from jaxlens.calibration.calibrating import QUICK_COMPILE
from jaxlens.calibration.fits import Options
from jaxlens.calibration.parameters import (
    Freedom,
    coefficients,
    parameters,
    row_scores,
)

QUICK = Options(starts=1, steps=5, polish=15)
FREEDOM = {
    "chip.hbm_j_per_byte": Freedom(chip=1.0),
    "stack.gemm_byte_efficiency": Freedom(stack=1.0, pair=0.5),
}
ROWS = 12
TRUE = jnp.asarray([0.8, -0.5, 0.0])


@pytest.fixture(scope="module")
def known():
    return parameters(["h100-sxm"] * ROWS, ["vllm-0.11"] * ROWS, FREEDOM)


def sizes():
    return jnp.linspace(0.1, 10.0, ROWS)


def logs(known, u):
    """Time of a product that streams bytes after a launch, and its energy."""
    chip, stack = coefficients(known, u)
    seconds = sizes() / stack.gemm_byte_efficiency + 1.0
    joules = 1e12 * chip.hbm_j_per_byte * sizes() + 5.0 * seconds
    return jnp.log(jnp.stack([joules, seconds], axis=1))


def target(known, scores, noise=0.0):
    exact = logs(known, row_scores(known, scores))
    random = np.random.default_rng(0).normal(size=exact.shape)
    return exact + noise * jnp.asarray(random)


@partial(jax.jit, static_argnums=3, compiler_options=QUICK_COMPILE)
def fit(known, measured, weights, options):
    return fits.fit(lambda u: logs(known, u) - measured, known, weights, options)


def weights():
    return jnp.ones((ROWS, 2))


def test_jacobian_equals_finite_differences(known):
    asked = partial(logs, known)
    at = jnp.asarray([0.3, -0.2, 0.1])
    found = fits.jacobian(asked, known, at)
    assert found.shape == (ROWS, 2, 3)
    for position in range(3):
        step = jnp.zeros(3).at[position].set(1e-5)
        ahead = asked(row_scores(known, at + step))
        behind = asked(row_scores(known, at - step))
        numeric = (ahead - behind) / 2e-5
        np.testing.assert_allclose(found[..., position], numeric, rtol=1e-6, atol=1e-9)


def test_fit_recovers_a_shift_within_its_stated_deviation(known):
    found = fit(known, target(known, TRUE, noise=0.06), weights(), QUICK)
    covariance = np.linalg.inv(np.asarray(found.hessian))
    map_u = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]])  # u of the two coefficients
    sd = np.sqrt(np.diag(map_u @ covariance @ map_u.T))
    miss = map_u @ np.asarray(found.scores - TRUE)
    assert np.all(np.abs(miss) < 2.5 * sd)
    # The priors have deviations 1 and sqrt(1 + 1/4): the data must have said something.
    assert np.all(sd < [0.9, 0.9])
    assert float(found.last_decrease) <= QUICK.tolerance


def test_without_weights_the_priors_come_back(known):
    found = fit(known, target(known, TRUE), 0.0 * weights(), QUICK)
    np.testing.assert_allclose(found.scores, 0.0, atol=1e-6)
    np.testing.assert_allclose(found.hessian, np.eye(3), atol=1e-12)


def test_one_wild_row_hardly_moves_the_fit(known):
    plain = target(known, jnp.zeros(3))
    wild = plain.at[0, 0].add(2.0)  # seven times as much as it is
    found = fit(known, wild, weights(), QUICK)
    # What counts in the end: predictions of the other rows.
    moved = np.asarray(logs(known, row_scores(known, found.scores)) - plain)
    assert np.abs(moved[1:]).max() < 0.06
    without = fit(known, wild, weights().at[0, 0].set(0.0), QUICK)
    np.testing.assert_allclose(without.scores, 0.0, atol=1e-6)


def test_a_seed_decides_the_result(known):
    measured = target(known, TRUE, noise=0.06)
    several = replace(QUICK, starts=3, seed=5)
    once = fits.fit(lambda u: logs(known, u) - measured, known, weights(), several)
    again = fits.fit(lambda u: logs(known, u) - measured, known, weights(), several)
    np.testing.assert_array_equal(once.scores, again.scores)
    # Another start, or fewer of them, ends in the same basin.
    other = fit(known, measured, weights(), QUICK)
    np.testing.assert_allclose(once.scores, other.scores, atol=1e-2)


def test_refit_from_the_optimum_stays_there(known):
    measured = target(known, TRUE, noise=0.06)
    found = fit(known, measured, weights(), QUICK)
    again = fits.refit(
        lambda u: logs(known, u) - measured, known, weights(), QUICK, found.scores
    )
    np.testing.assert_allclose(found.scores, again.scores, atol=1e-3)
    assert float(again.loss) <= float(found.loss)
