"""Fits of one formula to many groups of rows at once.

    minimise  sum_i w_i rho(r_i / s) + |a|^2 / 2,    z = z0 + A a,
    rho(x) = sqrt(1 + x^2) - 1,

for each group, with r = log predicted - log measured, the scale s of a residual that is still
noise, and the standard scores z of the coefficients, pulled to those z0 of a coarser pool.
A A^T is the covariance of groups around it.
rho is linear beyond s: the optimum is near that of the median error. Adam finds a basin,
Gauss-Newton steps with Levenberg-Marquardt damping converge in it. Groups go through one
compiled program, a fixed number at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxlens.calibration.kernels.formulas import Family, values_of

Progress = Callable[[str, int, int], None]  # family, groups done, groups in all
SMALLEST = 16  # rows that problems are padded to
FEW = 64
QUICK_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


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
    few_rows: int = 200  # groups of fewer are judged on all folds
    few_noise: float = 0.06  # s of groups with priors: a formula's own misfit counts
    few_spread: float = (
        0.7  # of those around their prior, times what fitted groups show
    )
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One group to fit."""

    rows: np.ndarray  # positions in the table
    prior: np.ndarray  # scores z0
    factor: np.ndarray  # A of their covariance A A^T


@dataclass(frozen=True, kw_only=True)
class Search:
    """How many steps to take, and how long they are."""

    steps: int
    polish: int
    learning_rate: float
    noise: float  # s


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
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of every problem, problem x coefficient, and what they cost.

    The cost is minus the logarithm of the evidence, after Laplace: it compares priors of the
    same rows.

    Source: D. MacKay, "Bayesian Interpolation", Neural Computation 4(3), 1992 (evidence).
    """
    found = []
    limit = _limit(family, problems)
    for first in range(0, len(problems), options.at_once):
        part = list(problems[first : first + options.at_once])
        begin = starts[first : first + options.at_once]
        missing = options.at_once - len(part)
        padded = part + [part[-1]] * missing
        begin = np.concatenate([begin, np.repeat(begin[-1:], missing, axis=0)])
        scores, costs = (_fit_few if limit <= FEW else _fit_many)(
            family,
            limit > FEW or search.steps > 0,
            *_padded(features, log_target, weights, padded, limit, options.seed),
            np.stack([problem.prior for problem in padded]),
            np.stack([problem.factor for problem in padded]),
            begin,
            search.noise,
            search.learning_rate,
            search.steps,
            search.polish,
        )
        found.append((np.asarray(scores)[: len(part)], np.asarray(costs)[: len(part)]))
        if progress is not None:
            progress(len(part))
    scores, costs = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(costs)


def _limit(family: Family, problems: Sequence[Problem]) -> int:
    """Returns how many rows a problem may have: few sizes, as each is compiled."""
    most = max(len(problem.rows) for problem in problems)
    limit = SMALLEST
    while limit < min(most, family.rows):
        limit *= 4
    return min(limit, family.rows)


def _padded(features, log_target, weights, problems, limit, seed):
    """Returns arrays of group x row; large groups are thinned, small ones padded."""
    shape = (len(problems), limit)
    arrays = {name: np.ones(shape) for name in features}
    target, weight = np.zeros(shape), np.zeros(shape)
    for position, problem in enumerate(problems):
        rows = problem.rows
        if len(rows) > limit:
            draw = np.random.default_rng(seed).permutation(len(rows))
            rows = rows[np.sort(draw[:limit])]
        count = len(rows)
        for name, values in features.items():
            arrays[name][position, :count] = values[rows]
            arrays[name][position, count:] = values[rows[0]] if count else 1.0
        target[position, :count] = log_target[rows]
        weight[position, :count] = weights[rows]
    return arrays, target, weight


def _fit(
    family,
    descends,
    features,
    target,
    weights,
    prior,
    factor,
    start,
    noise,
    learning_rate,
    steps,
    polish,
):
    def one(features, target, weights, prior, factor, start):
        def residuals(moves: Array) -> Array:
            values = values_of(family.coefficients, prior + factor @ moves)
            return (family.log_target(values, features) - target) / noise

        def loss(moves: Array) -> Array:
            scaled = residuals(moves)
            robust = jnp.sqrt(1.0 + scaled * scaled) - 1.0
            return jnp.sum(weights * robust) + 0.5 * jnp.sum(moves * moves)

        moves = jnp.linalg.solve(factor, start - prior)
        if descends:
            moves = _descend(loss, moves, learning_rate, steps)
        moves = _polish(residuals, loss, weights, moves, polish)
        _, normal = _slope(residuals, weights, moves)
        cost = loss(moves) + 0.5 * jnp.linalg.slogdet(normal)[1]
        return prior + factor @ moves, cost

    return jax.vmap(one)(features, target, weights, prior, factor, start)


_fit_many = jax.jit(_fit, static_argnums=(0, 1))
# Few rows take less time to fit than to compile for.
_fit_few = jax.jit(_fit, static_argnums=(0, 1), compiler_options=QUICK_COMPILE)


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


def _slope(residuals, weights, moves):
    """Returns the gradient of the loss and its Gauss-Newton matrix."""
    scaled, jacobian = residuals(moves), jax.jacfwd(residuals)(moves)
    pull = weights / jnp.sqrt(1.0 + scaled * scaled)
    gradient = jacobian.T @ (pull * scaled) + moves
    normal = jacobian.T @ (pull[:, None] * jacobian) + jnp.eye(len(moves))
    return gradient, normal


def _polish(residuals, loss, weights, start, steps):
    def advance(_, carry):
        moves, value, damping = carry
        gradient, normal = _slope(residuals, weights, moves)
        damped = normal + damping * jnp.diag(jnp.diag(normal))
        tried = moves - jnp.linalg.solve(damped, gradient)
        reached = loss(tried)
        better = reached < value
        return (
            jnp.where(better, tried, moves),
            jnp.where(better, reached, value),
            jnp.clip(jnp.where(better, damping / 4.0, damping * 6.0), 1e-8, 1e8),
        )

    carry = (start, loss(start), jnp.asarray(1e-2))
    return jax.lax.fori_loop(0, steps, advance, carry)[0]
