"""Maximum a posteriori fit of scores to log-ratio residuals, many folds at once.

    minimise  sum_i w_i rho(r_i(z) / s) + |z|^2 / 2,    rho(x) = 2 (sqrt(1 + x^2 / 2) - 1),

robust (rho grows linearly for outliers), regularised by the priors (z are standard scores).
Adam from several starts finds the basin; Gauss-Newton steps with Levenberg-Marquardt damping
then converge to the optimum. Rows depend on their own coefficients only, so a Jacobian takes
one forward pass for each coefficient, however many scores there are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxlens.calibration.parameters import Parameters, row_scores
from jaxlens.pytrees import pytree

Scores = Float[Array, " score"]
Residuals = Callable[[Array], Array]  # u (row x coefficient) -> row x target


@dataclass(frozen=True, kw_only=True)
class Options:
    """How hard a fit tries."""

    noise: float = 0.06  # s: scale of a log residual that is still noise
    starts: int = 2
    steps: int = 60  # of Adam
    learning_rate: float = 0.05
    polish: int = 100  # Levenberg-Marquardt steps
    tolerance: float = 1e-5  # relative decrease of the loss that ends the polish
    seed: int = 0


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
    count: Int[Array, ""]


def fit(
    residuals: Residuals,
    parameters: Parameters,
    weights: Float[Array, "row target"],
    options: Options,
) -> Fit:
    """Returns the optimum for `weights`; `jax.vmap` over weights fits many folds."""
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
    asked = residuals, parameters, weights, options
    return finish(*asked, polish(*asked, begin(*asked, start), options.polish))


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
    robust = 2.0 * (jnp.sqrt(1.0 + 0.5 * scaled * scaled) - 1.0)
    return jnp.sum(weights * robust) + 0.5 * jnp.sum(scores * scores)


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


def jacobian(residuals: Residuals, parameters: Parameters, scores: Scores) -> Array:
    """Returns d residual / d score, row x target x score."""
    u = row_scores(parameters, scores)

    def along(position: Array) -> Array:
        direction = jnp.zeros_like(u).at[:, position].set(1.0)
        return jax.jvp(residuals, (u,), (direction,))[1]

    per_row = jax.lax.map(along, jnp.arange(u.shape[1]))  # coefficient x row x target
    by_score = jnp.einsum("sc,crt->srt", parameters.selector, per_row)
    return jnp.einsum("srt,sr->rts", by_score, parameters.membership)


def _normal(residuals, parameters, weights, options, scores):
    """Gradient and Gauss-Newton Hessian of the loss."""
    r = residuals(row_scores(parameters, scores)) / options.noise
    j = jacobian(residuals, parameters, scores) / options.noise
    pull = weights / jnp.sqrt(1.0 + 0.5 * r * r)  # weights of reweighted least squares
    gradient = jnp.einsum("rts,rt->s", j, pull * r) + scores
    hessian = jnp.einsum("rts,rt,rtu->su", j, pull, j) + jnp.eye(len(scores))
    return gradient, hessian


def begin(residuals, parameters, weights, options, start: Scores) -> Polish:
    """Returns a polish that has made no step yet."""
    return Polish(
        scores=start,
        loss=_loss(residuals, parameters, weights, options, start),
        damping=jnp.asarray(1e-3),
        decrease=jnp.asarray(1.0),
        count=jnp.asarray(0),
    )


def running(options: Options, state: Polish) -> Array:
    """Returns whether a polish has steps left and still gets anywhere."""
    return (state.count < options.polish) & (state.decrease > options.tolerance)


def polish(
    residuals, parameters, weights, options, state: Polish, steps: int
) -> Polish:
    """Returns the polish after `steps` more steps, fewer where it ends before."""
    loss = partial(_loss, residuals, parameters, weights, options)
    last = state.count + steps

    def advance(state: Polish) -> Polish:
        scores, value, damping = state.scores, state.loss, state.damping
        gradient, hessian = _normal(residuals, parameters, weights, options, scores)
        damped = hessian + damping * jnp.diag(jnp.diag(hessian))
        tried = scores - jnp.linalg.solve(damped, gradient)
        reached = loss(tried)
        better = reached < value
        decrease = jnp.where(better, (value - reached) / value, 1.0)
        stuck = (~better) & (damping > 1e6)
        return Polish(
            scores=jnp.where(better, tried, scores),
            loss=jnp.where(better, reached, value),
            damping=jnp.clip(
                jnp.where(better, damping / 5.0, damping * 5.0), 1e-9, 1e9
            ),
            decrease=jnp.where(stuck, 0.0, decrease),
            count=state.count + 1,
        )

    return jax.lax.while_loop(
        lambda state: running(options, state) & (state.count < last), advance, state
    )


def finish(residuals, parameters, weights, options, state: Polish) -> Fit:
    """Returns the fit that a polish has come to."""
    gradient, hessian = _normal(residuals, parameters, weights, options, state.scores)
    return Fit(
        scores=state.scores,
        loss=state.loss,
        hessian=hessian,
        last_decrease=state.decrease,
        gradient_norm=jnp.linalg.norm(gradient),
    )
