"""Which overlap split to take, and what simpler rules would have cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlens.fronts import pareto_front
from jaxlens.optimize.overlap_ops import op_table
from jaxlens.optimize.overlap_plans import Phase, Plan, plan
from jaxlens.optimize.overlap_search import Front, search
from jaxlens.optimize.overlap_spaces import (
    Positions,
    SplitSpace,
    evaluate,
    everything,
    feasible,
    points,
)
from jaxlens.optimize.staging import Columns, Question
from jaxlens.serving import requested_clock

USUAL_STAGES = 4  # of staged overlap in Megatron-LM; EnergyLens, arXiv 2605.14249
SLOWDOWN = 1.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One point of the grid and what it takes."""

    tensor_parallel: int
    batch: int
    stages: int
    communication_sms: int
    seconds: float
    joules_per_token: float
    watts_per_gpu: float
    link_share: float  # of the joules
    clock_hz: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """A rule of thumb at the recommended layout, and over all layouts."""

    name: str
    setting: Setting
    extra_seconds: float  # relative to the recommended setting
    extra_joules: float
    recall: float  # of the front, by the best trade-offs of the rule


@dataclass(frozen=True, kw_only=True, eq=False)
class Advice:
    """The front, the setting to take, and the rules beside it."""

    front: tuple[Setting, ...]  # fastest first
    recommended: Setting
    slowdown: float
    rules: tuple[Rule, ...]
    evaluations: int
    relaxed_evaluations: int
    rule_evaluations: int  # not part of the search
    space: SplitSpace
    seconds: float


def advise(asked: Question, space: SplitSpace, slowdown: float = SLOWDOWN) -> Advice:
    """Returns the front by search and the least energy within `slowdown` of the fastest."""
    if not slowdown >= 1.0:
        raise ValueError(
            f"slowdown: expected a number from 1, got {slowdown:g}; it is relative to "
            f"the fastest setting."
        )
    started = time.perf_counter()
    found = search(asked, space)
    seconds = found.columns["seconds"]
    at = int(np.flatnonzero(seconds <= slowdown * seconds[0] * (1.0 + 1e-12))[-1])
    front = tuple(
        setting(space, found.positions, found.columns, row)
        for row in range(len(found.positions))
    )
    rules, priced = _rules(asked, space, found, at, front[at])
    return Advice(
        front=front,
        recommended=front[at],
        slowdown=slowdown,
        rules=rules,
        evaluations=found.evaluations,
        relaxed_evaluations=found.relaxed_evaluations,
        rule_evaluations=priced,
        space=space,
        seconds=time.perf_counter() - started,
    )


def advise_plan(
    phases: Sequence[tuple[Question, float]],
    layout: tuple[int, int],
    space: SplitSpace,
    slowdown: float = SLOWDOWN,
    *,
    per: str = "op",
    clocks: Sequence[float] | None = None,
) -> Plan:
    """Returns a split for each collective and a clock for each phase.

    Args:
        phases: What is asked in each, and how many steps of it a request takes.
        layout: Tensor-parallel degree and batch.
        space: The stages and SMs to choose from.
        slowdown: Limit on the request, relative to its fastest choice.
        per: "op" or "kind".
        clocks: SM clocks; by default all that the chip supports.
    """
    chip, base = phases[0][0].profile.chip, phases[0][0].base
    if clocks is None:
        clocks = supported_clocks(phases[0][0])
    tables = [
        Phase(
            name=asked.phase,
            table=op_table(
                asked, *layout, clocks, space.stages, space.communication_sms
            ),
            steps=steps,
        )
        for asked, steps in phases
    ]
    cap = min(float(base.power_cap_watts), float(chip.tdp_watts))
    return plan(tables, slowdown, cap * float(chip.cap_share), per=per)


def supported_clocks(asked: Question) -> list[float]:
    """Returns the clocks of the chip up to the one that is asked for."""
    chip = asked.profile.chip
    top = float(requested_clock(chip, asked.base))
    low, step = float(chip.min_hz), float(chip.step_hz)
    count = int((top - low) / step * (1.0 + 1e-9))
    steps = [low + index * step for index in range(count + 1)]
    return steps if top - steps[-1] < 1.0 else [*steps, top]


def setting(
    space: SplitSpace, positions: Positions, columns: Columns, row: int
) -> Setting:
    """Returns one row of priced positions with its knobs."""
    knobs = [
        int(axis[place]) for axis, place in zip(space.axes, positions[row], strict=True)
    ]
    return Setting(
        tensor_parallel=knobs[0],
        batch=knobs[1],
        stages=knobs[2],
        communication_sms=knobs[3],
        seconds=float(columns["seconds"][row]),
        joules_per_token=float(columns["joules_per_token"][row]),
        watts_per_gpu=float(columns["watts_per_gpu"][row]),
        link_share=float(columns["link_joules"][row] / columns["joules"][row]),
        clock_hz=float(columns["clock_hz"][row]),
    )


def recall(found: Positions, true: Positions) -> float:
    """Returns the share of `true` that is in `found`."""
    members = {tuple(row) for row in found}
    return sum(tuple(row) in members for row in true) / len(true)


def rule_positions(space: SplitSpace) -> dict[str, Positions]:
    """Returns what has to be priced to follow each rule in every layout.

    "no overlap": one stage. "half the SMs": those for communication, in the usual 4 stages.
    "max overlap": the most stages, with every SM count to choose the shortest step from.
    """
    grid = everything(space)
    grid = grid[feasible(space, grid)]
    stages, sms = np.array(space.stages), np.array(space.communication_sms)
    usual = stages[np.argmin(np.abs(stages - USUAL_STAGES))]
    half = sms[np.argmin(np.abs(sms - (sms[-1] + 1) / 2))]
    own, last = stages[grid[:, 2]], grid[:, 3] == sms.size - 1
    allowed = np.full(len(grid), stages[-1])
    if space.sequences_are_rows:
        allowed = np.minimum(allowed, np.array(space.batch)[grid[:, 1]])
    most = stages[np.searchsorted(stages, allowed, side="right") - 1]
    found = {
        "no overlap": (own == 1) & last,
        "half the SMs": (own == np.minimum(usual, most)) & (sms[grid[:, 3]] == half),
        "max overlap": (own == most) & ((own > 1) | last),
    }
    return {name: grid[chosen] for name, chosen in found.items() if chosen.any()}


def follow_rules(
    asked: Question, space: SplitSpace
) -> tuple[dict[str, tuple[Positions, Columns]], int]:
    """Returns what each rule chooses in every layout, and how many prices that took."""
    found, priced = {}, 0
    for name, positions in rule_positions(space).items():
        columns = evaluate(asked, space, positions)
        rows = _shortest(positions, columns["seconds"])
        found[name] = positions[rows], {n: v[rows] for n, v in columns.items()}
        priced += len(positions)
    return found, priced


def rule_recall(chosen: Positions, columns: Columns, true: Positions) -> float:
    """Returns the share of a front that is among the best trade-offs of a rule."""
    both = points(columns, np.ones(len(chosen), bool))
    return recall(chosen[pareto_front(both)], true)


def _rules(
    asked: Question, space: SplitSpace, found: Front, at: int, best: Setting
) -> tuple[tuple[Rule, ...], int]:
    followed, priced = follow_rules(asked, space)
    rules = []
    for name, (positions, columns) in followed.items():
        same = (positions[:, :2] == found.positions[at][:2]).all(axis=1)
        if not same.any():
            continue
        own = setting(space, positions, columns, int(np.argmax(same)))
        rules.append(
            Rule(
                name=name,
                setting=own,
                extra_seconds=own.seconds / best.seconds - 1.0,
                extra_joules=own.joules_per_token / best.joules_per_token - 1.0,
                recall=rule_recall(positions, columns, found.positions),
            )
        )
    return tuple(rules), priced


def _shortest(positions: Positions, seconds: np.ndarray) -> np.ndarray:
    """Rows of the shortest step in each layout."""
    order = np.lexsort((seconds, positions[:, 1], positions[:, 0]))
    _, first = np.unique(positions[order][:, :2], axis=0, return_index=True)
    return order[first]
