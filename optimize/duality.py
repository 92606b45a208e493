"""Least energy of many separate decisions that share one time limit, with a proof.

Groups (such as phases) each take one mode (such as a clock), and under it every copy of every
item takes one of its options, each of which costs seconds and joules:

    minimise sum E   subject to   sum t <= T

For given modes the Lagrangian separates: each copy alone minimises E + lambda t, so only the
convex frontier of an item counts, and the dual function is piecewise linear in lambda. Its
maximum is where the savings per second, sorted over all items, use up the time: found exactly,
no step size. It bounds what any choice can reach. A whole choice follows by spending the time
on whole copies in the same order, then on whatever else still fits.

Source: H. Everett, "Generalized Lagrange multiplier method for solving problems of optimum
allocation of resources", Operations Research 11(3), 1963.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int

Options = Float[np.ndarray, " option"]
TOLERANCE = 1e-12  # relative, of the time limit


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One kind of decision, made `copies` times, each on its own."""

    seconds: Options
    joules: Options
    copies: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Mode:
    """One value of what a group shares: what is fixed under it, and what is decided."""

    seconds: float
    joules: float
    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """A choice, what it takes, and how far from the optimum it can be at most."""

    feasible: bool
    modes: tuple[int, ...]  # of each group
    counts: tuple[tuple[dict[int, int], ...], ...]  # copies by option: group, item
    seconds: float
    joules: float
    bound_joules: float  # no choice takes less
    multiplier: float  # joules saved per extra second: the shadow price of the limit
    candidates: int  # mode combinations whose bound was computed

    @property
    def gap(self) -> float:
        """The duality gap, relative: at most so much could still be saved."""
        return (self.joules - self.bound_joules) / self.joules


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """The convex frontier of a mode: from its fastest choice, savings in order."""

    seconds: float  # of the fastest choice
    joules: float
    extra: Float[np.ndarray, " segment"]  # seconds of all copies
    saved: Float[np.ndarray, " segment"]  # joules of all copies
    rate: Float[np.ndarray, " segment"]  # joules per second, falling
    item: Int[np.ndarray, " segment"]
    option: Int[np.ndarray, " segment"]  # taken at the segment's end


def frontier(seconds: Options, joules: Options) -> Int[np.ndarray, " kept"]:
    """Returns the options on the lower convex hull, fastest first, energy falling.

    >>> frontier(np.array([1.0, 2.0, 3.0, 2.5]), np.array([5.0, 2.0, 1.0, 4.0])).tolist()
    [0, 1, 2]
    """
    order = np.lexsort((joules, seconds))
    lowest = np.minimum.accumulate(joules[order])
    better = np.concatenate([[True], joules[order][1:] < lowest[:-1]])
    kept: list[int] = []
    for index in order[better]:
        while len(kept) > 1 and _above(kept[-2], kept[-1], index, seconds, joules):
            kept.pop()
        kept.append(int(index))
    return np.array(kept, int)


def solve(groups: Sequence[Sequence[Mode]], limit_seconds: float) -> Solution:
    """Returns the choice of least energy within a limit on the sum of all times.

    Bounds all combinations of modes; a whole choice is made for those only whose bound is
    below the best choice so far, the most promising first.
    """
    lines = [[segments(mode) for mode in modes] for modes in groups]
    bounds, rates = _bounds(lines, limit_seconds)
    best: Solution | None = None
    lowest = float(bounds.min())
    for flat in np.argsort(bounds, axis=None, kind="stable"):
        bound = float(bounds.flat[flat])
        if not np.isfinite(bound) or (best is not None and bound >= best.joules):
            break
        modes = tuple(int(i) for i in np.unravel_index(flat, bounds.shape))
        chosen = [groups[g][m] for g, m in enumerate(modes)]
        along = [lines[g][m] for g, m in enumerate(modes)]
        counts, seconds, joules = _whole(chosen, along, limit_seconds)
        if best is None or joules < best.joules:
            best = Solution(
                feasible=True,
                modes=modes,
                counts=counts,
                seconds=seconds,
                joules=joules,
                bound_joules=lowest,
                multiplier=float(rates.flat[flat]),
                candidates=int(bounds.size),
            )
    if best is None:
        return _fastest(groups, lines)
    return best


def segments(mode: Mode) -> Segments:
    """Returns the frontier of all items of a mode together."""
    seconds, joules = mode.seconds, mode.joules
    parts: list[np.ndarray] = []
    for position, item in enumerate(mode.items):
        kept = frontier(item.seconds, item.joules)
        t, e = item.seconds[kept] * item.copies, item.joules[kept] * item.copies
        seconds, joules = seconds + float(t[0]), joules + float(e[0])
        extra, saved = np.diff(t), -np.diff(e)
        where = np.full(extra.size, position)
        parts.append(np.stack([extra, saved, saved / extra, where, kept[1:]]))
    table = np.concatenate(parts, axis=1) if parts else np.zeros((5, 0))
    table = table[:, np.argsort(-table[2], kind="stable")]
    return Segments(
        seconds=seconds,
        joules=joules,
        extra=table[0],
        saved=table[1],
        rate=table[2],
        item=table[3].astype(int),
        option=table[4].astype(int),
    )


def _above(a: int, b: int, c: int, x: Options, y: Options) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (x[b] - x[a]) * (y[c] - y[a]) <= (x[c] - x[a]) * (y[b] - y[a])


def _bounds(
    lines: Sequence[Sequence[Segments]], limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum of the dual and its multiplier, for every combination of modes."""
    shape = tuple(len(modes) for modes in lines)
    bounds, rates = np.full(shape, np.inf), np.zeros(shape)
    *outer, inner = lines
    width = max(line.extra.size for line in inner)
    table = np.zeros((3, len(inner), width))
    for row, line in enumerate(inner):
        for field, values in enumerate((line.extra, line.saved, line.rate)):
            table[field, row, : values.size] = values
    starts = np.array([[line.seconds, line.joules] for line in inner])
    for combination in product(*(range(len(modes)) for modes in outer)):
        given = [lines[g][m] for g, m in enumerate(combination)]
        bounds[combination], rates[combination] = _inner_bounds(
            given, table, starts, limit
        )
    return bounds, rates


def _inner_bounds(
    given: list[Segments], table: np.ndarray, starts: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    rows = table.shape[1]
    fixed = np.stack(
        [
            np.concatenate([getattr(s, n) for s in given] or [np.zeros(0)])
            for n in ("extra", "saved", "rate")
        ]
    )
    wide = np.repeat(fixed[:, None, :], rows, axis=1)
    extra, saved, rate = np.concatenate([table, wide], axis=2)
    order = np.argsort(-rate, axis=1, kind="stable")
    extra, saved, rate = (
        np.take_along_axis(v, order, axis=1) for v in (extra, saved, rate)
    )
    seconds = starts[:, 0] + sum(line.seconds for line in given)
    joules = starts[:, 1] + sum(line.joules for line in given)
    room = limit * (1.0 + TOLERANCE) - seconds
    before = np.cumsum(extra, axis=1) - extra
    used = np.clip((room[:, None] - before) / np.where(extra > 0.0, extra, 1.0), 0, 1)
    bound = joules - (used * saved).sum(axis=1)
    partly = (used < 1.0) & (extra > 0.0)
    shadow = np.max(rate * partly, axis=1, initial=0.0)  # they fall: the first
    return np.where(room >= 0.0, bound, np.inf), shadow


def _whole(
    modes: list[Mode], lines: list[Segments], limit: float
) -> tuple[tuple[tuple[dict[int, int], ...], ...], float, float]:
    """Whole copies in the order of their savings per second, as far as time allows."""
    start = [[_quickest(item) for item in mode.items] for mode in modes]
    counts = [
        [{option: item.copies} for option, item in zip(s, mode.items, strict=True)]
        for s, mode in zip(start, modes, strict=True)
    ]
    at = [list(options) for options in start]
    room = limit * (1.0 + TOLERANCE) - sum(line.seconds for line in lines)
    steps = sorted(
        (
            (-float(line.rate[k]), g, k)
            for g, line in enumerate(lines)
            for k in range(line.rate.size)
        )
    )
    for _, group, k in steps:
        line = lines[group]
        position, option = int(line.item[k]), int(line.option[k])
        item = modes[group].items[position]
        held = counts[group][position]
        # Those left behind by an earlier step may still take this one.
        for old in [at[group][position], *(o for o in list(held) if o != option)]:
            each = float(item.seconds[option] - item.seconds[old])
            gain = float(item.joules[old] - item.joules[option])
            if old == option or gain <= 0.0 or held.get(old, 0) == 0:
                continue
            moved = held[old] if each <= 0.0 else min(held[old], int(room / each))
            if moved > 0:
                held[old] -= moved
                held[option] = held.get(option, 0) + moved
                room -= moved * each
        at[group][position] = option
    tidy = tuple(
        tuple({o: n for o, n in held.items() if n} for held in group)
        for group in counts
    )
    seconds, joules = totals(modes, tidy)
    return tidy, seconds, joules


def totals(
    modes: Sequence[Mode], counts: Sequence[Sequence[dict[int, int]]]
) -> tuple[float, float]:
    """Returns seconds and joules of a whole choice."""
    seconds = sum(mode.seconds for mode in modes)
    joules = sum(mode.joules for mode in modes)
    for mode, group in zip(modes, counts, strict=True):
        for item, held in zip(mode.items, group, strict=True):
            for option, copies in held.items():
                seconds += copies * float(item.seconds[option])
                joules += copies * float(item.joules[option])
    return seconds, joules


def _quickest(item: Item) -> int:
    return int(np.lexsort((item.joules, item.seconds))[0])


def _fastest(
    groups: Sequence[Sequence[Mode]], lines: Sequence[Sequence[Segments]]
) -> Solution:
    """What comes nearest to a limit that nothing meets."""
    modes = tuple(int(np.argmin([line.seconds for line in own])) for own in lines)
    chosen = [groups[g][m] for g, m in enumerate(modes)]
    counts = tuple(
        tuple({_quickest(item): item.copies} for item in mode.items) for mode in chosen
    )
    seconds, joules = totals(chosen, counts)
    return Solution(
        feasible=False,
        modes=modes,
        counts=counts,
        seconds=seconds,
        joules=joules,
        bound_joules=joules,
        multiplier=float("inf"),
        candidates=int(np.prod([len(own) for own in groups])),
    )
