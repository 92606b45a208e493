"""The energy-latency front of overlap splits, found by gradients instead of a grid.

Stages, SMs and batch are relaxed (logarithms in a box); lanes descend

    w log t + (1 - w) log E

for several weights w and every tensor-parallel degree, with staging and without, all in one
vmapped Adam. Every optimum is rounded to the corners around it, also at similar batches. What
no other candidate beats is then surrounded: all neighbours of members one step away in a knob
are priced until no member has a neighbour left that was not (Pareto local search). What remains
is the front. A single stage takes no SMs away, so it is only ever asked with the most of them.

Source: L. Paquete, M. Chiarandini, T. Stuetzle, "Pareto local optimum sets in the biobjective
traveling salesman problem", 2004 (the neighbourhood rule).
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.fronts import pareto_front
from jaxlens.optimize.overlap_spaces import (
    Positions,
    SplitSpace,
    evaluate,
    feasible,
    points,
)
from jaxlens.optimize.staging import QUICK, Columns, Question, Split, price

WEIGHTS = (1.0, 0.9, 0.7, 0.5, 0.25, 0.0)  # of latency; the rest is energy's
UNSTAGED_WEIGHTS = (1.0, 0.5, 0.0)
STEPS = 20
RATE = 0.12  # of the box, falling to a tenth
DECAY = 0.9, 0.99  # of Adam's first and second moment


@dataclass(frozen=True, kw_only=True, eq=False)
class Front:
    """What was found: members fastest first, and what it took."""

    positions: Positions
    columns: Columns
    relaxed_evaluations: int  # every lane of every step
    rounded_evaluations: int  # every setting of the grid that was priced
    seconds: float  # compilation included

    @property
    def evaluations(self) -> int:
        """All prices that were asked for."""
        return self.relaxed_evaluations + self.rounded_evaluations


@dataclass(frozen=True, kw_only=True, eq=False)
class Lanes:
    """Starts of the descent: a box of logarithms (batch, stages, SMs) for each lane."""

    tensor_parallel: Float[np.ndarray, " lane"]
    weight: Float[np.ndarray, " lane"]
    low: Float[np.ndarray, "lane 3"]
    high: Float[np.ndarray, "lane 3"]
    start: Float[np.ndarray, "lane 3"]  # share of the box


def search(asked: Question, space: SplitSpace) -> Front:
    """Returns the front of a space."""
    started = time.perf_counter()
    own = lanes(space)
    relaxed = descend(asked, own, space.sequences_are_rows)
    known: dict[tuple[int, ...], np.ndarray] = {}
    columns: dict[str, list[float]] = {}
    asked_for = _corners(space, own.tensor_parallel, relaxed)
    while asked_for.size:
        found = evaluate(asked, space, asked_for)
        both = points(found, np.ones(len(asked_for), bool))
        for row, position in enumerate(asked_for):
            known[tuple(position)] = both[row]
        for name, values in found.items():
            columns.setdefault(name, []).extend(values)
        asked_for = _around(space, known, relaxed, own.tensor_parallel)
    positions = np.array(list(known))
    best = pareto_front(np.array(list(known.values())))
    return Front(
        positions=positions[best],
        columns={name: np.array(v)[best] for name, v in columns.items()},
        relaxed_evaluations=own.weight.size * STEPS,
        rounded_evaluations=len(known),
        seconds=time.perf_counter() - started,
    )


def lanes(space: SplitSpace) -> Lanes:
    """Returns weights x degrees, apart for staged and for sequential settings."""
    rows: list[tuple[float, float, Sequence[float], Sequence[float]]] = []
    staged = [s for s in space.stages if s > 1]
    sms = space.communication_sms
    for degree, largest in zip(space.tensor_parallel, space.largest_batch, strict=True):
        batches = [b for b in space.batch if b <= largest]
        if not batches:
            continue
        for own, weights in (
            (staged, WEIGHTS),
            ([s for s in space.stages if s == 1], UNSTAGED_WEIGHTS),
        ):
            if own:
                fewest = sms[0] if own[-1] > 1 else sms[-1]
                low = [batches[0], own[0], fewest]
                high = [batches[-1], own[-1], sms[-1]]
                rows += [(degree, w, low, high) for w in weights]
    degrees, weights, low, high = (np.array(c, float) for c in zip(*rows, strict=True))
    start = np.stack([1.0 - weights, 0.25 + 0.0 * weights, 0.6 + 0.0 * weights], axis=1)
    return Lanes(
        tensor_parallel=degrees,
        weight=weights,
        low=np.log(low),
        high=np.log(high),
        start=start,
    )


def descend(
    asked: Question, own: Lanes, sequences_are_rows: bool
) -> Float[np.ndarray, "lane 3"]:
    """Returns the relaxed optimum of every lane: batch, stages and SMs.

    One call for each degree, all of one shape: whatever the degrees, it compiles once.
    """
    found = np.zeros_like(own.start)
    with jax.enable_x64(True):
        traced = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), asked)
        for degree in np.unique(own.tensor_parallel):
            rows = own.tensor_parallel == degree
            given = [jnp.asarray(v[rows], float) for v in vars(own).values()]
            found[rows] = _descent()(traced, *given, sequences_are_rows)
    return found


@cache
def _descent() -> Any:
    many = jax.vmap(_lane, (None, 0, 0, 0, 0, 0, None))
    return jax.jit(many, static_argnums=6, compiler_options=QUICK)


def _lane(
    asked: Question,
    degree: Array,
    weight: Array,
    low: Array,
    high: Array,
    start: Array,
    sequences_are_rows: bool,
) -> Array:
    """Adam within the unit box, projected."""

    def sizes(place: Array) -> Array:
        logarithms = low + place * (high - low)
        if not sequences_are_rows:
            return jnp.exp(logarithms)
        # No more chunks than sequences.
        top = jnp.minimum(high[1], logarithms[0])
        most = jnp.maximum(top, low[1])
        chunks = low[1] + place[1] * (most - low[1])
        return jnp.exp(jnp.stack([logarithms[0], chunks, logarithms[2]]))

    def loss(place: Array) -> Array:
        batch, stages, sms = sizes(place)
        split = Split(
            tensor_parallel=degree, batch=batch, stages=stages, communication_sms=sms
        )
        found = price(asked, split)
        energy = jnp.log(found.joules_per_token)
        return weight * jnp.log(found.seconds) + (1.0 - weight) * energy

    def step(state: tuple[Array, Array, Array], count: Array) -> tuple[Any, None]:
        place, mean, square = state
        slope = jax.grad(loss)(place)
        mean = DECAY[0] * mean + (1.0 - DECAY[0]) * slope
        square = DECAY[1] * square + (1.0 - DECAY[1]) * slope * slope
        bias = [1.0 - jnp.exp(count * jnp.log(rate)) for rate in DECAY]
        move = mean / bias[0] / (jnp.sqrt(square / bias[1]) + 1e-9)
        rate = RATE * (1.0 - 0.9 * (count - 1.0) / STEPS)
        return (jnp.clip(place - rate * move, 0.0, 1.0), mean, square), None

    nothing = jnp.zeros_like(start)
    counts = jnp.arange(1.0, STEPS + 1.0)
    (place, _, _), _ = jax.lax.scan(step, (start, nothing, nothing), counts)
    return sizes(place)


def _corners(
    space: SplitSpace, degrees: np.ndarray, relaxed: Float[np.ndarray, "lane 3"]
) -> Positions:
    """The settings around every relaxed optimum: both neighbours in each knob."""
    rows: set[tuple[int, ...]] = set()
    for degree, sizes in zip(degrees, relaxed, strict=True):
        first = space.tensor_parallel.index(round(degree))
        sides = _sides(sizes, space.axes[1:])
        rows.update((first, *corner) for corner in product(*sides))
    return _allowed(space, rows)


def _around(
    space: SplitSpace,
    known: dict[tuple[int, ...], np.ndarray],
    relaxed: Float[np.ndarray, "lane 3"],
    degrees: np.ndarray,
) -> Positions:
    """What was not priced yet: neighbours of the members so far, and their layouts staged.

    A layout whose best is sequential may have a staged setting on the front far from it: the
    relaxed optimum of a similar batch says where.
    """
    places = list(known)
    members = pareto_front(np.array(list(known.values())))
    rows: set[tuple[int, ...]] = set()
    seen = {place[:2] for place in places}
    layouts: set[tuple[int, ...]] = set()
    for member in members:
        at = places[int(member)]
        layouts.add(at[:2])
        for knob, count in enumerate(space.counts):
            for step in (-1, 1):
                place = at[knob] + step
                moved = (*at[:knob], place, *at[knob + 1 :])
                # Another degree is no small step: once for each batch is enough.
                if 0 <= place < count and not (knob == 0 and moved[:2] in seen):
                    rows.add(moved)
    for first, second in layouts:
        like = (degrees == space.tensor_parallel[first]) & (relaxed[:, 1] > 1.0)
        if like.any():
            batch = space.batch[second]
            distance = np.abs(np.log(relaxed[:, 0] / batch)) + np.where(like, 0.0, 1e9)
            nearest = relaxed[int(np.argmin(distance))]
            rows.update(
                (first, second, *corner)
                for corner in product(*_sides(nearest[1:], space.axes[2:]))
            )
    return _allowed(space, rows, known.keys())


def _sides(sizes: np.ndarray, axes: Sequence[tuple[int, ...]]) -> list[set[int]]:
    """Positions of the values on both sides of each size."""
    sides = []
    for value, axis in zip(sizes, axes, strict=True):
        above = int(np.searchsorted(axis, value))
        sides.append({max(0, above - 1), min(above, len(axis) - 1)})
    return sides


def _allowed(
    space: SplitSpace,
    rows: set[tuple[int, ...]],
    known: Iterable[tuple[int, ...]] = (),
) -> Positions:
    """Feasible settings; a single stage with all SMs, which only shorten the collective."""
    last = space.counts[3] - 1
    alone = {
        (*row[:3], last) if space.stages[row[2]] == 1 else tuple(row) for row in rows
    }
    positions = np.array(sorted(alone - set(known)), int).reshape(-1, 4)
    return positions[feasible(space, positions)]
