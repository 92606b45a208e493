"""The best step of a quadratic model of an objective under linear slacks, in a box.

    min g d + d B d / 2 + sum psi(m - rho (c + J d)) / rho,   psi' = clip(., 0, weight)

by the method of multipliers: Newton steps at a penalty, then m = clip(m - rho (c + J d)), then
a penalty ten times as large. The penalties rise slowly because each is a start for the next.
Everything is for many lanes at once and looks at no function.

Source: D. Bertsekas, "Constrained Optimization and Lagrange Multiplier Methods", Academic
Press 1982, chapter 2.
"""

import numpy as np
from jaxtyping import Float

from jaxlens.optimize.relaxations import Slopes

# Over the curvature: one for each round of multipliers.
MODEL_PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4)
NEWTON_STEPS = 3  # of each round
SHORTENINGS = np.array([1.0, 0.5, 0.2, 0.05, 0.01, 0.0])
RIDGE = 1e-13  # so that no system is singular

Rows = Float[np.ndarray, "lane free"]
Bends = Float[np.ndarray, "lane free free"]
Slacks = Float[np.ndarray, "... limit"]


def psi(pull: Slacks, weights: Float[np.ndarray, " limit"]) -> Slacks:
    """Returns the integral of clip(pull, 0, weight): quadratic, then linear."""
    inside = np.clip(pull, 0.0, weights)
    return inside * (pull - 0.5 * inside)


def model(at: Slopes, curvature: Bends, step: Rows) -> Slopes:
    """Returns what the model says of objective and slacks after a step."""
    bent = np.einsum("lf,lfg,lg->l", step, curvature, step)
    rise = np.einsum("lf,lf->l", at.objective_slope, step)
    return Slopes(
        objective=at.objective + rise + 0.5 * bent,
        slacks=at.slacks + np.einsum("lmf,lf->lm", at.slack_slope, step),
        objective_slope=at.objective_slope,
        slack_slope=at.slack_slope,
    )


def plan(
    at: Slopes,
    curvature: Bends,
    m: Float[np.ndarray, "lane limit"],
    weights: Float[np.ndarray, " limit"],
    low: Rows,
    high: Rows,
) -> tuple[Rows, Float[np.ndarray, "lane limit"]]:
    """Returns the best step of the model in a box, and the multipliers of its slacks.

    `low` and `high` bound the step; `m` are multipliers to begin with.
    """
    size = np.abs(curvature).max(axis=(1, 2), initial=0.0)
    step = np.clip(np.zeros_like(low), low, high)
    for penalty in MODEL_PENALTIES:
        rho = penalty * (1.0 + size)[:, None]
        step = _descend(at, curvature, m, rho, weights, step, low, high)
        slacks = at.slacks + np.einsum("lmf,lf->lm", at.slack_slope, step)
        m = np.clip(m - rho * slacks, 0.0, weights)
    return step, m


def _descend(at: Slopes, curvature, m, rho, weights, step, low, high):
    """Newton steps on the coordinates that no bound holds, shortened where needed.

    One direction knows the slacks that are used up now, another those at its end as well.
    """
    count, free = step.shape
    for _ in range(NEWTON_STEPS if free else 0):
        used = _used(at, m, rho, weights, step)
        first = _newton(at, curvature, m, rho, weights, step, low, high, used)
        end = np.clip(step + first, low, high)
        later = used | _used(at, m, rho, weights, end)
        second = _newton(at, curvature, m, rho, weights, step, low, high, later)
        if max(np.abs(first).max(), np.abs(second).max()) < 1e-12:
            break
        away = np.concatenate([first[None], second[None]])
        tried = step + SHORTENINGS[:, None, None, None] * away
        tried = np.clip(tried.reshape(-1, count, free), low, high)
        value = _values(at, curvature, m, rho, weights, tried)
        step = tried[np.argmin(value, axis=0), np.arange(count)]
    return step


def _pull(at: Slopes, m, rho, step):
    return m - rho * (at.slacks + np.einsum("lmf,lf->lm", at.slack_slope, step))


def _used(at: Slopes, m, rho, weights, step):
    """Which slacks the model has used up after a step."""
    pull = _pull(at, m, rho, step)
    return (pull > 0.0) & (pull < weights)


def _newton(at: Slopes, curvature, m, rho, weights, step, low, high, used):
    """A step to where the model is flat, with the limits in `used` as equations."""
    jacobian = at.slack_slope
    pull = _pull(at, m, rho, step)
    w = np.where(used, pull, np.clip(pull, 0.0, weights))
    rate = at.objective_slope + np.einsum("lfg,lg->lf", curvature, step)
    rate = rate - np.einsum("lm,lmf->lf", w, jacobian)
    bend = np.einsum("lm,lmf,lmg->lfg", rho * used, jacobian, jacobian) + curvature
    held = ((step <= low) & (rate > 0.0)) | ((step >= high) & (rate < 0.0))
    both = ~held[:, :, None] & ~held[:, None]
    size = 1.0 + np.abs(bend).max(axis=(1, 2), initial=0.0)[:, None, None]
    unit = np.eye(step.shape[1])
    matrix = np.where(both, bend, 0.0) + np.where(both, RIDGE * size, 1.0) * unit
    return np.linalg.solve(matrix, np.where(held, 0.0, -rate)[..., None])[..., 0]


def _values(at: Slopes, curvature, m, rho, weights, steps):
    """Merit of the model after each of several steps of each lane."""
    pull = m - rho * (at.slacks + np.einsum("lmf,tlf->tlm", at.slack_slope, steps))
    bends = (psi(pull, weights) / rho).sum(axis=2)
    bent = np.einsum("tlf,lfg,tlg->tl", steps, curvature, steps)
    return np.einsum("tlf,lf->tl", steps, at.objective_slope) + 0.5 * bent + bends
