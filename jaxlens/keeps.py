"""What a stream keeps of a space too large to hold, as asked and as the device needs it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxlens.pytrees import pytree

SLACK = "slack_"  # prefix of columns that are negative where a limit is missed
# Candidates beyond those asked for: ranks are settled in float64, kept in float32.
TOP_MARGIN = 16
CAPACITY_STEP = 32  # capacities are padded to multiples of it, to keep shapes the same
LARGEST_FRONT = 8192
MANTISSA_BITS = 23  # of float32


@dataclass(frozen=True)
class Objective:
    """A column to minimise, or to maximise where `sign` is -1."""

    column: str
    sign: float = 1.0

    def __post_init__(self) -> None:
        if self.sign not in (1.0, -1.0):
            raise ValueError(
                f"objective {self.column}: expected a sign of 1 or -1, got {self.sign}."
            )


@dataclass(frozen=True)
class Histogram:
    """A column counted in `bins` bins that are equally wide in its logarithm."""

    column: str
    low: float
    high: float
    bins: int = 256

    def __post_init__(self) -> None:
        if not (0.0 < self.low < self.high < math.inf) or not 1 <= self.bins <= 65536:
            raise ValueError(
                f"histogram of {self.column}: expected 0 < low < high and 1 to 65536 "
                f"bins, got {self.low}, {self.high} and {self.bins}."
            )


@dataclass(frozen=True)
class Groups:
    """A column of whole numbers from 0 to `count` - 1; others belong to no group."""

    column: str
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 65536:
            raise ValueError(
                f"groups by {self.column}: expected 1 to 65536 groups, got {self.count}."
            )


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What to keep of all feasible points; memory goes with this, not with the space.

    Args:
        objectives: Ranked lists, one for each, and the best of every group by each.
        top: Length of the ranked lists.
        front: Two to four objectives whose Pareto front is kept, or none.
        front_capacity: Most points of the front.
        front_epsilon: Once the exact front outgrows its capacity, points in one cell of a
            logarithmic grid are one; the cells are at most this wide, relatively, and
            twice as wide each time that the capacity is reached again.
        groups: Column that tells groups apart, or none.
        histograms: Columns whose distribution is counted.
        required: Reasons (without `slack_`) that the nearest infeasible point may not miss.
    """

    objectives: tuple[Objective, ...] = ()
    top: int = 10
    front: tuple[Objective, ...] = ()
    front_capacity: int = 1024
    front_epsilon: float = 1e-3
    groups: Groups | None = None
    histograms: tuple[Histogram, ...] = ()
    required: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.front and not 2 <= len(self.front) <= 4:
            raise ValueError(
                f"front: expected 2 to 4 objectives, got {len(self.front)}."
            )
        if not 1 <= self.top <= 4096:
            raise ValueError(f"top: expected 1 to 4096 points, got {self.top}.")
        if not 2 <= self.front_capacity <= LARGEST_FRONT:
            raise ValueError(
                f"front capacity: expected 2 to {LARGEST_FRONT}, "
                f"got {self.front_capacity}."
            )
        if not 2.0**-20 <= self.front_epsilon <= 0.5:
            raise ValueError(
                f"front epsilon: expected 1e-6 to 0.5, got {self.front_epsilon}."
            )
        _unique("objectives", (one.column for one in self.objectives))
        _unique("front", (one.column for one in self.front))
        _unique("histograms", (one.column for one in self.histograms))
        if self.groups is not None and not self.objectives:
            raise ValueError("groups: expected an objective to be best by, got none.")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read, besides slacks; the others are never computed."""
        named = [one.column for one in (*self.objectives, *self.front)]
        named += [one.column for one in self.histograms]
        named += [self.groups.column] if self.groups is not None else []
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The structure of a `Keep`: another one is another program."""

    columns: tuple[str, ...]  # read, besides slacks
    reasons: tuple[str, ...]
    required: tuple[bool, ...]  # by reason
    objectives: tuple[Objective, ...]
    top_capacity: int
    front: tuple[Objective, ...]
    front_capacity: int
    group: str | None
    group_capacity: int
    histograms: tuple[tuple[str, int], ...]  # column and bins


@pytree
class Numbers:
    """The numbers of a `Keep`: traced."""

    epsilon_shift: Int[np.ndarray, ""]  # low bits that a cell of the front leaves out
    group_count: Int[np.ndarray, ""]
    log_low: Float[np.ndarray, " histogram"]
    bins_per_log: Float[np.ndarray, " histogram"]


def plan(keep: Keep, names: Iterable[str]) -> Plan:
    """Returns the structure of what is kept of a function with columns `names`.

    Raises:
        ValueError: a column or a required reason is none of `names`.
    """
    known = list(names)
    reasons = tuple(n.removeprefix(SLACK) for n in known if n.startswith(SLACK))
    for column in keep.columns:
        if column not in known:
            raise ValueError(f"keep: expected a column of {known}, got {column!r}.")
    for reason in keep.required:
        if reason not in reasons:
            raise ValueError(
                f"keep: expected required reasons of {list(reasons)}, got {reason!r}."
            )
    return Plan(
        columns=keep.columns,
        reasons=reasons,
        required=tuple(reason in keep.required for reason in reasons),
        objectives=keep.objectives,
        top_capacity=_padded(keep.top + TOP_MARGIN) if keep.objectives else 0,
        front=keep.front,
        front_capacity=keep.front_capacity if keep.front else 0,
        group=keep.groups.column if keep.groups is not None else None,
        group_capacity=_padded(keep.groups.count) if keep.groups is not None else 0,
        histograms=tuple((one.column, one.bins) for one in keep.histograms),
    )


def numbers(keep: Keep) -> Numbers:
    """Returns the numbers of what is kept."""
    shift = math.floor(math.log2(keep.front_epsilon)) + MANTISSA_BITS
    low = [math.log(one.low) for one in keep.histograms]
    per_log = [one.bins / math.log(one.high / one.low) for one in keep.histograms]
    return Numbers(
        epsilon_shift=np.array(shift, np.int32),
        group_count=np.array(keep.groups.count if keep.groups else 0, np.int32),
        log_low=np.array(low, np.float32),
        bins_per_log=np.array(per_log, np.float32),
    )


def as_mapping(keep: Keep) -> dict[str, Any]:
    """Returns a `Keep` as plain values, for a file."""
    return asdict(keep)


def from_mapping(values: Mapping[str, Any]) -> Keep:
    """Returns the `Keep` of plain values: the inverse of `as_mapping`."""
    groups = values["groups"]
    return Keep(
        objectives=tuple(Objective(**one) for one in values["objectives"]),
        top=values["top"],
        front=tuple(Objective(**one) for one in values["front"]),
        front_capacity=values["front_capacity"],
        front_epsilon=values["front_epsilon"],
        groups=Groups(**groups) if groups is not None else None,
        histograms=tuple(Histogram(**one) for one in values["histograms"]),
        required=tuple(values["required"]),
    )


def _padded(count: int) -> int:
    return count + -count % CAPACITY_STEP


def _unique(where: str, columns: Iterable[str]) -> None:
    found = list(columns)
    if len(set(found)) != len(found):
        raise ValueError(f"{where}: expected every column once, got {found}.")
