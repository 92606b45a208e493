"""Which of the compared deployments are best, tied, on the front or nearest, and why."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlens import spaces
from jaxlens.comparisons import OBJECTIVES, ExploreResult
from jaxlens.expressions import slack
from jaxlens.fronts import best_of_each, pareto_front
from jaxlens.intervals import NORMAL_80
from jaxlens.limits import REASONS, SIZED
from jaxlens.questions import AXES
from jaxlens.streams import exact
from jaxlens.sweeps import outcome

CAPPED = 0.995  # of the requested clock: below it the power cap is felt
FLAT = 1e-4  # relative: a neighbour that is better by less is as good
LAYOUT = ("gpu", "tensor_parallel", "expert_parallel", "pipeline_parallel")
# Which scatter an objective has.
SCATTER: Mapping[str, tuple[str, ...]] = {
    "joules_per_output_token": ("energy",),
    "output_tokens_per_joule": ("energy",),
    "wall_joules_per_output_token": ("energy",),
    "grams_co2_per_million_output_tokens": ("energy",),
    "seconds_per_output_token": ("latency",),
    "output_tokens_per_second": ("latency",),
    "output_tokens_per_second_per_gpu": ("latency",),
    "dollars_per_million_output_tokens": ("energy", "latency"),
}
# Share of the variance of an error that deployments of one kind have in common.
# Measured: log residuals of J/token and TPOT of 327 ML.ENERGY v3 runs (vLLM 0.11, H100 and
# B200): 27 % and 29 % of their variance is between the 32 pairs of model and GPU.
SHARED_VARIANCE = 0.28


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a deployment is recommended."""

    binds: tuple[str, ...]  # what keeps it from doing better
    runner_up: int | None  # position of the best deployment of another layout or kind
    margin: float | None  # relative, by which the runner-up is worse
    tied: bool | None  # whether they cannot be told apart; None if that is unknown


def best(result: ExploreResult, count: int) -> list[int]:
    """Returns the best deployment of each of the `count` best layouts, best first.

    Equal ones rank by GPUs. Replicas of a model without experts share nothing, so their
    number makes no layout of its own.
    """
    columns = result.columns
    routed = bool((columns["expert_parallel"] > 1).any())
    names = (*LAYOUT, "data_parallel") if routed else LAYOUT
    groups = np.stack([columns[name] for name in names], axis=1)
    return [int(index) for index in best_of_each(result.ranking, groups)[:count]]


def best_of_each_gpu(result: ExploreResult) -> list[int]:
    """Returns the best deployment of each kind that has one, best first."""
    groups = result.columns["gpu"][:, None]
    return [int(index) for index in best_of_each(result.ranking, groups)]


def front(
    result: ExploreResult,
    latency: str = "seconds_per_output_token",
    gpu: int | None = None,
    *,
    within_limits: bool = True,
) -> np.ndarray:
    """Returns the deployments that trade energy against latency best, fastest first.

    Args:
        result: What was compared.
        latency: "seconds_per_output_token" or "seconds_prefill".
        gpu: Position of a kind of deployment; by default all are compared.
        within_limits: Whether the limits on `latency` hold; other limits always do.
    """
    own = {
        "seconds_per_output_token": ("tpot",),
        "seconds_prefill": ("prefill", "ttft", "ttft_p99"),
    }[latency]
    names = (latency, "joules_per_output_token")
    return trade_off(result, names, gpu, lifted=() if within_limits else own)


def trade_off(
    result: ExploreResult,
    objectives: Sequence[str],
    gpu: int | None = None,
    *,
    lifted: Sequence[str] = (),
) -> np.ndarray:
    """Returns the deployments that no other beats in 2 to 4 objectives.

    Args:
        result: What was compared.
        objectives: Of `OBJECTIVES`; the result is ordered by the first, best first.
        gpu: Position of a kind of deployment; by default all are compared.
        lifted: Reasons that rule nothing out here.
    """
    columns = result.columns
    held = [reason for reason in REASONS if reason not in lifted]
    chosen = np.all([result.meets(reason) for reason in held], axis=0)
    if gpu is not None:
        chosen &= columns["gpu"] == gpu
    where = np.flatnonzero(chosen)
    signed = [OBJECTIVES[name] * columns[name][where] for name in objectives]
    return where[pareto_front(np.stack(signed, axis=1))]


def ruled_out(result: ExploreResult) -> dict[str, int]:
    """Returns how many deployments miss each limit; many miss several."""
    if not result.whole:
        return _counted(survey.infeasible_by_reason for survey in result.surveys)
    return {reason: int((~result.meets(reason)).sum()) for reason in REASONS}


def ruled_out_by_one(result: ExploreResult) -> dict[str, int]:
    """Returns how many deployments miss one limit alone, by that limit."""
    if not result.whole:
        return _counted(survey.infeasible_by_one_reason for survey in result.surveys)
    missed = np.stack([~result.meets(reason) for reason in REASONS])
    alone = missed.sum(axis=0) == 1
    return {
        reason: int((missed[row] & alone).sum()) for row, reason in enumerate(REASONS)
    }


def nearest(result: ExploreResult) -> int:
    """Returns the deployment that misses its limits by least: the worst slack is best."""
    columns = result.columns
    worst = np.min([columns[f"slack_{reason}"] for reason in SIZED], axis=0)
    legal = np.all(
        [result.meets(name) for name in REASONS if name not in SIZED], axis=0
    )
    if not legal.any():
        legal = result.meets("layout") | True
        worst = np.min([columns[f"slack_{reason}"] for reason in REASONS], axis=0)
    return int(np.argmax(np.where(legal, worst, -np.inf)))


def missed(result: ExploreResult, index: int) -> dict[str, float]:
    """Returns the relative slack of every limit that a deployment misses."""
    slacks = {name: float(result.columns[f"slack_{name}"][index]) for name in REASONS}
    return {reason: value for reason, value in slacks.items() if value < 0.0}


def missed_bounds(result: ExploreResult, index: int) -> list[str]:
    """Returns the bounds of the space that a deployment misses, as text."""
    plan = result.plans[int(result.columns["gpu"][index])]
    values = {name: float(column[index]) for name, column in result.columns.items()}
    facts = {
        name: float(value) for name, value in vars(plan.question.profile.chip).items()
    }
    return [
        bound.text
        for bound in plan.bounds
        if float(slack(bound, {**facts, **values})) < 0.0
    ]


def binds(result: ExploreResult, index: int) -> tuple[str, ...]:
    """Returns what keeps a deployment from doing better, or nothing at an inner optimum.

    The limits that its neighbours in every knob miss which would be better, "largest
    batch" at the end of the range, and "power cap" where the clock gives way to it.
    """
    columns, sign = result.columns, OBJECTIVES[result.objective]
    own = sign * float(columns[result.objective][index])
    found: dict[str, None] = {}
    neighbours, largest = _neighbours(result, index)
    if largest:
        found["largest batch"] = None
    for neighbour in neighbours:
        if sign * neighbour[result.objective] < own - FLAT * abs(own):
            found.update(
                (name, None) for name in REASONS if neighbour[f"slack_{name}"] < 0.0
            )
    if columns["capped_clock_hz"][index] < CAPPED * columns["clock_hz"][index]:
        found["power cap"] = None
    return tuple(found)


def tied(result: ExploreResult, first: int, second: int) -> bool | None:
    """Returns whether two deployments cannot be told apart, None if that is unknown.

    They are tied if the 80 % interval of the ratio of their objectives has 1 in it:

        |ln(a / b)| < z sqrt(s_a^2 + s_b^2 - 2 r s_a s_b)

    with s the scatter of the log residuals of runs that no fit has seen. Deployments of one
    model on one chip under one stack have part of their error in common: r is 0.28, and 0
    for others. Without a fitted profile there is no scatter to go by.
    """
    scatters = [_scatter(result, index) for index in (first, second)]
    if None in scatters:
        return None
    a, b = (float(scatter or 0.0) for scatter in scatters)
    kinds = [result.requests[int(result.columns["gpu"][i])] for i in (first, second)]
    alike = kinds[0].shape.name == kinds[1].shape.name and (
        kinds[0].card.chip,
        kinds[0].card.stack,
    ) == (kinds[1].card.chip, kinds[1].card.stack)
    shared = SHARED_VARIANCE if alike else 0.0
    width = NORMAL_80 * math.sqrt(a * a + b * b - 2.0 * shared * a * b)
    values = [float(result.columns[result.objective][i]) for i in (first, second)]
    return abs(math.log(values[0] / values[1])) < width


def explain(result: ExploreResult, index: int) -> Explanation:
    """Returns why a deployment is recommended: what binds, and who comes next."""
    others = [other for other in best(result, result.size) if other != index]
    own = result.ranking[index]
    after = [other for other in others if result.ranking[other] >= own]
    if not after:
        return Explanation(
            binds=binds(result, index), runner_up=None, margin=None, tied=None
        )
    runner_up = after[0]
    values = [float(result.columns[result.objective][i]) for i in (runner_up, index)]
    ratio = (values[0] / values[1]) ** OBJECTIVES[result.objective]
    return Explanation(
        binds=binds(result, index),
        runner_up=runner_up,
        margin=ratio - 1.0,
        tied=tied(result, index, runner_up),
    )


def _scatter(result: ExploreResult, index: int) -> float | None:
    card = result.requests[int(result.columns["gpu"][index])].card
    names = SCATTER.get(result.objective, ())
    known = [card.scatter[name] for name in names if name in card.scatter]
    return max(known) if known and len(known) == len(names) else None


def _counted(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    listed = list(counts)
    return {reason: sum(one[reason] for one in listed) for reason in REASONS}


def _neighbours(
    result: ExploreResult, index: int
) -> tuple[list[dict[str, float]], bool]:
    """One step in every knob, either way; and whether the batch is the largest of many."""
    gpu = int(result.columns["gpu"][index])
    plan = result.plans[gpu]
    digits = spaces.digits(plan.space, int(result.columns["index"][index]))
    indices, largest = [], False
    for position, (name, count) in enumerate(zip(AXES, plan.space.counts, strict=True)):
        if name == "layout":
            continue
        for step in (1, -1):
            moved = digits[position] + step
            if 0 <= moved < count:
                at = (*digits[:position], moved, *digits[position + 1 :])
                indices.append(spaces.index(plan.space, at))
            elif name == "sequences" and step == 1 and count > 1:
                largest = True
    return _rows(result, gpu, indices), largest


def _rows(
    result: ExploreResult, gpu: int, indices: Sequence[int]
) -> list[dict[str, float]]:
    """Rows of a kind by their indices: from the columns, or evaluated again."""
    if not indices:
        return []
    plan, columns = result.plans[gpu], result.columns
    if result.whole:
        start = sum(plan.size for plan in result.plans[:gpu])
        rows = [start + index for index in indices]
    else:
        columns = exact(outcome, plan.question, plan.space, np.array(indices))
        rows = list(range(len(indices)))
    return [{name: float(c[row]) for name, c in columns.items()} for row in rows]
