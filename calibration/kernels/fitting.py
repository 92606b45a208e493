"""Fits of one formula to many groups of rows at once.

    minimise  sum_i w_i rho(r_i / s) + |z - z0|^2 / (2 v),    rho(x) = sqrt(1 + x^2) - 1,

for each group, with r = log predicted - log measured, the scale s of a residual that is still
noise, and the standard scores z of the coefficients, pulled to those z0 of a coarser pool.
rho is linear beyond s: the optimum is near that of the median error. Adam finds a basin,
Gauss-Newton steps with Levenberg-Marquardt damping converge in it. Groups go through one
compiled program, a fixed number at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxlens.calibration.kernels.formulas import Family, values_of

Progress = Callable[[str, int, int], None]  # family, groups done, groups in all


@dataclass(frozen=True, kw_only=True)
class Options:
    """How hard a fit tries, and what it keeps back."""

    noise: float = 0.03  # s: log residual that is still noise
    steps: int = 100  # of Adam, for a pool without a parent
    group_steps: int = 40  # of Adam, from the scores of the parent
    learning_rate: float = 0.08
    polish: int = 12  # Gauss-Newton steps
    group_spread: float = 1.0  # of a group around its pool, in standard scores
    unscored_weight: float = 0.3  # of rows too short to be scored
    folds: int = 5  # one of them is kept back
    at_once: int = 16  # groups in one call
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One group to fit."""

    rows: np.ndarray  # positions in the table
    prior: np.ndarray  # scores z0
    spread: float  # sqrt(v)


@dataclass(frozen=True, kw_only=True)
class Search:
    """How many steps to take, and how long they are."""

    steps: int
    polish: int
    learning_rate: float


def fit_problems(
    family: Family,
    features: Mapping[str, np.ndarray],
    log_target: np.ndarray,
    weights: np.ndarray,
    problems: Sequence[Problem],
    starts: np.ndarray,
    options: Options,
    search: Search,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Returns the scores of every problem, problem x coefficient."""
    found = []
    for first in range(0, len(problems), options.at_once):
        part = list(problems[first : first + options.at_once])
        begin = starts[first : first + options.at_once]
        missing = options.at_once - len(part)
        padded = part + [part[-1]] * missing
        begin = np.concatenate([begin, np.repeat(begin[-1:], missing, axis=0)])
        scores = _fit(
            family,
            *_padded(family, features, log_target, weights, padded, options.seed),
            np.stack([problem.prior for problem in padded]),
            np.array([problem.spread**-2.0 for problem in padded]),
            begin,
            options.noise,
            search.learning_rate,
            search.steps,
            search.polish,
        )
        found.append(np.asarray(scores)[: len(part)])
        if progress is not None:
            progress(len(part))
    return np.concatenate(found)


def _padded(family, features, log_target, weights, problems, seed):
    """Returns arrays of group x row; large groups are thinned, small ones padded."""
    shape = (len(problems), family.rows)
    arrays = {name: np.ones(shape) for name in features}
    target, weight = np.zeros(shape), np.zeros(shape)
    for position, problem in enumerate(problems):
        rows = problem.rows
        if len(rows) > family.rows:
            draw = np.random.default_rng(seed).permutation(len(rows))
            rows = rows[np.sort(draw[: family.rows])]
        count = len(rows)
        for name, values in features.items():
            arrays[name][position, :count] = values[rows]
            arrays[name][position, count:] = values[rows[0]] if count else 1.0
        target[position, :count] = log_target[rows]
        weight[position, :count] = weights[rows]
    return arrays, target, weight


@partial(jax.jit, static_argnums=0)
def _fit(
    family,
    features,
    target,
    weights,
    prior,
    precision,
    start,
    noise,
    learning_rate,
    steps,
    polish,
):
    def one(features, target, weights, prior, precision, start):
        def residuals(scores: Array) -> Array:
            values = values_of(family.coefficients, scores)
            return (family.log_target(values, features) - target) / noise

        def loss(scores: Array) -> Array:
            scaled, moved = residuals(scores), scores - prior
            robust = jnp.sqrt(1.0 + scaled * scaled) - 1.0
            return jnp.sum(weights * robust) + 0.5 * precision * jnp.sum(moved * moved)

        scores = _descend(loss, start, learning_rate, steps)
        return _polish(residuals, loss, weights, prior, precision, scores, polish)

    return jax.vmap(one)(features, target, weights, prior, precision, start)


def _descend(loss, start, learning_rate, steps):
    optimiser = optax.scale_by_adam()

    def advance(step, carry):
        scores, state, best, lowest = carry
        value, gradient = jax.value_and_grad(loss)(scores)
        better = value < lowest
        best = jnp.where(better, scores, best)
        lowest = jnp.where(better, value, lowest)
        update, state = optimiser.update(gradient, state)
        share = step / steps
        rate = learning_rate * (0.525 + 0.475 * jnp.cos(jnp.pi * share))
        return scores - rate * update, state, best, lowest

    carry = (start, optimiser.init(start), start, loss(start))
    scores, _, best, lowest = jax.lax.fori_loop(0, steps, advance, carry)
    return jnp.where(loss(scores) < lowest, scores, best)


def _polish(residuals, loss, weights, prior, precision, start, steps):
    def advance(_, carry):
        scores, value, damping = carry
        scaled = residuals(scores)
        jacobian = jax.jacfwd(residuals)(scores)
        pull = weights / jnp.sqrt(1.0 + scaled * scaled)
        gradient = jacobian.T @ (pull * scaled) + precision * (scores - prior)
        normal = jacobian.T @ (pull[:, None] * jacobian)
        normal = normal + precision * jnp.eye(len(scores))
        damped = normal + damping * jnp.diag(jnp.diag(normal))
        tried = scores - jnp.linalg.solve(damped, gradient)
        reached = loss(tried)
        better = reached < value
        return (
            jnp.where(better, tried, scores),
            jnp.where(better, reached, value),
            jnp.clip(jnp.where(better, damping / 4.0, damping * 6.0), 1e-8, 1e8),
        )

    carry = (start, loss(start), jnp.asarray(1e-2))
    return jax.lax.fori_loop(0, steps, advance, carry)[0]
