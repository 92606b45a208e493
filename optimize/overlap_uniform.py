"""The best settings that treat all collectives alike, from a price for every one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from jaxlens.fronts import pareto_front
from jaxlens.optimize.overlap_ops import OpTable, waiting_seconds

TOLERANCE = 1e-9  # relative, of the time limit
Priced = tuple[OpTable, float]  # a phase, and how often a request takes it
Totals = Float[np.ndarray, "clock option"]


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """A split and a clock for each phase, and what the request takes."""

    splits: tuple[tuple[int, int], ...]  # stages and SMs
    clock_hz: tuple[float, ...]
    seconds: float
    joules: float


def uniform_totals(table: OpTable) -> tuple[Totals, Totals]:
    """Returns seconds and joules of one step, all GPUs, when all take one option."""
    copies = np.array(table.copies, float)
    gpu = table.rest_seconds[:, None] + np.einsum("cko,k->co", table.seconds, copies)
    joules = table.rest_joules[:, None] + np.einsum("cko,k->co", table.joules, copies)
    added = waiting_seconds(gpu, table)[0]
    joules = joules + table.waiting_watts[:, None] * added
    return gpu + added, table.gpus * joules


def best_uniforms(
    phases: Sequence[Priced],
    allowed: Sequence[Bool[np.ndarray, " clock"]],
    limit: float,
) -> dict[str, Uniform]:
    """Returns the least energy within `limit` seconds by kind of setting.

    "split per phase" (and a clock), "one split" (a clock per phase), "one clock" (and one
    split). Kinds of which no setting meets the limit are left out. "fastest" is the shortest
    of all, whatever the limit.
    """
    tables = [table for table, _ in phases]
    shared = _shared(tables)
    seconds, joules = [], []
    for (table, steps), ok in zip(phases, allowed, strict=True):
        t, e = uniform_totals(table)
        seconds.append(np.where(ok[:, None], steps * t, np.nan))
        joules.append(np.where(ok[:, None], steps * e, np.nan))
    found = {"split per phase": _apart(seconds, joules, limit)}
    best: Chosen | None = None
    for columns in shared if len(phases) > 1 else ():
        own = _apart(
            [t[:, [c]] for t, c in zip(seconds, columns, strict=True)],
            [e[:, [c]] for e, c in zip(joules, columns, strict=True)],
            limit,
        )
        if own is not None and (best is None or own.joules < best.joules):
            best = replace(own, columns=columns)
    found["one split"] = best if len(phases) > 1 else found["split per phase"]
    found["one clock"] = _together(seconds, joules, shared, limit)
    least = sum(float(np.nanmin(t)) for t in seconds)
    found["fastest"] = _apart(seconds, joules, least)
    return {name: _named(tables, own) for name, own in found.items() if own is not None}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Positions in the tables of all phases, and the sums."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    seconds: float
    joules: float


def _apart(
    seconds: list[np.ndarray], joules: list[np.ndarray], limit: float
) -> Chosen | None:
    """The best of all combinations: sums of what is on the front of each phase."""
    sums = np.zeros((1, 2))
    places = np.zeros((1, 0), int)
    for t, e in zip(seconds, joules, strict=True):
        both = np.stack([t.ravel(), e.ravel()], axis=1)
        best = pareto_front(both)
        sums = (sums[:, None, :] + both[best][None, :, :]).reshape(-1, 2)
        joined = np.repeat(places, best.size, axis=0)
        added = np.tile(best, len(places))[:, None]
        places = np.concatenate([joined, added], axis=1)
        kept = pareto_front(sums)
        sums, places = sums[kept], places[kept]
    within = np.flatnonzero(sums[:, 0] <= limit * (1.0 + TOLERANCE))
    if within.size == 0:
        return None
    at = within[-1]  # energy falls along the front
    where = [
        np.unravel_index(int(place), t.shape)
        for place, t in zip(places[at], seconds, strict=True)
    ]
    return Chosen(
        rows=tuple(int(row) for row, _ in where),
        columns=tuple(int(column) for _, column in where),
        seconds=float(sums[at, 0]),
        joules=float(sums[at, 1]),
    )


def _together(
    seconds: list[np.ndarray],
    joules: list[np.ndarray],
    shared: list[tuple[int, ...]],
    limit: float,
) -> Chosen | None:
    columns = np.array(shared).T
    t = np.sum([o[:, c] for o, c in zip(seconds, columns, strict=True)], axis=0)
    e = np.sum([o[:, c] for o, c in zip(joules, columns, strict=True)], axis=0)
    found = _apart([t], [e], limit)
    if found is None:
        return None
    rows = found.rows * len(seconds)
    return replace(found, rows=rows, columns=shared[found.columns[0]])


def _shared(tables: Sequence[OpTable]) -> list[tuple[int, ...]]:
    """Positions of every split that all phases offer; of single stages, the one."""
    places = [
        {
            (float(s), float(n) if s > 1.0 else 0.0): column
            for column, (s, n) in enumerate(
                zip(table.stages, table.communication_sms, strict=True)
            )
        }
        for table in tables
    ]
    common = [key for key in places[0] if all(key in own for own in places)]
    return [tuple(own[key] for own in places) for key in common]


def _named(tables: Sequence[OpTable], found: Chosen) -> Uniform:
    return Uniform(
        splits=tuple(
            (round(float(t.stages[c])), round(float(t.communication_sms[c])))
            for t, c in zip(tables, found.columns, strict=True)
        ),
        clock_hz=tuple(
            float(t.clock_hz[row]) for t, row in zip(tables, found.rows, strict=True)
        ),
        seconds=found.seconds,
        joules=found.joules,
    )
