"""What streams found, on the host: joined without regard to who found it, and when.

Indices are 64-bit: spaces hold up to 2^62 points.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxlens.archives import ABSENT, LAST_LEVEL, shift_of
from jaxlens.fronts import pareto_front
from jaxlens.keeps import Plan
from jaxlens.reductions import LOW_RANGE, Best, Kept, Tally

NOWHERE = np.int64(2**63 - 1)  # the index of no point: after all others
Ranges = tuple[tuple[int, int], ...]  # first and count, rising, with gaps between


@dataclass(frozen=True, eq=False)
class Slots:
    """Points by a value of which less is better; `NOWHERE` where there is none."""

    value: Float[np.ndarray, " slot"]
    index: Int[np.ndarray, " slot"]


@dataclass(frozen=True, eq=False)
class Front:
    """A Pareto front in bits of float32 in their order, and how coarse it has become."""

    keys: Int[np.ndarray, "objective point"]
    index: Int[np.ndarray, " point"]
    level: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Finds:
    """What is best of some points."""

    top: tuple[Slots, ...]
    group: tuple[Slots, ...]
    nearest: Slots
    front: Front | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Counts:
    """How many of some points are what, and which points they are."""

    covered: Ranges
    feasible: int
    missed: Int[np.ndarray, " reason"]
    alone: Int[np.ndarray, " reason"]
    histograms: tuple[Int[np.ndarray, " bin"], ...]

    @property
    def evaluated(self) -> int:
        """How many points they are."""
        return sum(count for _, count in self.covered)


def no_finds(plan: Plan) -> Finds:
    """Returns what is best of no points."""
    objectives = range(len(plan.objectives))
    groups = objectives if plan.group is not None else range(0)
    none = np.zeros((len(plan.front), 0), np.int32)
    return Finds(
        top=tuple(_no_slots(plan.top_capacity) for _ in objectives),
        group=tuple(_no_slots(plan.group_capacity) for _ in groups),
        nearest=_no_slots(1),
        front=Front(none, np.zeros(0, np.int64), 0) if plan.front else None,
    )


def no_counts(plan: Plan) -> Counts:
    """Returns the counts of no points."""
    return Counts(
        covered=(),
        feasible=0,
        missed=np.zeros(len(plan.reasons), np.int64),
        alone=np.zeros(len(plan.reasons), np.int64),
        histograms=tuple(np.zeros(n + 2, np.int64) for _, n in plan.histograms),
    )


def found(kept: Kept, first: int) -> Finds:
    """Returns what one device kept; its indices count from `first`."""
    front = kept.front
    if front is not None:
        there = np.asarray(front.keys)[0] < ABSENT
        index = _index(front.high, front.low, there, first)[there]
        front = Front(np.asarray(front.keys)[:, there], index, int(front.level))
    return Finds(
        top=tuple(_slots(best, first) for best in kept.top),
        group=tuple(_slots(best, first) for best in kept.group),
        nearest=_slots(kept.nearest, first),
        front=front,
    )


def counted(tally: Tally, covered: Ranges) -> Counts:
    """Returns the counts of one call."""
    return Counts(
        covered=covered,
        feasible=int(tally.feasible),
        missed=np.asarray(tally.missed, np.int64),
        alone=np.asarray(tally.alone, np.int64),
        histograms=tuple(np.asarray(one, np.int64) for one in tally.histograms),
    )


def join(a: Finds, b: Finds, plan: Plan, epsilon_shift: int) -> Finds:
    """Returns what is best of the points of both."""
    tops = zip(a.top, b.top, strict=True)
    groups = zip(a.group, b.group, strict=True)
    front = None
    if a.front is not None and b.front is not None:
        front = _join_fronts(a.front, b.front, plan.front_capacity, epsilon_shift)
    return Finds(
        top=tuple(_first(_both(*pair), pair[0].value.size) for pair in tops),
        group=tuple(_better(*pair) for pair in groups),
        nearest=_first(_both(a.nearest, b.nearest), 1),
        front=front,
    )


def add(a: Counts, b: Counts) -> Counts:
    """Returns the counts of the points of both.

    Raises:
        ValueError: some points are in both.
    """
    return Counts(
        covered=union(a.covered + b.covered),
        feasible=a.feasible + b.feasible,
        missed=a.missed + b.missed,
        alone=a.alone + b.alone,
        histograms=tuple(
            x + y for x, y in zip(a.histograms, b.histograms, strict=True)
        ),
    )


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Returns the ranges, joined where one begins where another ends.

    >>> union([(10, 5), (0, 4), (4, 6), (20, 1)])
    ((0, 15), (20, 1))
    """
    joined: list[tuple[int, int]] = []
    for first, count in sorted(ranges):
        if joined and first < sum(joined[-1]):
            raise ValueError(
                f"merge: expected surveys of different points, got index {first} twice."
            )
        if joined and first == sum(joined[-1]):
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((first, count))
    return tuple(joined)


def gaps(covered: Ranges, first: int, count: int) -> Ranges:
    """Returns the parts of a range that are not covered.

    >>> gaps(((0, 4), (6, 2)), 2, 10)
    ((4, 2), (8, 4))
    """
    missing, at = [], first
    for begin, length in covered:
        if begin > at:
            missing.append((at, min(begin, first + count) - at))
        at = max(at, begin + length)
    missing.append((at, first + count - at))
    return tuple((begin, length) for begin, length in missing if length > 0)


def indices(finds: Finds) -> Int[np.ndarray, " point"]:
    """Returns all points that were found, each once, rising."""
    slots = [one.index for one in (*finds.top, *finds.group, finds.nearest)]
    slots += [finds.front.index] if finds.front is not None else []
    every = np.unique(np.concatenate(slots))
    return every[every < NOWHERE]


def pack(finds: Finds, counts: Counts) -> dict[str, np.ndarray]:
    """Returns arrays by name, for a file."""
    arrays: dict[str, Any] = {
        "nearest.value": finds.nearest.value,
        "nearest.index": finds.nearest.index,
        "covered": np.array(counts.covered, np.int64).reshape(-1, 2),
        "feasible": np.array(counts.feasible, np.int64),
        "missed": counts.missed,
        "alone": counts.alone,
    }
    for kind in ("top", "group"):
        for row, slots in enumerate(getattr(finds, kind)):
            arrays[f"{kind}.{row}.value"] = slots.value
            arrays[f"{kind}.{row}.index"] = slots.index
    for row, histogram in enumerate(counts.histograms):
        arrays[f"histogram.{row}"] = histogram
    if finds.front is not None:
        arrays["front.keys"] = finds.front.keys
        arrays["front.index"] = finds.front.index
        arrays["front.level"] = np.array(finds.front.level, np.int64)
    return arrays


def unpack(arrays: Mapping[str, np.ndarray], plan: Plan) -> tuple[Finds, Counts]:
    """Returns what arrays by name hold: the inverse of `pack`."""

    def slots(kind: str) -> Slots:
        return Slots(arrays[f"{kind}.value"], arrays[f"{kind}.index"])

    front = None
    if plan.front:
        level = int(arrays["front.level"])
        front = Front(arrays["front.keys"], arrays["front.index"], level)
    objectives = range(len(plan.objectives))
    groups = objectives if plan.group is not None else range(0)
    finds = Finds(
        top=tuple(slots(f"top.{row}") for row in objectives),
        group=tuple(slots(f"group.{row}") for row in groups),
        nearest=slots("nearest"),
        front=front,
    )
    rows = range(len(plan.histograms))
    counts = Counts(
        covered=tuple((int(a), int(b)) for a, b in arrays["covered"]),
        feasible=int(arrays["feasible"]),
        missed=arrays["missed"],
        alone=arrays["alone"],
        histograms=tuple(arrays[f"histogram.{row}"] for row in rows),
    )
    return finds, counts


def condense(
    keys: Int[np.ndarray, "objective point"],
    index: Int[np.ndarray, " point"],
    level: int,
    capacity: int,
    epsilon_shift: int,
) -> Front:
    """Returns the front of some points, coarser than `level` if they are too many."""
    order = np.lexsort((index, *_interleaved(keys)))
    keys, index = keys[:, order], index[order]
    while True:
        shift = int(shift_of(level, epsilon_shift))
        chosen = np.sort(pareto_front((keys >> shift).T.astype(np.float64)))
        if chosen.size <= capacity or level >= LAST_LEVEL:
            break
        level += 1
    return Front(keys[:, chosen][:, :capacity], index[chosen][:capacity], level)


def _interleaved(keys: Int[np.ndarray, "objective point"]) -> list[np.ndarray]:
    """Morton order as numbers: of the low bits, then of the high ones."""
    bits = keys.astype(np.int64) + 2**31
    words = []
    for lowest in (0, 16):
        word = np.zeros(keys.shape[1], np.uint64)
        for plane in reversed(range(lowest, lowest + 16)):
            for row in bits:
                word = (word << np.uint64(1)) | ((row >> plane) & 1).astype(np.uint64)
        words.append(word)
    return words


def _join_fronts(a: Front, b: Front, capacity: int, epsilon_shift: int) -> Front:
    keys = np.concatenate([a.keys, b.keys], axis=1)
    index = np.concatenate([a.index, b.index])
    return condense(keys, index, max(a.level, b.level), capacity, epsilon_shift)


def _index(high: Any, low: Any, there: Any, first: int) -> Int[np.ndarray, " point"]:
    far = np.asarray(high, np.int64) * LOW_RANGE + np.asarray(low, np.int64) + first
    return np.where(there, far, NOWHERE)


def _slots(best: Best, first: int) -> Slots:
    value = np.asarray(best.value, np.float32)
    there = np.isfinite(value) | (value < 0.0)
    return Slots(value, _index(best.high, best.low, there, first))


def _no_slots(count: int) -> Slots:
    value = np.full(count, np.inf, np.float32)
    return Slots(value, np.full(count, NOWHERE))


def _both(a: Slots, b: Slots) -> Slots:
    value = np.concatenate([a.value, b.value])
    return Slots(value, np.concatenate([a.index, b.index]))


def _first(slots: Slots, count: int) -> Slots:
    order = np.lexsort((slots.index, slots.value))[:count]
    return Slots(slots.value[order], slots.index[order])


def _better(a: Slots, b: Slots) -> Slots:
    """The better of two in each slot."""
    ahead = (b.value < a.value) | ((b.value == a.value) & (b.index < a.index))
    return Slots(np.where(ahead, b.value, a.value), np.where(ahead, b.index, a.index))
