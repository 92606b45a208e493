"""What a stream tells about a space: its best points, distributions and what rules out.

Surveys of parts of a space join to the survey of the whole, from memory or from files.
"""

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxlens.archives import shift_of
from jaxlens.findings import (
    NOWHERE,
    Counts,
    Finds,
    Slots,
    add,
    gaps,
    indices,
    join,
    pack,
    unpack,
)
from jaxlens.fronts import pareto_front
from jaxlens.keeps import (
    MANTISSA_BITS,
    Keep,
    Objective,
    Plan,
    as_mapping,
    from_mapping,
    numbers,
    plan,
)

FORMAT = 1
Refine = Callable[[Int[np.ndarray, " point"]], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some points: their indices in the space and, in float64, every column."""

    index: Int[np.ndarray, " point"]
    columns: dict[str, Float[np.ndarray, " point"]]

    def rows(self, index: Int[np.ndarray, " point"]) -> "Chosen":
        """Returns the points of some indices, all of which are among these."""
        at = np.searchsorted(self.index, index)
        return Chosen(index, {name: one[at] for name, one in self.columns.items()})


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey:
    """What was kept of part of a space, or of all of it.

    Args:
        keep: What was asked for.
        names: Columns of the function.
        first: Index of the first point asked for.
        count: How many points were asked for.
        fingerprint: Tells function, numbers and space apart.
        finds: What is best, as it was found in float32.
        counts: How many points are what.
        points: All points that `finds` names, by index, evaluated in float64.
        seconds: Wall time of evaluation, compilation apart.
        timed: How many points were evaluated in those seconds.
        interrupted: Whether it ended before all points were evaluated.
    """

    keep: Keep
    names: tuple[str, ...]
    first: int
    count: int
    fingerprint: str
    finds: Finds
    counts: Counts
    points: Chosen
    seconds: float
    timed: int
    interrupted: bool

    @cached_property
    def plan(self) -> Plan:
        """The structure of what was kept."""
        return plan(self.keep, self.names)

    @property
    def evaluated(self) -> int:
        """How many points were evaluated."""
        return self.counts.evaluated

    @property
    def feasible(self) -> int:
        """How many of them meet every limit."""
        return self.counts.feasible

    @property
    def configurations_per_second(self) -> float:
        """Points evaluated per second, compilation apart."""
        return self.timed / self.seconds if self.seconds > 0.0 else 0.0

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """Ranges that were asked for and not evaluated, as first index and count."""
        return gaps(self.counts.covered, self.first, self.count)

    @cached_property
    def top(self) -> dict[str, Chosen]:
        """The best points by each objective, best first."""
        pairs = zip(self.keep.objectives, self.finds.top, strict=True)
        return {
            one.column: self._ranked(one, slots, self.keep.top) for one, slots in pairs
        }

    @cached_property
    def groups(self) -> dict[str, dict[int, Chosen]]:
        """The best point of each group that has one, by each objective."""
        if self.keep.groups is None:
            return {}
        pairs = zip(self.keep.objectives, self.finds.group, strict=True)
        return {
            one.column: {
                group: self.points.rows(slots.index[group : group + 1])
                for group in range(self.keep.groups.count)
                if slots.index[group] < NOWHERE
            }
            for one, slots in pairs
        }

    @cached_property
    def front(self) -> Chosen:
        """The Pareto front, by its first objective; of equal points the first."""
        if self.finds.front is None:
            return self.points.rows(np.zeros(0, np.int64))
        found = self.points.rows(np.sort(self.finds.front.index))
        objectives = [one.sign * found.columns[one.column] for one in self.keep.front]
        return found.rows(found.index[pareto_front(np.stack(objectives, axis=1))])

    @property
    def overflow(self) -> bool:
        """Whether the front outgrew its capacity, so that close points became one."""
        return self.finds.front is not None and self.finds.front.level > 0

    @property
    def front_epsilon(self) -> float:
        """Relative width below which points of the front are one; 0 is exact.

        Every point is then within this of a point that is kept, in all objectives.
        """
        if self.finds.front is None or not self.overflow:
            return 0.0
        shift = int(numbers(self.keep).epsilon_shift)
        return 2.0 ** (int(shift_of(self.finds.front.level, shift)) - MANTISSA_BITS)

    @property
    def nearest(self) -> Chosen:
        """The infeasible point whose worst slack is largest, or no point."""
        index = self.finds.nearest.index
        return self.points.rows(index[index < NOWHERE])

    @property
    def infeasible_by_reason(self) -> dict[str, int]:
        """How many points miss each limit; many miss several."""
        return _by_name(self.plan.reasons, self.counts.missed)

    @property
    def infeasible_by_one_reason(self) -> dict[str, int]:
        """How many points miss one limit alone, by that limit."""
        return _by_name(self.plan.reasons, self.counts.alone)

    def histogram(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns edges and counts of the bins of feasible points.

        The first count is of all values below the lowest edge, the last of all from the
        highest on: there are two more counts than bins.
        """
        for one, counts in zip(
            self.keep.histograms, self.counts.histograms, strict=True
        ):
            if one.column == column:
                return np.geomspace(one.low, one.high, one.bins + 1), counts
        raise ValueError(
            f"histogram: expected one of {[one.column for one in self.keep.histograms]}, "
            f"got {column!r}."
        )

    def quantiles(self, column: str, shares: Sequence[float]) -> list[float]:
        """Returns the values that shares of the feasible points do not exceed.

        Right to the width of a bin. NaN without feasible points; the lowest or highest
        edge stands for all that lies beyond.
        """
        edges, counts = self.histogram(column)
        total = int(counts.sum())
        if total == 0:
            return [math.nan] * len(shares)
        logs = np.log(np.concatenate([edges[:1], edges, edges[-1:]]))
        reached = np.concatenate([[0], np.cumsum(counts)])
        found = []
        for share in shares:
            rank = share * total
            bin_ = int(np.searchsorted(reached[1:], rank, side="left"))
            bin_ = min(bin_, counts.size - 1)
            within = (rank - reached[bin_]) / max(int(counts[bin_]), 1)
            within = min(max(within, 0.0), 1.0)
            log = logs[bin_] + within * (logs[bin_ + 1] - logs[bin_])
            found.append(float(np.exp(log)))
        return found

    def _ranked(self, objective: Objective, slots: Slots, count: int) -> Chosen:
        found = self.points.rows(np.sort(slots.index[slots.index < NOWHERE]))
        values = objective.sign * found.columns[objective.column]
        return found.rows(found.index[np.argsort(values, kind="stable")[:count]])


def merge(surveys: Iterable[Survey]) -> Survey:
    """Returns the survey of all points of some surveys of different points.

    Raises:
        ValueError: none, or of different questions, or of the same points.
    """
    given = list(surveys)
    if not given:
        raise ValueError("merge: expected at least one survey, got none.")
    return reduce(_merge, given)


def save(survey: Survey, path: str | os.PathLike[str]) -> None:
    """Writes a survey to a file, all of it or nothing."""
    write_atomically(Path(path), to_bytes(survey))


def load(path: str | os.PathLike[str]) -> Survey:
    """Returns the survey in a file.

    Raises:
        ValueError: the file is none of a survey.
    """
    return from_bytes(Path(path).read_bytes(), where=str(path))


def to_bytes(survey: Survey) -> bytes:
    """Returns a survey as the contents of a file."""
    header = {
        "format": FORMAT,
        "keep": as_mapping(survey.keep),
        "names": survey.names,
        "first": survey.first,
        "count": survey.count,
        "fingerprint": survey.fingerprint,
        "seconds": survey.seconds,
        "timed": survey.timed,
        "interrupted": survey.interrupted,
    }
    arrays = pack(survey.finds, survey.counts)
    arrays["points.index"] = survey.points.index
    for name, column in survey.points.columns.items():
        arrays[f"points.{name}"] = column
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{"header": text, **arrays})
    return buffer.getvalue()


def from_bytes(data: bytes, *, where: str = "survey") -> Survey:
    """Returns the survey in the contents of a file: the inverse of `to_bytes`."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = dict(archive)
        header = json.loads(arrays.pop("header").tobytes())
        if header["format"] != FORMAT:
            raise KeyError("format")
        keep, names = from_mapping(header["keep"]), tuple(header["names"])
        finds, counts = unpack(arrays, plan(keep, names))
        prefix = "points."
        points = {
            name.removeprefix(prefix): column
            for name, column in arrays.items()
            if name.startswith(prefix)
        }
        index = points.pop("index")
    except Exception as error:
        raise ValueError(
            f"{where}: expected a survey that jaxlens wrote, got a file that is damaged "
            f"or something else ({type(error).__name__}); remove it to start anew."
        ) from error
    return Survey(
        keep=keep,
        names=names,
        first=header["first"],
        count=header["count"],
        fingerprint=header["fingerprint"],
        finds=finds,
        counts=counts,
        points=Chosen(index, points),
        seconds=header["seconds"],
        timed=header["timed"],
        interrupted=header["interrupted"],
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file under another name first, so that no reader sees a part of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def select(points: Chosen, index: Int[np.ndarray, " point"], refine: Refine) -> Chosen:
    """Returns the points of rising indices; those not among `points` are evaluated."""
    new = np.setdiff1d(index, points.index)
    if new.size:
        points = _concatenate(points, Chosen(new, refine(new)))
    return points.rows(index)


def _merge(a: Survey, b: Survey) -> Survey:
    same = a.fingerprint == b.fingerprint and a.keep == b.keep and a.names == b.names
    if not same:
        raise ValueError(
            "merge: expected surveys of one function, space and `Keep`, got different "
            "ones; compare their best points instead."
        )
    shift = int(numbers(a.keep).epsilon_shift)
    finds = join(a.finds, b.finds, a.plan, shift)
    counts = add(a.counts, b.counts)
    first = min(a.first, b.first)
    count = max(a.first + a.count, b.first + b.count) - first
    return Survey(
        keep=a.keep,
        names=a.names,
        first=first,
        count=count,
        fingerprint=a.fingerprint,
        finds=finds,
        counts=counts,
        points=_concatenate(a.points, b.points).rows(indices(finds)),
        seconds=max(a.seconds, b.seconds),
        timed=a.timed + b.timed,
        interrupted=bool(gaps(counts.covered, first, count)),
    )


def _concatenate(a: Chosen, b: Chosen) -> Chosen:
    if not a.index.size:
        return b
    index, at = np.unique(np.concatenate([a.index, b.index]), return_index=True)
    columns: dict[str, Any] = {
        name: np.concatenate([a.columns[name], b.columns[name]])[at]
        for name in a.columns
    }
    return Chosen(index, columns)


def _by_name(names: Sequence[str], values: np.ndarray) -> dict[str, int]:
    return {name: int(value) for name, value in zip(names, values, strict=True)}
