"""The least energy of one request with a split for each collective and a clock per phase.

A request is a prefill and some decode steps, each with tables of what its operations take at
every clock (`overlap_ops`). Under a limit on the sum of their times the choice separates by
duality. Two things join the operations of a step, and both are kept exact:

* The host hides behind the GPU: a step lasts max_w(T, host). What it adds is convex and falls
  in T, so a tangent bounds it from below; the choice itself is priced with the true value.
* The power cap: clocks at which some split of the frontier draws more on average than the cap
  lets through are left out, as the GPU would not hold them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from jaxlens.optimize.duality import Item, Mode, Solution, segments, solve, totals
from jaxlens.optimize.overlap_ops import OpTable, waiting_seconds
from jaxlens.optimize.overlap_uniform import Uniform, best_uniforms

GRANULARITIES = ("op", "kind")
REPAIRS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Phase:
    """One kind of step, and how often a request takes it."""

    name: str
    table: OpTable
    steps: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """So many layers of one kind take one split."""

    phase: str
    operation: str
    layers: int
    stages: int
    communication_sms: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The answer, how good it is at least, and what simpler settings take."""

    feasible: bool
    clock_hz: dict[str, float]
    choices: tuple[Choice, ...]
    seconds: float
    joules: float  # of all GPUs
    limit_seconds: float
    fastest_seconds: float
    bound_joules: float
    shadow_price_watts: float  # joules saved per extra second of the limit
    uniform: dict[str, Uniform]  # the best of simpler kinds, where one meets the limit
    watts_per_gpu: dict[str, float]
    clocks_above_cap: dict[str, int]
    evaluations: int
    candidates: int  # clock combinations that were bounded
    elapsed_seconds: float

    @property
    def gap(self) -> float:
        """The duality gap, relative."""
        return (self.joules - self.bound_joules) / self.joules


def plan(
    phases: Sequence[Phase],
    slowdown: float,
    cap_watts: float,
    *,
    per: str = "op",
) -> Plan:
    """Returns the choice of least energy within `slowdown` times the fastest.

    Args:
        phases: Tables of the steps of a request.
        slowdown: Limit on the time of the request, relative to the fastest choice.
        cap_watts: What a GPU under its power cap draws on average.
        per: "op": every layer on its own; "kind": layers of one kind alike.

    Raises:
        ValueError: No clock stays below the cap, or a slowdown below 1.
    """
    started = time.perf_counter()
    if per not in GRANULARITIES:
        raise ValueError(f"per: expected one of {', '.join(GRANULARITIES)}, got {per}.")
    if not slowdown >= 1.0:
        raise ValueError(
            f"slowdown: expected a number from 1, got {slowdown:g}; it is relative to "
            f"the fastest choice."
        )
    allowed = [below_cap(phase.table, cap_watts) for phase in phases]
    fastest = sum(
        phase.steps * float(_fastest(phase.table)[ok].min())
        for phase, ok in zip(phases, allowed, strict=True)
    )
    limit = slowdown * fastest
    found = _solved(phases, allowed, limit, slowdown, per)
    clocks = _clock_rows(found, allowed)
    seconds, joules, watts = realised(phases, found, clocks, per)
    uniform = best_uniforms([(p.table, p.steps) for p in phases], allowed, limit)
    return Plan(
        feasible=found.feasible,
        clock_hz={
            p.name: float(p.table.clock_hz[c])
            for p, c in zip(phases, clocks, strict=True)
        },
        choices=tuple(_choices(phases, found, per)),
        seconds=seconds,
        joules=joules,
        limit_seconds=limit,
        fastest_seconds=fastest,
        bound_joules=found.bound_joules,
        shadow_price_watts=found.multiplier,
        uniform=uniform,
        watts_per_gpu=watts,
        clocks_above_cap={
            p.name: int((~ok).sum()) for p, ok in zip(phases, allowed, strict=True)
        },
        evaluations=sum(phase.table.evaluations for phase in phases),
        candidates=found.candidates,
        elapsed_seconds=time.perf_counter() - started,
    )


def below_cap(table: OpTable, cap_watts: float) -> Bool[np.ndarray, " clock"]:
    """Returns at which clocks every efficient choice stays below the cap."""
    rows = []
    for clock in range(table.clock_hz.size):
        line = segments(_mode(table, clock, 1.0, 0.0, "op"))
        seconds = line.seconds + np.concatenate([[0.0], np.cumsum(line.extra)])
        joules = line.joules - np.concatenate([[0.0], np.cumsum(line.saved)])
        rows.append((joules / table.gpus / seconds).max() <= cap_watts)
    if not any(rows):
        raise ValueError(
            f"power cap: expected one that some clock stays below, got "
            f"{cap_watts:.0f} W; raise it."
        )
    return np.array(rows)


def realised(
    phases: Sequence[Phase], found: Solution, clocks: Sequence[int], per: str
) -> tuple[float, float, dict[str, float]]:
    """Returns true seconds and joules of a choice, and watts by phase."""
    seconds, joules, watts = 0.0, 0.0, {}
    for phase, counts, clock in zip(phases, found.counts, clocks, strict=True):
        table = phase.table
        plain = _mode(table, clock, 1.0, 0.0, per)
        gpu_seconds, own = totals([plain], [counts])
        added = float(waiting_seconds(gpu_seconds, table)[0])
        own += table.gpus * float(table.waiting_watts[clock]) * added
        lasts = gpu_seconds + added
        watts[phase.name] = own / table.gpus / lasts
        seconds, joules = seconds + phase.steps * lasts, joules + phase.steps * own
    return seconds, joules, watts


def _solved(
    phases: Sequence[Phase],
    allowed: Sequence[np.ndarray],
    limit: float,
    slowdown: float,
    per: str,
) -> Solution:
    """A choice that meets the limit with the host's true time; the bound is the first's."""
    groups = [
        [
            _tangent_mode(phase, int(clock), slowdown, per)
            for clock in np.flatnonzero(ok)
        ]
        for phase, ok in zip(phases, allowed, strict=True)
    ]
    found = solve(groups, limit)
    bound, room = found.bound_joules, limit
    for _ in range(REPAIRS):
        clocks = _clock_rows(found, allowed)
        seconds, _, _ = realised(phases, found, clocks, per)
        if seconds <= limit * (1.0 + 1e-9) or not found.feasible:
            break
        room -= 1.5 * (seconds - limit)
        found = solve(groups, room)
    values = {**vars(found), "bound_joules": min(bound, found.bound_joules)}
    return Solution(**values)


def _clock_rows(found: Solution, allowed: Sequence[np.ndarray]) -> list[int]:
    return [
        int(np.flatnonzero(ok)[mode])
        for ok, mode in zip(allowed, found.modes, strict=True)
    ]


def _fastest(table: OpTable) -> Float[np.ndarray, " clock"]:
    copies = np.array(table.copies, float)
    gpu = table.rest_seconds + table.seconds.min(axis=2) @ copies
    return gpu + waiting_seconds(gpu, table)[0]


def _tangent_mode(phase: Phase, clock: int, slowdown: float, per: str) -> Mode:
    """A clock of a phase, all steps together, the host's time by its tangent."""
    table = phase.table
    line = segments(_mode(table, clock, 1.0, 0.0, "op"))
    at = line.seconds * (1.0 + 0.5 * (slowdown - 1.0))
    added, slope = (float(v) for v in waiting_seconds(at, table))
    watts = table.gpus * float(table.waiting_watts[clock])
    mode = _mode(table, clock, 1.0 + slope, watts * slope, per)
    constant = added - slope * at
    n = phase.steps
    return Mode(
        seconds=n * (mode.seconds + constant),
        joules=n * (mode.joules + watts * constant),
        items=tuple(
            Item(seconds=n * i.seconds, joules=n * i.joules, copies=i.copies)
            for i in mode.items
        ),
    )


def _mode(
    table: OpTable, clock: int, time_scale: float, watts: float, per: str
) -> Mode:
    """One step at a clock: seconds scaled, and `watts` more over the GPU's time."""
    rest = float(table.rest_seconds[clock])
    items = []
    for kind, copies in enumerate(table.copies):
        seconds, joules = table.seconds[clock, kind], table.joules[clock, kind]
        joules = table.gpus * joules + watts * seconds
        alike = copies if per == "kind" else 1
        items.append(
            Item(
                seconds=seconds * time_scale * alike,
                joules=joules * alike,
                copies=copies // alike,
            )
        )
    fixed = table.gpus * float(table.rest_joules[clock]) + watts * rest
    return Mode(seconds=rest * time_scale, joules=fixed, items=tuple(items))


def _choices(phases: Sequence[Phase], found: Solution, per: str) -> list[Choice]:
    rows = []
    for phase, counts in zip(phases, found.counts, strict=True):
        table = phase.table
        for kind, held in enumerate(counts):
            for option, count in sorted(held.items(), key=lambda pair: -pair[1]):
                layers = count * (table.copies[kind] if per == "kind" else 1)
                rows.append(
                    Choice(
                        phase=phase.name,
                        operation=table.kinds[kind],
                        layers=layers,
                        stages=round(float(table.stages[option])),
                        communication_sms=round(float(table.communication_sms[option])),
                    )
                )
    return rows
