"""Maximum a posteriori fit of scores to log-ratio residuals, many folds at once.

    minimise  sum_i w_i rho(r_i(z) / s) + |z|^2 / 2,    rho(x) = 2 (sqrt(1 + x^2 / 2) - 1),

robust (rho grows linearly for outliers), regularised by the priors (z are standard scores).
Adam from several starts finds the basin; Gauss-Newton steps with Levenberg-Marquardt damping
then converge to the optimum. Rows depend on their own coefficients only, so a Jacobian takes
one backward pass for each target, however many rows and scores there are; and rows of one
chip and stack share all scores, so that normal equations are summed by such groups first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlens.calibration.parameters import Parameters, row_scores
from jaxlens.pytrees import pytree

Scores = Float[Array, " score"]
Residuals = Callable[[Array], Array]  # u (row x coefficient) -> row x target

DAMPING = 1e-4  # of the first second-order step, relative
MOST_DAMPING = 1e6
REWEIGHTED, CURVED = 0.5, 1.5  # Hessians: as reweighted least squares, of the loss


@dataclass(frozen=True, kw_only=True)
class Options:
    """How hard a fit tries."""

    noise: float = 0.06  # s: scale of a log residual that is still noise
    starts: int = 2
    steps: int = 20  # of Adam
    learning_rate: float = 0.05
    polish: int = 100  # Levenberg-Marquardt steps
    tolerance: float = 1e-6  # relative decrease of the loss that ends the polish
    seed: int = 0


@pytree
class Limits:
    """Of a polish; traced, so that other limits need no other compilation."""

    noise: Float[Array, ""] | float
    tolerance: Float[Array, ""] | float
    steps: Int[Array, ""] | int  # from here on


@pytree
class Fit:
    """An optimum, and how it was reached."""

    scores: Scores
    loss: Float[Array, ""]
    hessian: Float[Array, "score score"]  # Gauss-Newton, prior included
    last_decrease: Float[Array, ""]  # relative, of the last polish step
    gradient_norm: Float[Array, ""]


@pytree
class Polish:
    """Where a polish stands: enough to go on from, with the same result."""

    scores: Scores
    loss: Float[Array, ""]
    damping: Float[Array, ""]
    decrease: Float[Array, ""]  # relative, of the last step
    count: Int[Array, ""]  # of steps


@pytree
class Linear:
    """Residuals at some scores and how they move."""

    residuals: Float[Array, "row target"]
    slopes: Float[Array, "row target coefficient"]  # in the u of the row


@pytree
class Standing:
    """A polish, what it knows of the point that it is at, and the point to try next."""

    state: Polish
    at: Linear
    tried: Scores
    promised: Float[Array, ""]  # decrease of the loss there, were it quadratic
    fresh: Bool[Array, ""]  # before the first evaluation


def fit(
    residuals: Residuals,
    parameters: Parameters,
    weights: Float[Array, "row target"],
    options: Options,
) -> Fit:
    """Returns the optimum for `weights`."""
    best = descend(residuals, parameters, weights, options)
    return refit(residuals, parameters, weights, options, best)


def refit(
    residuals: Residuals,
    parameters: Parameters,
    weights: Float[Array, "row target"],
    options: Options,
    start: Scores,
) -> Fit:
    """Returns the optimum next to `start`: what a fold of a validation needs."""
    limits = Limits(
        noise=options.noise, tolerance=options.tolerance, steps=options.polish
    )
    return polish(residuals, parameters, weights, limits, begin(start))[1]


def descend(
    residuals: Residuals, parameters: Parameters, weights: Array, options: Options
) -> Scores:
    """Returns the best of the points that Adam reaches from all starts."""
    loss = partial(_loss, residuals, parameters, weights, options)
    keys = jax.random.PRNGKey(options.seed)
    starts = 0.5 * jax.random.normal(keys, (options.starts, len(parameters.scores)))
    starts = starts.at[0].set(0.0)  # the priors themselves
    found = jax.vmap(partial(_descend, loss, options))(starts)
    losses = jax.vmap(loss)(found)
    return found[jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))]


def _loss(
    residuals: Residuals,
    parameters: Parameters,
    weights: Array,
    options: Options,
    scores: Scores,
) -> Array:
    scaled = residuals(row_scores(parameters, scores)) / options.noise
    return _robust(weights, scores, scaled)


def _descend(
    loss: Callable[[Scores], Array], options: Options, start: Scores
) -> Scores:
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.steps, 0.1)
    optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))

    def advance(carry, _):
        scores, state = carry
        gradient = jax.grad(loss)(scores)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            update, state = optimiser.update(gradient, state)
        return (optax.apply_updates(scores, update), state), None

    carry: Any = (start, optimiser.init(start))
    carry, _ = jax.lax.scan(advance, carry, length=options.steps)
    return carry[0]


def slopes(residuals: Residuals, u: Array) -> tuple[Array, Array]:
    """Returns residuals and d residual / d u of the same row, row x target x coefficient."""
    value, back = jax.vjp(residuals, u)
    columns = [
        back(jnp.zeros_like(value).at[:, target].set(1.0))[0]
        for target in range(value.shape[1])
    ]
    return value, jnp.stack(columns, axis=1)


def jacobian(residuals: Residuals, parameters: Parameters, scores: Scores) -> Array:
    """Returns d residual / d score, row x target x score."""
    by_row = slopes(residuals, row_scores(parameters, scores))[1]
    by_score = jnp.einsum("sc,rtc->rts", parameters.selector, by_row)
    return by_score * parameters.membership.T[:, None, :]


def _linear(
    residuals: Residuals, parameters: Parameters, limits: Limits, scores: Scores
) -> Linear:
    value, slope = slopes(residuals, row_scores(parameters, scores))
    return Linear(residuals=value / limits.noise, slopes=slope / limits.noise)


def _robust(weights: Array, scores: Scores, scaled: Array) -> Array:
    """The loss, of residuals in units of the noise."""
    robust = 2.0 * (jnp.sqrt(1.0 + 0.5 * scaled * scaled) - 1.0)
    return jnp.sum(weights * robust) + 0.5 * jnp.sum(scores * scores)


def _normal(
    parameters: Parameters, weights: Array, scores: Scores, at: Linear, power: float
) -> tuple[Array, Array]:
    """Gradient and Gauss-Newton Hessian of the loss, rows weighed by w / (1 + r^2/2)^power.

    1/2 weighs them as reweighted least squares does, 3/2 by the curvature of the loss.
    """
    r, j = at.residuals, at.slopes
    spread = 1.0 + 0.5 * r * r
    chosen = jax.nn.one_hot(parameters.groups, parameters.owners.shape[1], axis=0)
    own = jnp.einsum("gr,rt,rtc->grtc", chosen, weights / jnp.sqrt(spread), j)
    pulled = jnp.einsum("grtc,rt->gc", own, r)
    bent = j * spread[..., None] ** (0.5 - power)
    curvature = jnp.einsum("grtc,rtd->gcd", own, bent)
    moves = jnp.einsum("sg,sc->gsc", parameters.owners, parameters.selector)
    gradient = jnp.einsum("gsc,gc->s", moves, pulled) + scores
    half = jnp.einsum("gsc,gcd->gsd", moves, curvature)
    hessian = jnp.einsum("gsd,gtd->st", half, moves) + jnp.eye(len(scores))
    return gradient, hessian


def begin(start: Scores) -> Polish:
    """Returns a polish that has made no step yet."""
    return Polish(
        scores=jnp.asarray(start),
        loss=jnp.asarray(jnp.inf),
        damping=jnp.asarray(DAMPING),
        decrease=jnp.asarray(1.0),
        count=jnp.asarray(0),
    )


def polish(
    residuals: Residuals,
    parameters: Parameters,
    weights: Array,
    limits: Limits,
    state: Polish,
) -> tuple[Polish, Fit, Linear]:
    """Returns the polish after some steps more, its fit, and the residuals there."""
    linear = partial(_linear, residuals, parameters, limits)
    last = state.count + limits.steps

    def advance(now: Standing) -> Standing:
        there = linear(now.tried)
        reached = _robust(weights, now.tried, there.residuals)
        after, better = _judged(now, reached)
        at = jax.tree.map(lambda a, b: jnp.where(better, a, b), there, now.at)
        gradient, hessian = _normal(parameters, weights, after.scores, at, CURVED)
        damped = hessian + after.damping * jnp.diag(jnp.diag(hessian))
        step = jax.scipy.linalg.solve(damped, gradient, assume_a="pos")
        return Standing(
            state=after,
            at=at,
            tried=after.scores - step,
            promised=step @ gradient - 0.5 * step @ (hessian @ step),
            fresh=jnp.asarray(False),
        )

    def more(now: Standing) -> Array:
        going = (now.state.count < last) & (now.state.decrease > limits.tolerance)
        return now.fresh | going

    end = jax.lax.while_loop(more, advance, _standing(parameters, weights, state))
    scores = end.state.scores
    gradient, hessian = _normal(parameters, weights, scores, end.at, REWEIGHTED)
    found = Fit(
        scores=scores,
        loss=end.state.loss,
        hessian=hessian,
        last_decrease=end.state.decrease,
        gradient_norm=jnp.linalg.norm(gradient),
    )
    there = jax.tree.map(lambda leaf: leaf * limits.noise, end.at)
    return end.state, found, there


def _standing(parameters: Parameters, weights: Array, state: Polish) -> Standing:
    """The polish before it knows anything of the point that it is at."""
    blank = jnp.zeros_like(jnp.asarray(weights))
    width = len(parameters.coefficients)
    return Standing(
        state=state,
        at=Linear(residuals=blank, slopes=jnp.zeros((*blank.shape, width))),
        tried=state.scores,
        promised=jnp.asarray(1.0),
        fresh=jnp.asarray(True),
    )


def _judged(now: Standing, reached: Array) -> tuple[Polish, Array]:
    """The polish with the loss of the point it tried, and whether it goes there."""
    state, first = now.state, now.fresh
    better = first | (reached < state.loss)
    decrease = jnp.where(reached < state.loss, 1.0 - reached / state.loss, 1.0)
    stuck = (~better) & (state.damping > MOST_DAMPING)
    kept = jnp.where(first, 1.0, (state.loss - reached) / now.promised)
    factor = jnp.where(kept > 0.75, 0.2, jnp.where(kept < 0.25, 2.0, 0.7))
    damping = state.damping * jnp.where(better, factor, 4.0)
    after = Polish(
        scores=jnp.where(better, now.tried, state.scores),
        loss=jnp.where(better, reached, state.loss),
        damping=jnp.where(first, state.damping, jnp.clip(damping, 1e-9, 1e9)),
        decrease=jnp.where(first, state.decrease, jnp.where(stuck, 0.0, decrease)),
        count=state.count + jnp.where(first, 0, 1),
    )
    return after, better
