"""Relaxed optima under limits, many lanes at once.

Sequential quadratic programming with an augmented Lagrangian, in a trust region. With
scaled objective f, slacks c >= 0 and multipliers m, the merit of a lane is

    f(x) + sum psi(m - rho c(x)) / rho,   psi' = w = clip(m - rho c, 0, weight)

A step minimises its model in a box: a damped BFGS curvature of f - m c, and slacks made linear.
The multipliers are those of that model, found by the method of multipliers without looking at
the function. A step costs one evaluation with gradient, and is kept if the merit falls. A soft
limit is one whose multiplier is bounded by its weight.

Source: J. Nocedal, S. Wright, "Numerical Optimization", 2nd ed., Springer 2006, chapters 4, 17
and 18.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxlens.optimize.quadratic_models import model, plan, psi
from jaxlens.optimize.relaxations import Slopes

FIRST_RADIUS = 0.3  # of the trust region, in coordinates
FIRST_PENALTY = 10.0
LARGEST_PENALTY = 1e8
HARD_WEIGHT = 1e6  # largest multiplier of a hard limit, scaled
STEPS = 40
SMALL_STEP = 1e-4  # coordinates: ends a lane that meets its limits
SMALL_EXCESS = 1e-6  # a limit that is missed by less counts as met
USED_UP = 1e-4  # slack of a limit that may have a price
SMALLEST_RADIUS = 1e-7
NOISE = 1e-13  # relative: of a merit
PATIENCE = 3  # small steps that do not help, until a lane gives up

Rows = Float[np.ndarray, "lane free"]
# Gradients are asked for where coordinates can move.
Look = Callable[[Rows, Int[np.ndarray, " lane"], Bool[np.ndarray, "lane free"]], Slopes]


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """Where each lane has ended: scaled objective, slacks and multipliers."""

    coordinates: Rows
    objective: Float[np.ndarray, " lane"]
    slacks: Float[np.ndarray, "lane limit"]
    multipliers: Float[np.ndarray, "lane limit"]
    reduced_slope: Rows  # of f - m c: not zero where a bound holds a coordinate
    converged: Bool[np.ndarray, " lane"]
    steps: int

    def excess(self, hard: Bool[np.ndarray, " limit"]) -> Float[np.ndarray, " lane"]:
        """Returns by how much the worst hard limit is missed; 0 if none is."""
        return excess(self.slacks, hard)


def excess(
    slacks: Float[np.ndarray, "lane limit"], hard: Bool[np.ndarray, " limit"]
) -> Float[np.ndarray, " lane"]:
    """Returns by how much each lane misses its worst hard limit; 0 if it misses none."""
    worst = np.max(-slacks[:, hard], axis=1, initial=0.0)
    return np.where(np.isnan(slacks[:, hard]).any(axis=1), np.inf, worst)


def joined(first: Relaxed, second: Relaxed) -> Relaxed:
    """Returns the lanes of both."""
    arrays = {
        name: np.concatenate([value, getattr(second, name)])
        for name, value in vars(first).items()
        if name != "steps"
    }
    return Relaxed(**arrays, steps=first.steps + second.steps)


def relax(
    look: Look,
    starts: Rows,
    lanes: Int[np.ndarray, " lane"],
    low: Rows,
    high: Rows,
    weights: Float[np.ndarray, " limit"],
    steps: int = STEPS,
    warm: Float[np.ndarray, "lane limit"] | None = None,
) -> Relaxed:
    """Returns the optimum that each lane finds from its start, between `low` and `high`.

    Args:
        look: Objective, slacks and slopes at coordinates, for the given lanes alone.
        starts: Coordinates to begin at.
        lanes: What `look` is told of each lane.
        low: Lowest coordinates; equal to `high` where one is fixed.
        high: Highest coordinates.
        weights: The largest multiplier of each limit: infinity if it is hard.
        steps: Most steps of a lane.
        warm: Multipliers to begin with, from a solution near by.
    """
    state = _State(look, starts, lanes, low, high, weights)
    if warm is not None:
        state.m = np.minimum(warm, state.weights)
    taken = 0
    while taken < steps and state.running.any():
        state.advance()
        taken += 1
    return state.result(taken)


class _State:
    """All lanes: where they are, multipliers, penalties, curvatures and radii."""

    def __init__(self, look, starts, lanes, low, high, weights) -> None:
        self.look, self.lanes = look, lanes
        self.low, self.high = low, high
        self.weights = np.minimum(weights, HARD_WEIGHT)
        self.hard = np.isinf(weights)
        count, free = starts.shape
        self.x = np.clip(starts, low, high)
        self.moves = high > low
        self.at = look(self.x, lanes, self.moves)
        self.m = np.zeros_like(self.at.slacks)
        self.rho = np.full(count, FIRST_PENALTY)
        # So that a first step is of the size of the trust region.
        steep = np.abs(self.at.objective_slope).max(axis=1, initial=1e-9)
        steep = np.where(np.isfinite(steep), steep, 1.0) / FIRST_RADIUS
        self.curvature = steep[:, None, None] * np.eye(free)
        self.radius = np.full(count, FIRST_RADIUS)
        self.running = self._defined(self.at)
        self.fresh = np.ones(count, bool)
        self.converged = np.zeros(count, bool)
        self.idle = np.zeros(count, int)

    def advance(self) -> None:
        run = np.flatnonzero(self.running)
        x, at = self.x[run], _rows(self.at, run)
        radius = self.radius[run, None].copy()
        step, m = plan(
            at,
            self.curvature[run],
            self.m[run],
            self.weights,
            np.maximum(self.low[run] - x, -radius),
            np.minimum(self.high[run] - x, radius),
        )
        ahead = model(at, self.curvature[run], step)
        before, foreseen = self._foresee(run, at, ahead, m)
        near = self.look(x + step, self.lanes[run], self.moves[run])
        gain = before - self._merit(near, m, self.rho[run])
        noise = NOISE * np.maximum(1.0, np.abs(before))
        kept = self._defined(near) & (gain >= 1e-4 * foreseen - noise)
        self._learn(run, step, at, near, m)
        self._resize(run, step, np.where(kept, gain, -1.0), foreseen)
        self._move(run, kept, x + step, near, m)
        length = np.abs(step).max(axis=1, initial=0.0)
        small = (length < SMALL_STEP) & (length <= 0.99 * radius[:, 0])
        settled = foreseen <= NOISE * np.maximum(1.0, np.abs(before))
        self._finish(run, (kept & small) | settled, small)

    def result(self, taken: int) -> Relaxed:
        w = np.where(self.at.slacks > USED_UP, 0.0, self.m)
        reduced = self.at.objective_slope - np.einsum(
            "lm,lmf->lf", w, self.at.slack_slope
        )
        return Relaxed(
            coordinates=self.x,
            objective=self.at.objective,
            slacks=self.at.slacks,
            multipliers=w,
            reduced_slope=reduced,
            converged=self.converged,
            steps=taken,
        )

    def _foresee(self, run, at: Slopes, ahead: Slopes, m):
        """The merit now, and how much of it the model takes away: never nothing.

        Where it would, the penalty is too small for the change of multipliers.
        """
        for _ in range(4):
            rho = self.rho[run]
            before = self._merit(at, m, rho)
            foreseen = before - self._merit(ahead, m, rho)
            short = foreseen <= 0.0
            if not short.any():
                break
            stiffer = np.minimum(10.0 * rho, LARGEST_PENALTY)
            self.rho[run] = np.where(short, stiffer, rho)
        return before, foreseen

    def _merit(self, at: Slopes, m, rho):
        pull = m - rho[:, None] * at.slacks
        bends = psi(pull, self.weights) - 0.5 * m * m
        return at.objective + (bends / rho[:, None]).sum(axis=1)

    def _defined(self, at: Slopes):
        return (
            np.isfinite(at.objective)
            & np.isfinite(at.slacks).all(axis=1)
            & np.isfinite(at.objective_slope).all(axis=1)
            & np.isfinite(at.slack_slope).all(axis=(1, 2))
        )

    def _learn(self, run, step, at: Slopes, near: Slopes, w) -> None:
        """BFGS, damped after Powell so that the curvature stays positive."""
        change = near.objective_slope - at.objective_slope
        change = change - np.einsum("lm,lmf->lf", w, near.slack_slope - at.slack_slope)
        old = self.curvature[run]
        bent = np.einsum("lfg,lg->lf", old, step)
        along = np.einsum("lf,lf->l", step, bent)
        seen = np.einsum("lf,lf->l", step, change)
        usable = self._defined(near) & (along > 1e-16)
        # The first pair says how large curvature is here.
        first = usable & self.fresh[run] & (seen > 0.0)
        size = np.einsum("lf,lf->l", step, step)
        scale = np.clip(seen / np.maximum(size, 1e-300), 1e-12, 1e6)
        blank = scale[:, None, None] * np.eye(step.shape[1])
        old = np.where(first[:, None, None], blank, old)
        self.fresh[run] &= ~first
        bent = np.einsum("lfg,lg->lf", old, step)
        along = np.maximum(np.einsum("lf,lf->l", step, bent), 1e-300)
        short = seen < 0.2 * along
        share = np.where(short, 0.8 * along / np.where(short, along - seen, 1.0), 1.0)[
            :, None
        ]
        mixed = share * change + (1.0 - share) * bent
        curved = np.maximum(np.einsum("lf,lf->l", step, mixed), 1e-300)
        fresh = (
            old
            - bent[:, :, None] * bent[:, None] / along[:, None, None]
            + mixed[:, :, None] * mixed[:, None] / curved[:, None, None]
        )
        good = usable & np.isfinite(fresh).all(axis=(1, 2))
        self.curvature[run] = np.where(good[:, None, None], fresh, old)

    def _resize(self, run, step, gain, foreseen) -> None:
        length = np.abs(step).max(axis=1, initial=0.0)
        ratio = np.clip(gain, -1e9, 1e9) / np.maximum(foreseen, 1e-30)
        radius = self.radius[run]
        wider = np.maximum(radius, np.minimum(1.0, 2.5 * length))
        radius = np.where(ratio > 0.75, wider, radius)
        self.radius[run] = np.where(
            ratio < 0.1, np.minimum(0.3 * length, radius), radius
        )

    def _move(self, run, kept, x, near: Slopes, m) -> None:
        to = run[kept]
        old = excess(self.at.slacks[to], self.hard)
        self.x[to] = x[kept]
        self.m[to] = m[kept]
        for name, value in vars(self.at).items():
            value[to] = getattr(near, name)[kept]
        slow = excess(self.at.slacks[to], self.hard) > np.maximum(0.5 * old, 1e-4)
        stiffer = np.minimum(4.0 * self.rho[to], LARGEST_PENALTY)
        self.rho[to] = np.where(slow, stiffer, self.rho[to])

    def _finish(self, run, done, small) -> None:
        """Ends lanes that have nothing to gain, or whose small steps do not help.

        A step that is small for want of trust is not `small` here.
        """
        met = excess(self.at.slacks[run], self.hard) <= SMALL_EXCESS
        self.idle[run] = np.where(small, self.idle[run] + 1, 0)
        patient = self.idle[run] >= PATIENCE
        self.converged[run] |= met & (done | patient)
        stuck = patient | (self.radius[run] < SMALLEST_RADIUS)
        self.running[run] &= ~((met & done) | stuck)


def _rows(at: Slopes, rows) -> Slopes:
    return Slopes(**{name: value[rows] for name, value in vars(at).items()})
