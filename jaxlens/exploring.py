"""The deployment of a model that meets its limits best, and all that were compared."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import jax
import numpy as np

from jaxlens import spaces
from jaxlens.batch import Columns
from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.fronts import best_of_each, pareto_front
from jaxlens.predictions import Estimate, predict
from jaxlens.requests import MOST_GPUS, Request, has_network, prepare
from jaxlens.sweeps import (
    REASONS,
    Layout,
    Limits,
    deployment_space,
    layouts,
    sweep,
)

# Quantity to rank by, and the sign that makes less of it better.
OBJECTIVES: Mapping[str, float] = {
    "joules_per_output_token": 1.0,
    "seconds_per_output_token": 1.0,
    "seconds_prefill": 1.0,
    "watts_per_gpu": 1.0,
    "output_tokens_per_second": -1.0,
    "output_tokens_per_second_per_gpu": -1.0,
}
# Reasons that a limit or another GPU can cure; the others are a matter of the layout.
SIZED = ("memory", "ttft", "tpot")
CAPPED = 0.995  # of the requested clock: below it the power cap is felt
LAYOUT = ("gpu", "tensor_parallel", "expert_parallel", "pipeline_parallel")


@dataclass(frozen=True, kw_only=True, eq=False)
class ExploreResult:
    """Every deployment that was compared, as columns: one entry per deployment.

    Columns hold knobs, results and, per reason in `sweeps.REASONS`, a signed relative
    slack: negative where a deployment is ruled out. `gpu` is a position in `requests`.
    """

    requests: tuple[Request, ...]  # one per kind of GPU
    layouts: tuple[tuple[Layout, ...], ...]
    limits: Limits
    objective: str
    columns: Columns

    @property
    def size(self) -> int:
        """How many deployments were compared."""
        return self.columns["gpu"].size

    @cached_property
    def feasible(self) -> np.ndarray:
        """Whether each deployment meets every limit."""
        return np.all([self.meets(reason) for reason in REASONS], axis=0)

    @cached_property
    def ranking(self) -> np.ndarray:
        """Less is better; NaN where a limit is missed.

        The logarithm of the objective to five digits: what differs less is equal, and then
        fewer GPUs are better.
        """
        logarithm = np.log(np.maximum(self.columns[self.objective], 1e-30), dtype=float)
        rounded = np.round(OBJECTIVES[self.objective] * logarithm, 5)
        fewer = 1e-9 * self.columns["gpus"]
        return np.where(self.feasible, rounded + fewer, np.nan)

    def meets(self, reason: str) -> np.ndarray:
        """Returns whether each deployment has slack as regards one reason."""
        return self.columns[f"slack_{reason}"] >= 0.0


def explore(
    model: str | PathLike[str] | dict[str, Any],
    gpus: Iterable[str],
    workload: Workload | None = None,
    *,
    ttft_seconds: float = UNLIMITED,
    tpot_seconds: float = UNLIMITED,
    max_gpus: int = 16,
    weights: str | None = None,
    kv: str | None = None,
    stack: str | None = None,
    objective: str = "joules_per_output_token",
    progress: Callable[[int, int], None] | None = None,
) -> ExploreResult:
    """Returns all deployments of a model on some kinds of GPU, each judged by limits.

    Args:
        model: HuggingFace id, path to a `config.json` or its contents.
        gpus: Chip ids or files.
        workload: Lengths of the requests.
        ttft_seconds: Limit on the time of one bare prefill: no queueing.
        tpot_seconds: Limit on the mean time per output token.
        max_gpus: Most GPUs of a deployment, all replicas together.
        weights: Number format of the weights; by default the checkpoint's own.
        kv: Number format of the KV cache; by default the checkpoint's own.
        stack: Serving stack id or file.
        objective: Result to rank by, one of `OBJECTIVES`.
        progress: Called with deployments done and in total.

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    _check(objective, max_gpus, ttft=ttft_seconds, tpot=tpot_seconds)
    names = dict.fromkeys(gpus)
    requests = tuple(
        prepare(model, gpu, stack=stack, weights=weights, kv=kv, workload=workload)
        for gpu in names
    )
    if not requests:
        raise ValueError("gpu: expected at least one id such as h100-sxm, got none.")
    limits = Limits(ttft_seconds=float(ttft_seconds), tpot_seconds=float(tpot_seconds))
    laid_out = tuple(_layouts(request, max_gpus) for request in requests)
    total = sum(deployment_space(layout).size for layout in laid_out)
    finished = [0]

    def report(count: int) -> None:
        finished[0] += count
        if progress is not None:
            progress(finished[0], total)

    parts = [
        _swept(position, request, limits, laid_out[position], report)
        for position, request in enumerate(requests)
    ]
    return ExploreResult(
        requests=requests,
        layouts=laid_out,
        limits=limits,
        objective=objective,
        columns={
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        },
    )


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
    """Returns the best deployment on each kind of GPU that has one, best first."""
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
        gpu: Position of a kind of GPU; by default all are compared.
        within_limits: Whether the limit on `latency` holds; other limits always do.
    """
    columns = result.columns
    own = {"seconds_per_output_token": "tpot", "seconds_prefill": "ttft"}[latency]
    held = [reason for reason in REASONS if within_limits or reason != own]
    chosen = np.all([result.meets(reason) for reason in held], axis=0)
    if gpu is not None:
        chosen &= columns["gpu"] == gpu
    where = np.flatnonzero(chosen)
    names = (latency, "joules_per_output_token")
    points = np.stack([columns[name][where] for name in names], axis=1)
    return where[pareto_front(points)]


def ruled_out(result: ExploreResult) -> dict[str, int]:
    """Returns how many deployments miss each limit; many miss several."""
    return {reason: int((~result.meets(reason)).sum()) for reason in REASONS}


def ruled_out_by_one(result: ExploreResult) -> dict[str, int]:
    """Returns how many deployments miss one limit alone, by that limit."""
    missed = np.stack([~result.meets(reason) for reason in REASONS])
    alone = missed.sum(axis=0) == 1
    return {
        reason: int((missed[row] & alone).sum()) for row, reason in enumerate(REASONS)
    }


def nearest(result: ExploreResult) -> int:
    """Returns the deployment that misses its limits by least: the worst slack is best."""
    columns = result.columns
    worst = np.min([columns[f"slack_{reason}"] for reason in SIZED], axis=0)
    legal = result.meets("layout") & result.meets("batch")
    return int(np.argmax(np.where(legal, worst, -np.inf)))


def missed(result: ExploreResult, index: int) -> dict[str, float]:
    """Returns the relative slack of every limit that a deployment misses."""
    slack = {name: float(result.columns[f"slack_{name}"][index]) for name in REASONS}
    return {reason: value for reason, value in slack.items() if value < 0.0}


def binds(result: ExploreResult, index: int) -> tuple[str, ...]:
    """Returns what keeps a deployment from doing better, or nothing at an inner optimum.

    The limits that its neighbours in batch and clock miss which would be better, "largest
    batch" at the end of the range, and "power cap" where the clock gives way to it.
    """
    columns, sign = result.columns, OBJECTIVES[result.objective]
    own = sign * float(columns[result.objective][index])
    found: dict[str, None] = {}
    for neighbour in _neighbours(result, index):
        if neighbour is None:
            found["largest batch"] = None
        elif sign * float(columns[result.objective][neighbour]) < own:
            found.update(dict.fromkeys(missed(result, neighbour)))
    if columns["capped_clock_hz"][index] < CAPPED * columns["clock_hz"][index]:
        found["power cap"] = None
    return tuple(found)


def request(result: ExploreResult, index: int) -> Request:
    """Returns one of the compared deployments with its model, GPU and traffic."""
    asked = result.requests[int(result.columns["gpu"][index])]
    return replace(asked, deployment=_deployment(result, asked, index))


def estimate(asked: Request) -> Estimate:
    """Returns the full estimate of a request in float64, in plain numbers."""
    with jax.enable_x64(True):
        found = predict(asked.model, asked.profile, asked.deployment, asked.workload)
        return jax.tree.map(float, found)


def _deployment(result: ExploreResult, request: Request, index: int) -> Deployment:
    degrees = (
        "tensor_parallel",
        "expert_parallel",
        "pipeline_parallel",
        "data_parallel",
    )
    knobs = {name: float(result.columns[name][index]) for name in ("batch", *degrees)}
    chip = request.profile.chip
    # float32 holds a clock to some hundred hertz: back to the step it stands for.
    low, step = float(chip.min_hz), float(chip.step_hz)
    steps = round((float(result.columns["clock_hz"][index]) - low) / step)
    clock = min(float(chip.max_hz), low + steps * step)
    return replace(request.deployment, clock_hz=clock, **knobs)


def _check(objective: str, max_gpus: int, **limits: float) -> None:
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}."
        )
    if not 1 <= max_gpus <= MOST_GPUS:
        raise ValueError(
            f"max GPUs: expected a number from 1 to {MOST_GPUS}, got {max_gpus}."
        )
    for name, seconds in limits.items():
        if not seconds > 0.0:
            raise ValueError(f"{name}: expected seconds above 0, got {seconds}.")


def _layouts(request: Request, max_gpus: int) -> tuple[Layout, ...]:
    return layouts(
        request.shape,
        request.profile.chip,
        request.deployment,
        max_gpus,
        network=has_network(request.card),
    )


def _swept(
    position: int,
    request: Request,
    limits: Limits,
    layouts: tuple[Layout, ...],
    report: Callable[[int], None],
) -> Columns:
    columns = sweep(
        request.model,
        request.profile,
        request.deployment,
        request.workload,
        limits,
        layouts,
        report,
    )
    count = columns["batch"].size
    return {"gpu": np.full(count, position), **columns}


def _neighbours(result: ExploreResult, index: int) -> list[int | None]:
    """One step in batch and clock, either way; None above the largest batch."""
    gpu = int(result.columns["gpu"][index])
    start = int(np.flatnonzero(result.columns["gpu"] == gpu)[0])
    space = deployment_space(result.layouts[gpu])
    layout, sequences, clock = spaces.digits(space, index - start)
    found: list[int | None] = []
    for step in (1, -1):
        if sequences + step >= space.counts[1]:
            found.append(None)
        elif sequences + step >= 0:
            at = spaces.index(space, (layout, sequences + step, clock))
            found.append(start + at)
        if 0 <= clock + step < space.counts[2]:
            at = spaces.index(space, (layout, sequences, clock + step))
            found.append(start + at)
    return found
