"""What is kept of a stream of points, updated block by block on the device.

Everything has a fixed size. Indices are a high and a low part, 2^30 apart, so that spaces
beyond 2^31 need no wide integers; of equal points the one of smallest index is kept.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxlens.archives import ABSENT, Archive, empty, insert, ordered_bits
from jaxlens.keeps import SLACK, Numbers, Plan
from jaxlens.pytrees import pytree

LOW_RANGE = 2**30
FAR = np.int32(2**31 - 1)  # where there is no index

Block = Mapping[str, Float[Array, " point"]]


@pytree
class Best:
    """Points by a value of which less is better; infinite where there is none."""

    value: Float[Array, "..."]
    high: Int[Array, "..."]
    low: Int[Array, "..."]


@pytree
class Kept:
    """What is best so far."""

    top: tuple[Best, ...]  # per objective, best first
    group: tuple[Best, ...]  # per objective, by group
    nearest: Best  # infeasible, by how far the worst limit is missed
    front: Archive | None


@pytree
class Tally:
    """Counts of one call, for the host to add up."""

    feasible: Int[Array, ""]
    missed: Int[Array, " reason"]
    alone: Int[Array, " reason"]  # missed, and no other
    nan: Int[Array, " column"]
    first_nan: Int[Array, ""]  # its offset in the call
    histograms: tuple[Int[Array, " bin"], ...]  # below, bins, above


def nothing(plan: Plan) -> Kept:
    """Returns what is kept of no points."""
    objectives = range(len(plan.objectives))
    groups = objectives if plan.group is not None else range(0)
    front = empty(len(plan.front), plan.front_capacity) if plan.front else None
    return Kept(
        top=tuple(_none(plan.top_capacity) for _ in objectives),
        group=tuple(_none(plan.group_capacity) for _ in groups),
        nearest=_none(1),
        front=front,
    )


def no_counts(plan: Plan) -> Tally:
    """Returns the counts of no points."""
    reasons, read = len(plan.reasons), len(plan.columns) + len(plan.reasons)
    return Tally(
        feasible=jnp.zeros((), jnp.int32),
        missed=jnp.zeros(reasons, jnp.int32),
        alone=jnp.zeros(reasons, jnp.int32),
        nan=jnp.zeros(read, jnp.int32),
        first_nan=jnp.array(FAR),
        histograms=tuple(jnp.zeros(n + 2, jnp.int32) for _, n in plan.histograms),
    )


def read(plan: Plan) -> tuple[str, ...]:
    """Returns the names of the columns that a plan reads, those of `Tally.nan`."""
    return (*plan.columns, *(SLACK + reason for reason in plan.reasons))


def update(
    plan: Plan,
    numbers: Numbers,
    kept: Kept,
    block: Block,
    valid: Bool[Array, " point"],
    high: Int[Array, ""],
    low: Int[Array, " point"],
) -> Kept:
    """Returns what is kept once the points of a block have been seen.

    Args:
        plan: Structure of what is kept.
        numbers: Its numbers.
        kept: What was kept before; all of its indices are smaller.
        block: What `read` names, in float32.
        valid: Which points there are.
        high: High part of their indices.
        low: Low parts, rising.
    """
    slack = [block[SLACK + reason] for reason in plan.reasons]
    feasible = _all(valid, [one >= 0.0 for one in slack])
    scores = [_score(block, one, feasible) for one in plan.objectives]
    top = tuple(
        _top(best, score, high, low)
        for best, score in zip(kept.top, scores, strict=True)
    )
    group = kept.group
    if plan.group is not None:
        number = _group(block[plan.group], numbers.group_count)
        group = tuple(
            _best_of_groups(best, score, number, high, low)
            for best, score in zip(kept.group, scores, strict=True)
        )
    front = kept.front
    if front is not None:
        scores = [_score(block, one, feasible) for one in plan.front]
        inside = _all(feasible, [score < jnp.inf for score in scores])
        keys = jnp.stack(
            [jnp.where(inside, ordered_bits(score), ABSENT) for score in scores]
        )
        front = insert(front, jnp.asarray(numbers.epsilon_shift), keys, high, low)
    nearest = _nearest(plan, kept.nearest, slack, valid & ~feasible, high, low)
    return Kept(top=top, group=group, nearest=nearest, front=front)


def count(
    plan: Plan,
    numbers: Numbers,
    tally: Tally,
    block: Block,
    valid: Bool[Array, " point"],
    offset: Int[Array, " point"],
) -> Tally:
    """Returns the counts with those of a block added; `offset` is within the call."""
    missed = [valid & (block[SLACK + reason] < 0.0) for reason in plan.reasons]
    number = sum((one.astype(jnp.int32) for one in missed), jnp.zeros((), jnp.int32))
    feasible = _all(valid, [block[SLACK + reason] >= 0.0 for reason in plan.reasons])
    nan = [valid & jnp.isnan(block[name]) for name in read(plan)]
    any_nan = ~_all(jnp.ones_like(valid), [~one for one in nan])
    first = jnp.min(jnp.where(any_nan, offset, FAR))
    histograms = [
        counts.at[_bin(block[name], bins, numbers, row)].add(feasible.astype(jnp.int32))
        for row, ((name, bins), counts) in enumerate(
            zip(plan.histograms, tally.histograms, strict=True)
        )
    ]
    return Tally(
        feasible=tally.feasible + _sum(feasible),
        missed=tally.missed + _sums(missed),
        alone=tally.alone + _sums([one & (number == 1) for one in missed]),
        nan=tally.nan + _sums(nan),
        first_nan=jnp.minimum(tally.first_nan, first),
        histograms=tuple(histograms),
    )


def _score(block: Block, objective: Any, feasible: Any) -> Float[Array, " point"]:
    score = objective.sign * block[objective.column]
    return jnp.where(feasible & (score < jnp.inf), score, jnp.inf)


def _top(best: Best, score: Any, high: Any, low: Any) -> Best:
    slots = best.value.shape[0]

    def merge() -> Best:
        # What was kept comes first, then by index: `top_k` takes the first of equals.
        values = jnp.concatenate([best.value, score])
        highs = jnp.concatenate([best.high, jnp.broadcast_to(high, low.shape)])
        lows = jnp.concatenate([best.low, low])
        found, chosen = lax.top_k(-values, slots)
        return Best(value=-found, high=highs[chosen], low=lows[chosen])

    return lax.cond(jnp.min(score) < best.value[-1], merge, lambda: best)


def _best_of_groups(best: Best, score: Any, group: Any, high: Any, low: Any) -> Best:
    groups = best.value.shape[0]
    better = score < best.value.at[group].get(mode="fill", fill_value=-jnp.inf)

    def merge() -> Best:
        value = best.value.at[group].min(score, mode="drop")
        winner = better & (score == value.at[group].get(mode="clip"))
        first = jnp.full(groups, FAR)
        first = first.at[jnp.where(winner, group, groups)].min(low, mode="drop")
        new = first < FAR
        return Best(
            value=value,
            high=jnp.where(new, high, best.high),
            low=jnp.where(new, first, best.low),
        )

    return lax.cond(jnp.any(better), merge, lambda: best)


def _nearest(
    plan: Plan, best: Best, slack: Any, infeasible: Any, high: Any, low: Any
) -> Best:
    if not slack:
        return best
    required = zip(slack, plan.required, strict=True)
    able = _all(infeasible, [one >= 0.0 for one, needed in required if needed])
    worst = slack[0]
    for one in slack[1:]:
        worst = jnp.minimum(worst, one)
    distance = jnp.where(able, -worst, jnp.inf)
    least = jnp.min(distance)

    def replace() -> Best:
        first = jnp.min(jnp.where(distance == least, low, FAR))
        return Best(value=least[None], high=high[None], low=first[None])

    return lax.cond(least < best.value[0], replace, lambda: best)


def _group(values: Float[Array, " point"], count: Any) -> Int[Array, " point"]:
    """Groups as whole numbers, and one beyond all capacity for none."""
    number = jnp.clip(values, -1.0, 1e6).astype(jnp.int32)
    whole = number.astype(values.dtype) == values
    inside = (number >= 0) & (number < count) & whole
    return jnp.where(inside, number, FAR)


def _bin(values: Any, bins: int, numbers: Numbers, row: int) -> Int[Array, " point"]:
    positive = values > 0.0
    log = jnp.log(jnp.where(positive, values, 1.0))
    place = (log - numbers.log_low[row]) * numbers.bins_per_log[row] + 1.0
    inside = jnp.clip(jnp.floor(place), 0.0, bins + 1.0).astype(jnp.int32)
    return jnp.where(positive, inside, 0)


def _none(slots: int) -> Best:
    return Best(
        value=jnp.full(slots, jnp.inf, jnp.float32),
        high=jnp.full(slots, FAR),
        low=jnp.full(slots, FAR),
    )


def _all(first: Any, others: list[Any]) -> Any:
    for one in others:
        first = first & one
    return first


def _sum(flags: Any) -> Int[Array, ""]:
    return jnp.sum(flags, dtype=jnp.int32)


def _sums(flags: list[Any]) -> Int[Array, " flag"]:
    if not flags:
        return jnp.zeros(0, jnp.int32)
    return jnp.stack([_sum(one) for one in flags])
