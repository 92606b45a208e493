"""Relaxed optima by first-order steps, then annealed to whole values: one compiled program.

With scaled objective f, slacks c >= 0, multipliers m and digits d (the place of a value in
its list, linear in between), a lane takes steps of Adam down the merit

    f(u) + sum psi(m - rho c(u)) / rho + w sum sin^2(pi d(u)),  psi'(p) = clip(p, 0, weight)

in coordinates u of a box. After each round of steps m <- clip(m - rho c, 0, weight), and rho
grows where limits are still missed. w is 0 until the lane has settled: that is the relaxed
optimum and m are its prices. Then w rises from round to round, and pulls whole variables to
allowed values while the multipliers keep the limits.

Rounds are a lane's own, so that the loop holds one copy of function and gradient.

Source: D. Bertsekas, "Constrained Optimization and Lagrange Multiplier Methods", Academic
Press 1982, chapters 2 and 3; D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization",
ICLR 2015, https://arxiv.org/abs/1412.6980.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlens.optimize.evaluators import Function, Scalar
from jaxlens.pytrees import pytree

Names = Float[Array, " name"]
Limits = Float[Array, " limit"]

RELAXED_ROUNDS = 10
PULLS = (1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.25, 1.0)  # w of the annealed rounds
STEPS = 60  # of a round at most
MOST_STEPS = STEPS * (RELAXED_ROUNDS + len(PULLS) + 1)
FIRST_STEP = 0.05  # of Adam, in coordinates
LAST_STEP = 1e-2  # of the first step of a round
REACH = 0.5  # first step of a round over the way of the round before
CALMER = 0.1  # and over the first step of the round before, at least
MEMORY = 0.8, 0.95  # of Adam
DIGITS = 0.2  # steps of an annealed round, at most, in digits
FIRST_PENALTY, LARGEST_PENALTY, STIFFER = 10.0, 1e3, 4.0
FIRST_SLOPE, SMALL_SLOPE = 1e-2, 1e-4  # of the merit: end of a relaxed round
ANNEALED_SLOPE = 1e-3  # and of an annealed one
SETTLED = 1e-4  # scaled slack: change of multipliers over rho
STEADY = 3e-3  # relative change of multipliers
SLOWER = 0.6  # a miss that shrinks less than this in a round asks for more penalty
MISSED = 1e-3  # scaled slack: out of reach
SLOW = 0.9  # a miss that shrinks less than this in a round will not be cured
LEAST_TRUST = 1e-3  # shortening of steps that keep leaving the defined region
TINY = 1e-300

RUNNING, CONVERGED, OUT_OF_STEPS, INFEASIBLE, UNDEFINED = range(5)
REASONS = {
    CONVERGED: "the slope of the Lagrangian vanishes within every limit",
    OUT_OF_STEPS: "the relaxed rounds ended before the multipliers settled",
    INFEASIBLE: "limits are still missed when the relaxed rounds end",
    UNDEFINED: "function or gradient are not numbers here",
}


@pytree
class Task:
    """One problem as numbers. Quantities are chosen by their place in what comes back."""

    shared: Any
    sign: Scalar  # 1 if less of the objective is better, else -1
    place: Scalar  # of the objective and of each limit: whole numbers
    relative: Scalar  # whether the logarithm of the objective counts
    scale: Scalar
    places: Limits
    relatives: Limits
    senses: Limits  # 1 for at most, -1 for at least; 0 for a limit that is none
    values: Limits
    scales: Limits
    weights: Limits  # largest multipliers
    hard: Limits
    low: Names
    high: Names
    logarithmic: Names
    # A digit is a sum of ramps clip((value - left) / width, 0, most).
    lefts: Float[Array, "name ramp"]
    widths: Float[Array, "name ramp"]
    mosts: Float[Array, "name ramp"]


@pytree
class Lane:
    """Where one lane begins, and what it may move."""

    start: Names
    free: Names  # 1 where a coordinate moves
    fixed: Names  # values where it does not
    away: Names  # digits by which annealing begins beside the relaxed optimum


@pytree
class State:
    """Where one lane is. What is called relaxed is left behind when annealing begins."""

    at: Names
    back: Names  # the last place that was defined
    multipliers: Limits
    penalty: Scalar
    missed: Scalar  # at the end of the last round
    trust: Scalar
    origin: Names  # where the round has begun
    first: Scalar  # its first step
    adam: Any
    round: Int[Array, ""]
    step: Int[Array, ""]
    evaluations: Int[Array, ""]
    reason: Int[Array, ""]
    settled: Bool[Array, ""]
    relaxed: Names
    objective: Scalar
    slacks: Limits
    prices: Limits
    slope: Names


@pytree
class Seen:
    """One look from a lane: merit and its parts, slope and what it says of the round."""

    merit: Scalar
    objective: Scalar
    slacks: Limits
    slope: Names  # 0 where a bound holds the coordinate
    prices: Limits  # the multipliers that the slacks ask for
    defined: Bool[Array, ""]


def descend(
    function: Function, names: tuple[str, ...], task: Task, lanes: Lane
) -> tuple[State, Int[Array, ""]]:
    """Returns where all lanes have ended, and how many steps the longest has taken.

    Traced: `jax.jit` it with `function` and `names` held fixed.
    """
    adam = optax.scale_by_adam(*MEMORY)

    def begin(lane: Lane) -> State:
        return _begun(task, lane, adam.init(lane.start))

    def advance(lane: Lane, state: State) -> State:
        seen = _look(function, names, task, lane, state)
        after = _advanced(task, lane, state, seen, adam)
        return _chosen(state.reason == RUNNING, after, state)

    def unfinished(carry: tuple[State, Any]) -> Any:
        state, step = carry
        return jnp.any(state.reason == RUNNING) & (step < MOST_STEPS)

    def body(carry: tuple[State, Any]) -> tuple[State, Any]:
        state, step = carry
        return jax.vmap(advance)(lanes, state), step + 1

    first = jax.vmap(begin)(lanes), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(unfinished, body, first)


def merit(
    task: Task, slacks: Limits, multipliers: Limits, penalty: Scalar
) -> Float[Array, ""]:
    """Returns what missed limits add to the objective: sum psi(m - rho c) / rho."""
    pull = multipliers - penalty * slacks
    inside = jnp.clip(pull, 0.0, task.weights)
    used = task.senses != 0.0
    return jnp.sum(jnp.where(used, inside * (pull - 0.5 * inside), 0.0)) / penalty


def values_at(task: Task, lane: Lane, at: Names) -> Names:
    """Returns the values at coordinates: linear, or in logarithms, between the bounds."""
    low = jnp.where(task.logarithmic > 0.0, task.low, 1.0)
    high = jnp.where(task.logarithmic > 0.0, task.high, 1.0)
    curved = low * jnp.exp(at * jnp.log(high / low))
    straight = task.low + at * (task.high - task.low)
    moved = jnp.where(task.logarithmic > 0.0, curved, straight)
    return jnp.where(lane.free > 0.0, moved, lane.fixed)


def digits(task: Task, values: Names) -> Names:
    """Returns the place of each value in its list, linear in between; 0 without a list."""
    rise = (values[:, None] - task.lefts) / task.widths
    return jnp.sum(jnp.clip(rise, 0.0, task.mosts), axis=1)


def _begun(task: Task, lane: Lane, adam: Any) -> State:
    none = jnp.zeros_like(task.values)
    zero, one = jnp.zeros_like(task.scale), jnp.ones_like(task.scale)
    count = jnp.zeros((), jnp.int32)
    return State(
        at=lane.start,
        back=lane.start,
        multipliers=none,
        penalty=FIRST_PENALTY * one,
        missed=jnp.inf * one,
        trust=one,
        origin=lane.start,
        first=FIRST_STEP * one,
        adam=adam,
        round=count,
        step=count,
        evaluations=count,
        reason=count + RUNNING,
        settled=jnp.zeros((), bool),
        relaxed=lane.start,
        objective=jnp.nan * one,
        slacks=none + jnp.nan,
        prices=none,
        slope=jnp.zeros_like(lane.start) + zero,
    )


def _look(
    function: Function, names: tuple[str, ...], task: Task, lane: Lane, state: State
) -> Seen:
    """Function and gradient of the merit, once."""
    pull = _pull(state, lane.start.dtype)
    rulers = jnp.any(task.mosts > 0.0, axis=1) & (lane.free > 0.0)

    def whole(at: Names) -> tuple[Any, Any]:
        values = values_at(task, lane, at)
        found = function(task.shared, dict(zip(names, values, strict=True)))
        listed = jnp.stack([jnp.asarray(value, at.dtype) for value in found.values()])
        objective, slacks = _judged(task, listed)
        waves = jnp.square(jnp.sin(jnp.pi * digits(task, values)))
        total = objective + merit(task, slacks, state.multipliers, state.penalty)
        total = total + pull * jnp.sum(jnp.where(rulers, waves, 0.0))
        return total, (objective, slacks)

    (total, (objective, slacks)), slope = jax.value_and_grad(whole, has_aux=True)(
        state.at
    )
    used = task.senses != 0.0
    defined = jnp.isfinite(total) & jnp.all(jnp.isfinite(slope))
    outward = (state.at <= 0.0) & (slope > 0.0) | (state.at >= 1.0) & (slope < 0.0)
    moves = (lane.free > 0.0) & ~outward
    asked = jnp.clip(state.multipliers - state.penalty * slacks, 0.0, task.weights)
    return Seen(
        merit=total,
        objective=objective,
        slacks=slacks,
        slope=jnp.where(moves, slope, 0.0),
        prices=jnp.where(used, asked, 0.0),
        defined=defined,
    )


def _judged(task: Task, found: Float[Array, " quantity"]) -> tuple[Any, Limits]:
    """Scaled objective, less is better, and scaled slacks."""
    objective = found[jnp.asarray(task.place, int)]
    near = jnp.log(jnp.maximum(objective, TINY))
    scaled = jnp.where(task.relative > 0.0, near, objective / task.scale)
    seen = found[jnp.asarray(task.places, int)]
    bounds = jnp.where(task.relatives > 0.0, task.values, 1.0)
    ratios = -task.senses * jnp.log(jnp.maximum(seen, TINY) / bounds)
    away = task.senses * (task.values - seen) / task.scales
    return task.sign * scaled, jnp.where(task.relatives > 0.0, ratios, away)


def _pull(state: State, dtype: Any) -> Any:
    """The weight w of the round that a lane is in."""
    return jnp.asarray((0.0,) * RELAXED_ROUNDS + PULLS, dtype)[state.round]


def _advanced(task: Task, lane: Lane, state: State, seen: Seen, adam: Any) -> State:
    """One more step, the end of a round, or the way back to where all was defined."""
    annealing = state.round >= RELAXED_ROUNDS
    kept = seen.defined & ~annealing
    state = _chosen(kept, _recorded(state, seen), state)
    steep = jnp.max(jnp.abs(seen.slope), initial=0.0)
    fine = jnp.where(
        annealing,
        ANNEALED_SLOPE,
        jnp.maximum(FIRST_SLOPE * _power(0.1, state), SMALL_SLOPE),
    )
    over = (steep <= fine) | (state.step >= STEPS - 1)
    ended = _ended(task, lane, state, seen, steep <= fine, adam)
    moved = _moved(task, lane, state, seen, adam)
    lost = _lost(state, adam)
    after = _chosen(seen.defined, _chosen(over, ended, moved), lost)
    return _replaced(after, evaluations=state.evaluations + 1)


def _recorded(state: State, seen: Seen) -> State:
    return _replaced(
        state,
        relaxed=state.at,
        objective=seen.objective,
        slacks=seen.slacks,
        prices=seen.prices,
        slope=seen.slope,
    )


def _moved(task: Task, lane: Lane, state: State, seen: Seen, adam: Any) -> State:
    """A step of Adam, shorter towards the end of a round and in later rounds."""
    direction, moments = adam.update(seen.slope, state.adam)
    annealing = state.round >= RELAXED_ROUNDS
    share = jnp.asarray(state.step, seen.slope.dtype) / STEPS
    size = state.trust * state.first * jnp.exp(share * jnp.log(LAST_STEP))
    sizes = jnp.minimum(
        size, jnp.where(annealing, DIGITS * _spacing(task, lane, state), 1.0)
    )
    ahead = jnp.clip(state.at - sizes * direction * lane.free, 0.0, 1.0)
    return _replaced(state, at=ahead, back=state.at, adam=moments, step=state.step + 1)


def _ended(
    task: Task, lane: Lane, state: State, seen: Seen, still: Any, adam: Any
) -> State:
    """The next round, with new multipliers; or the end of the lane."""
    annealing = state.round >= RELAXED_ROUNDS
    missing = jnp.where(task.hard * jnp.abs(task.senses) > 0.0, -seen.slacks, 0.0)
    missed = jnp.max(missing, initial=0.0)
    settled = still & _steady(state, seen)
    stuck = still & (missed > SLOW * state.missed) & (missed > MISSED)
    stuck = stuck & (state.penalty >= LARGEST_PENALTY)
    over = ~annealing & (settled | stuck | (state.round >= RELAXED_ROUNDS - 1))
    none_whole = ~jnp.any((jnp.max(task.mosts, axis=1) > 0.0) & (lane.free > 0.0))
    last = over & none_whole
    last = last | (state.round >= RELAXED_ROUNDS + len(PULLS) - 1)
    settled = jnp.where(annealing, state.settled, settled)
    reason = jnp.where(last, jnp.where(settled, CONVERGED, OUT_OF_STEPS), RUNNING)
    reason = jnp.where(over & (missed > MISSED), INFEASIBLE, reason)
    slow = missed > jnp.maximum(SLOWER * state.missed, SETTLED)
    stiffer = jnp.minimum(STIFFER * state.penalty, LARGEST_PENALTY)
    beside = state.at + lane.away * _spacing(task, lane, state) * lane.free
    ahead = jnp.where(over & ~last, jnp.clip(beside, 0.0, 1.0), state.at)
    after = jnp.where(over, RELAXED_ROUNDS, state.round + 1)
    return _replaced(
        state,
        at=ahead,
        origin=ahead,
        first=jnp.where(annealing | over, FIRST_STEP, _calmer(state)),
        back=state.at,
        multipliers=seen.prices,
        penalty=jnp.where(slow, stiffer, state.penalty),
        missed=missed,
        adam=adam.init(state.at),
        round=after.astype(jnp.int32),
        step=jnp.zeros_like(state.step),
        reason=reason.astype(jnp.int32),
        settled=settled,
    )


def _steady(state: State, seen: Seen) -> Any:
    """Whether limits, and with them multipliers, are as they should be."""
    change = jnp.max(jnp.abs(seen.prices - state.multipliers), initial=0.0)
    largest = 1.0 + jnp.max(seen.prices, initial=0.0)
    return (change <= SETTLED * state.penalty) & (change <= STEADY * largest)


def _calmer(state: State) -> Any:
    """The first step of the next round: of the size of the way that this one went."""
    way = REACH * jnp.max(jnp.abs(state.at - state.origin), initial=0.0)
    return jnp.minimum(jnp.maximum(way, CALMER * state.first), state.first)


def _lost(state: State, adam: Any) -> State:
    """Back to where the merit was a number, with shorter steps."""
    trust = 0.25 * state.trust
    reason = jnp.where(trust < LEAST_TRUST, UNDEFINED, RUNNING)
    return _replaced(
        state,
        at=state.back,
        trust=trust,
        adam=adam.init(state.at),
        reason=reason.astype(jnp.int32),
    )


def _spacing(task: Task, lane: Lane, state: State) -> Names:
    """How far it is to the next digit, in coordinates; 1 at most, and without a list."""
    values = values_at(task, lane, state.at)
    rate = jnp.where(
        task.logarithmic > 0.0,
        values * jnp.log(jnp.where(task.logarithmic > 0.0, task.high / task.low, 1.0)),
        task.high - task.low,
    )
    rise = (values[:, None] - task.lefts) / task.widths
    rising = (rise >= 0.0) & (rise <= task.mosts) & (task.mosts > 0.0)
    ramp = jnp.sum(jnp.where(rising, 1.0 / task.widths, 0.0), axis=1)
    return 1.0 / jnp.maximum(ramp * rate, 1.0)


def _power(base: float, state: State) -> Any:
    return jnp.exp(jnp.log(base) * jnp.asarray(state.round, state.at.dtype))


def _chosen(condition: Any, yes: State, no: State) -> State:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _replaced(state: State, **values: Any) -> State:
    return State(**{**vars(state), **values})
