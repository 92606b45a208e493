"""A Pareto front of bounded size that is kept on the device while points stream by.

Objectives are compared as whole numbers in the order of float32 values: their bits. Of the
front every point is kept until it outgrows its capacity; from then on points in one cell of
a grid are one, and a cell leaves out low bits, so it is a share of the value wide. Each time
that the capacity is reached again, cells get twice as wide.

Of a cell the point is kept that comes first in Morton order, of equal points the one of
smallest index. It is on the exact front, and what is kept at one width follows from what is
kept at any finer one: the result does not depend on the order of the points.

Source (cells and their dominance): M. Laumanns, L. Thiele, K. Deb, E. Zitzler, "Combining
convergence and diversity in evolutionary multiobjective optimization", Evolutionary
Computation 10(3), 2002.
"""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxlens.pytrees import pytree

Keys = Int[Array, "objective point"]
Places = tuple[Int[Array, " point"], Int[Array, " point"]]  # high and low part of index

ABSENT = np.int32(2**31 - 1)  # above the bits of every number
SIGN = np.int32(2**31 - 1)
LAST_LEVEL = 26
LARGEST_SHIFT = 25  # cells of a factor of 16
EDGES = {2: 63, 3: 31, 4: 15}  # of the table that discards most points, by objectives
EDGE_TURN = 8  # changes of the front until the edges of the table follow it
HASHES = 8  # for each point of the front
HASH_FACTORS = (-1640531527, 2135587861, -1028477379, 668265263)  # odd, well mixed
NO_SLOT, SEVERAL = np.int32(-1), np.int32(-2)
CHAMPIONS = 256  # points that are compared with the front at once, at least


@pytree
class Archive:
    """A front, and a table of what it beats."""

    keys: Keys  # ABSENT where there is no point
    high: Int[Array, " point"]
    low: Int[Array, " point"]
    level: Int[Array, ""]  # 0 is exact, then cells double from level to level
    changes: Int[Array, ""]
    # For all objectives but the last some values of the front, rising, and the least value
    # of the last objective among points that are nowhere above them.
    edges: Int[Array, "leading edge"]
    table: Int[Array, "..."]
    slots: Int[Array, " hash"]  # which point is in a cell, by a hash of the cell


def empty(objectives: int, capacity: int) -> Archive:
    """Returns a front of nothing."""
    leading, edges = objectives - 1, EDGES[objectives]
    return Archive(
        keys=jnp.full((objectives, capacity), ABSENT),
        high=jnp.zeros(capacity, jnp.int32),
        low=jnp.zeros(capacity, jnp.int32),
        level=jnp.zeros((), jnp.int32),
        changes=jnp.zeros((), jnp.int32),
        edges=jnp.full((leading, edges), ABSENT),
        table=jnp.full((edges + 1,) * leading, ABSENT),
        slots=jnp.full(1 << (HASHES * capacity - 1).bit_length(), NO_SLOT),
    )


def ordered_bits(values: Float[Array, "..."]) -> Int[Array, "..."]:
    """Returns whole numbers in the order of float32 `values`."""
    bits = lax.bitcast_convert_type(jnp.where(values == 0.0, 0.0, values), jnp.int32)
    return bits ^ ((bits >> 31) & SIGN)


def shift_of(level: Any, epsilon_shift: Any) -> Any:
    """Returns how many low bits a cell leaves out at a level."""
    coarse = jnp.minimum(epsilon_shift + level - 1, LARGEST_SHIFT)
    return jnp.where(level == 0, 0, coarse)


def insert(
    archive: Archive,
    epsilon_shift: Int[Array, ""],
    keys: Keys,
    high: Int[Array, ""],
    low: Int[Array, " point"],
) -> Archive:
    """Returns the front with more points, whose indices come after those of all before.

    Nearly all points are discarded by a table. Of the others the best of each of some
    columns are compared with the front, and so on until none is left.
    """
    count = keys.shape[1]
    rows = max(1, min(256, count // CHAMPIONS))
    columns = count // rows
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    column = jnp.arange(columns, dtype=jnp.int32)
    score = sum(key >> 3 for key in keys) & ~np.int32(rows - 1)

    def offer(archive: Archive, left: Bool[Array, " point"]) -> Any:
        ranked = jnp.where(left, score, ABSENT).reshape(rows, columns)
        best = jnp.min(jnp.where(ranked < ABSENT, ranked | row, ABSENT), axis=0)
        chosen = (best & np.int32(rows - 1)) * columns + column
        offered = jnp.where(best < ABSENT, keys[:, chosen], ABSENT)
        found, changed = _offered(archive, epsilon_shift, offered, high, low[chosen])
        place = jnp.where(best < ABSENT, chosen, count)
        return found, left.at[place].set(False, mode="drop"), changed

    def turn(carry: tuple[Archive, Bool[Array, " point"], Bool[Array, ""]]) -> Any:
        archive, left, changed = carry

        def discarded() -> Bool[Array, " point"]:
            before = _before(archive, high, low[0])
            return _discarded(archive, epsilon_shift, keys, before, low)

        left &= ~lax.cond(changed, discarded, lambda: jnp.zeros(count, bool))
        none = jnp.zeros((), bool)
        return lax.cond(
            jnp.any(left), lambda: offer(archive, left), lambda: (archive, left, none)
        )

    everything = (archive, keys[0] < ABSENT, jnp.ones((), bool))
    return lax.while_loop(lambda carry: jnp.any(carry[1]), turn, everything)[0]


def _before(archive: Archive, high: Any, low: Any) -> Int[Array, " point"]:
    """Low parts of indices, -1 for those before the first of a block."""
    earlier = (archive.high < high) | (archive.low < low)
    return jnp.where(earlier, -1, archive.low)


def _discarded(
    archive: Archive, epsilon_shift: Any, keys: Keys, before: Any, low: Any
) -> Bool[Array, " point"]:
    """Whether the table shows a point of the front that is nowhere worse.

    Of points in one cell it can only tell that they are in one: then the hash finds the
    point of the front, and the two are compared. `before` are low parts of the indices of
    the front. On an exact front only equal points are in one cell, and those that come
    from earlier blocks win.
    """
    shift = shift_of(archive.level, epsilon_shift)
    floors = (keys >> shift) << shift
    search = partial(jnp.searchsorted, side="right", method="scan_unrolled")
    cell = jax.vmap(search)(archive.edges, floors[:-1])
    below = archive.table[tuple(cell)] <= floors[-1]

    def unless_better() -> Bool[Array, " point"]:
        slot = archive.slots[_hash(keys >> shift, archive.slots.size)]
        place = jnp.maximum(slot, 0)
        rival = archive.keys[:, place]
        together = jnp.all((rival >> shift) == (keys >> shift), axis=0)
        first = _first(rival, keys, before[place] < low)
        other = (slot >= 0) & (~together | first)
        return below & ((slot == NO_SLOT) | other)

    sure = (archive.level == 0) & jnp.all(before < 0)
    return lax.cond(sure, lambda: below, unless_better)


def _first(a: Keys, b: Keys, tie: Any) -> Any:
    """Whether `a` comes before `b` in Morton order, the order of interleaved bits.

    The objective decides whose highest different bit is highest, of several the first.
    What is nowhere above in cells of any width then comes first. `tie` is for equal points.
    """
    most = _as_unsigned(a[0] ^ b[0])
    first = a[0] < b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        other = _as_unsigned(x ^ y)
        higher = (most < other) & (most < (most ^ other))
        first = jnp.where(higher, x < y, first)
        most = jnp.where(higher, other, most)
    return first | ((most == 0) & tie)


def _as_unsigned(bits: Int[Array, "..."]) -> Any:
    return lax.bitcast_convert_type(bits, jnp.uint32)


def _hash(cells: Keys, size: int) -> Int[Array, " point"]:
    mixed = reduce(
        lambda a, b: a ^ b,
        (cell * np.int32(k) for cell, k in zip(cells, HASH_FACTORS, strict=False)),
    )
    return ((mixed >> 15) ^ mixed) & np.int32(size - 1)


def _offered(
    archive: Archive, epsilon_shift: Any, keys: Keys, high: Any, low: Any
) -> tuple[Archive, Bool[Array, ""]]:
    """The front with some points more, and whether any of them is new to it."""
    kept = (archive.level, epsilon_shift)
    before = _before(archive, high, jnp.min(low))
    beaten = _beaten(keys, archive.keys, low, before, *kept)
    alive = (keys[0] < ABSENT) & ~beaten

    def merge() -> Archive:
        new = jnp.where(alive, keys, ABSENT)
        mutual = _beaten_mutually(new, low[:, None] < low[None], *kept)
        new = jnp.where(mutual, ABSENT, new)
        old_beaten = _beaten(archive.keys, new, before, low, *kept)
        joined = jnp.concatenate(
            [
                jnp.where(old_beaten, ABSENT, archive.keys),
                new,
            ],
            axis=1,
        )
        highs = jnp.concatenate([archive.high, jnp.broadcast_to(high, low.shape)])
        lows = jnp.concatenate([archive.low, low])
        return _compact(archive, epsilon_shift, joined, highs, lows)

    changed = jnp.any(alive)
    return lax.cond(changed, merge, lambda: archive), changed


def _beaten(
    points: Keys, by: Keys, low: Any, by_low: Any, level: Any, epsilon_shift: Any
) -> Bool[Array, " point"]:
    """Whether some of `by` is nowhere worse than each of `points`, in cells.

    In one cell the one that comes first wins, of equal points that of smaller index. No
    two of `by` are in one cell.
    """

    def exact() -> Any:
        below, above = _compared(points, by)
        return jnp.any(below & (~above | (by_low[:, None] < low[None])), axis=0)

    def in_cells() -> Any:
        shift = shift_of(level, epsilon_shift)
        below, above = _compared(points >> shift, by >> shift)
        place = jnp.arange(by.shape[1], dtype=jnp.int32)[:, None]
        rival = jnp.max(jnp.where(below & above, place, -1), axis=0)
        slot = jnp.maximum(rival, 0)
        ahead = _first(by[:, slot], points, by_low[slot] < low)
        return jnp.any(below & ~above, axis=0) | ((rival >= 0) & ahead)

    return lax.cond(level == 0, exact, in_cells)


def _beaten_mutually(keys: Keys, earlier: Any, level: Any, epsilon_shift: Any) -> Any:
    """Whether some of `keys` is nowhere worse than each; equal ones if it is `earlier`."""

    def exact() -> Any:
        below, above = _compared(keys, keys)
        return jnp.any(below & (earlier | ~above), axis=0)

    def in_cells() -> Any:
        shift = shift_of(level, epsilon_shift)
        below, above = _compared(keys >> shift, keys >> shift)
        ahead = _first(keys[:, :, None], keys[:, None], earlier)
        return jnp.any(below & (ahead | ~above), axis=0)

    return lax.cond(level == 0, exact, in_cells)


def _compared(points: Keys, by: Keys) -> tuple[Any, Any]:
    """Whether each of `by` is nowhere above, and nowhere below, each of `points`."""
    below = above = jnp.ones((by.shape[1], points.shape[1]), bool)
    for p, q in zip(points, by, strict=True):
        below &= q[:, None] <= p[None]
        above &= q[:, None] >= p[None]
    return below, above


def _compact(
    archive: Archive, epsilon_shift: Any, keys: Keys, high: Any, low: Any
) -> Archive:
    """The front of points that do not beat each other, coarser if they are too many."""
    capacity = archive.keys.shape[1]

    def too_many(carry: tuple[Any, Any]) -> Any:
        keys, level = carry
        return (jnp.sum(keys[0] < ABSENT) > capacity) & (level < LAST_LEVEL)

    def coarser(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        keys, level = carry[0], carry[1] + 1
        itself = _beaten_mutually(keys, jnp.zeros((1, 1), bool), level, epsilon_shift)
        return jnp.where(itself, ABSENT, keys), level

    keys, level = lax.while_loop(too_many, coarser, (keys, archive.level))
    alive = keys[0] < ABSENT
    # One scatter of places, and gathers by it.
    slot = jnp.where(alive, jnp.cumsum(alive, dtype=jnp.int32) - 1, capacity)
    place = jnp.arange(keys.shape[1], dtype=jnp.int32)
    chosen = jnp.full(capacity, NO_SLOT).at[slot].set(place, mode="drop")
    taken, chosen = chosen >= 0, jnp.maximum(chosen, 0)
    front = jnp.where(taken, keys[:, chosen], ABSENT)
    shift = shift_of(level, epsilon_shift)
    floors = jnp.where(front < ABSENT, (front >> shift) << shift, ABSENT)

    def moved() -> Int[Array, "leading edge"]:
        return _edges(floors[:-1], archive.edges.shape[1])

    turn = (archive.changes % EDGE_TURN == 0) | (level != archive.level)
    edges = lax.cond(turn, moved, lambda: archive.edges)
    return Archive(
        keys=front,
        high=jnp.where(taken, high[chosen], 0),
        low=jnp.where(taken, low[chosen], 0),
        level=level,
        changes=archive.changes + 1,
        edges=edges,
        table=_table(floors, edges),
        slots=_slots(front, shift, archive.slots.size),
    )


def _edges(keys: Keys, count: int) -> Int[Array, "objective edge"]:
    """Some different keys of each row, first and last among them, all if they are few."""
    rising = jnp.sort(keys, axis=1)
    again = jnp.zeros_like(rising, bool)
    again = again.at[:, 1:].set(rising[:, 1:] == rising[:, :-1])
    different = jnp.sort(jnp.where(again, ABSENT, rising), axis=1)
    last = jnp.sum(different < ABSENT, axis=1, dtype=jnp.int32)[:, None] - 1
    step = jnp.arange(count, dtype=jnp.int32)[None]
    spread = (step * last + (count - 1) // 2) // (count - 1)
    chosen = jnp.where(last < count, jnp.minimum(step, last + 1), spread)
    chosen = jnp.clip(chosen, 0, keys.shape[1] - 1)
    return jnp.take_along_axis(different, chosen, axis=1)


def _table(front: Keys, edges: Int[Array, "leading edge"]) -> Int[Array, "..."]:
    """Least key of the last objective among points nowhere above each edge."""
    leading, count = edges.shape
    search = partial(jnp.searchsorted, side="left", method="scan_unrolled")
    cell = jax.vmap(search)(edges, front[:-1]) + 1
    table = jnp.full((count + 1,) * leading, ABSENT)
    table = table.at[tuple(cell)].min(front[-1], mode="drop")
    for axis in range(leading):
        table = lax.cummin(table, axis=axis)
    return table


def _slots(front: Keys, shift: Any, size: int) -> Int[Array, " hash"]:
    """Which point has a hash, if it is one."""
    place = jnp.where(front[0] < ABSENT, _hash(front >> shift, size), size)
    slot = jnp.arange(front.shape[1], dtype=jnp.int32)
    # Number and sum of them in one scatter.
    unit = np.int32(1 << (front.shape[1] - 1).bit_length())
    held = jnp.zeros(size, jnp.int32).at[place].add(unit + slot, mode="drop")
    found = jnp.where(held == 0, NO_SLOT, held & (unit - 1))
    return jnp.where(held >= 2 * unit, SEVERAL, found)
