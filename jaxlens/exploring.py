"""The deployment of a model that meets its limits best, and all that were compared."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from jaxlens.comparisons import OBJECTIVES as OBJECTIVES
from jaxlens.comparisons import ExploreResult as ExploreResult
from jaxlens.comparisons import estimate as estimate
from jaxlens.comparisons import request as request
from jaxlens.declarations import SearchSpace, search_space
from jaxlens.deployments import UNLIMITED, Workload
from jaxlens.evaluations import WHOLE_SIZE, evaluated, several, streamed
from jaxlens.evaluations import write_full as write_full
from jaxlens.limits import REASONS as REASONS
from jaxlens.limits import Limits
from jaxlens.plans import Plan, Tariffs, plans
from jaxlens.queueing import Arrivals, check_arrivals
from jaxlens.rankings import LAYOUT as LAYOUT
from jaxlens.rankings import best as best
from jaxlens.rankings import best_of_each_gpu as best_of_each_gpu
from jaxlens.rankings import binds as binds
from jaxlens.rankings import explain as explain
from jaxlens.rankings import front as front
from jaxlens.rankings import missed as missed
from jaxlens.rankings import missed_bounds as missed_bounds
from jaxlens.rankings import nearest as nearest
from jaxlens.rankings import ruled_out as ruled_out
from jaxlens.rankings import ruled_out_by_one as ruled_out_by_one
from jaxlens.rankings import tied as tied
from jaxlens.rankings import trade_off as trade_off
from jaxlens.requests import MOST_GPUS
from jaxlens.streams import Objective

# What an objective needs to know of prices, by the name of a field of `Tariff`.
NEEDS = {
    "dollars_per_million_output_tokens": (
        ("dollars_per_gpu_second", "dollars_per_joule"),
        "the price of a GPU-hour (--gpu-price) or of energy (--kwh-price)",
    ),
    "grams_co2_per_million_output_tokens": (
        ("grams_co2_per_joule",),
        "the carbon intensity of the grid (--carbon)",
    ),
}


def explore(
    model: str | PathLike[str] | dict[str, Any] | None = None,
    gpus: Iterable[str] = (),
    workload: Workload | None = None,
    *,
    space: SearchSpace | None = None,
    ttft_seconds: float = UNLIMITED,
    tpot_seconds: float = UNLIMITED,
    limits: Limits | None = None,
    soft: Sequence[str] = (),
    rates: Tariffs | None = None,
    arrivals: Arrivals | None = None,
    max_gpus: int | None = None,
    weights: str | None = None,
    kv: str | None = None,
    stack: str | None = None,
    objective: str = "joules_per_output_token",
    whole: bool | None = None,
    full: Path | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExploreResult:
    """Returns all deployments of a model on some kinds of GPU, each judged by limits.

    Args:
        model: HuggingFace id, path to a `config.json` or its contents.
        gpus: Chip ids or files.
        workload: Lengths of the requests.
        space: What varies; by default layouts, sequences in flight and clock. See
            `declarations.search_space`.
        ttft_seconds: Limit on the time to the first token; without an arrival rate that of
            one bare prefill: no queueing.
        tpot_seconds: Limit on the mean time per output token.
        limits: More limits, on latency and power.
        soft: Power budgets, of `limits.BUDGETS`, whose excess is reported and excludes none.
        rates: Prices, host watts and PUE: of all GPUs, or by id. See `economics.tariff`.
        arrivals: How requests come in. Results are then those at that load, and `batch` is
            the limit of sequences in flight; by default that many are always in flight.
        max_gpus: Most GPUs of a deployment, all replicas together; 16 by default.
        weights: Number format of the weights; by default the checkpoint's own.
        kv: Number format of the KV cache; by default the checkpoint's own.
        stack: Serving stack id or file.
        objective: Result to rank by, one of `OBJECTIVES`.
        whole: Whether all deployments are kept in memory; by default up to a million are,
            and of more what is best. See `evaluations.streamed`. Several processes (see
            `clusters.connect`) share the work, and keep what is best.
        full: Folder to write every deployment to, as Parquet.
        checkpoint: Folder of a stream, so that one that is killed goes on.
        progress: Called with deployments done and in total.

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    asked = replace(
        limits or Limits(),
        **_given(ttft_seconds=ttft_seconds, tpot_seconds=tpot_seconds),
    )
    _check(objective, max_gpus, asked, arrivals)
    kinds = {"model": model, "gpu": tuple(dict.fromkeys(gpus)), "stack": stack}
    kinds |= {"weights": weights, "kv": kv}
    stated = {name: value for name, value in kinds.items() if value not in (None, ())}
    declared = _merged(space, search_space(max_gpus=max_gpus, **stated))
    planned = plans(
        declared, workload, limits=asked, soft=soft, rates=rates, arrivals=arrivals
    )
    _check_prices(objective, planned)
    if full is not None:
        write_full(planned, full, progress)
    size, surveys = sum(plan.size for plan in planned), ()
    if whole or (whole is None and size <= WHOLE_SIZE and not several()):
        columns = evaluated(planned, progress)
    else:
        best_by = Objective(objective, OBJECTIVES[objective])
        columns, surveys = streamed(planned, best_by, progress, checkpoint)
    return ExploreResult(
        plans=planned,
        limits=asked,
        objective=objective,
        columns=columns,
        soft=tuple(soft),
        arrivals=arrivals,
        surveys=surveys,
    )


def _merged(space: SearchSpace | None, stated: SearchSpace) -> SearchSpace:
    if space is None:
        return stated
    for name in stated.kinds:
        if name in space.kinds:
            raise ValueError(
                f"{name}: expected it in the space or beside it, got both; drop one."
            )
    if stated.max_gpus is not None and space.max_gpus is not None:
        raise ValueError(
            "max GPUs: expected it in the space or beside it, got both; drop one."
        )
    return space.joined(stated)


def _given(**limits: float) -> dict[str, float]:
    return {
        name: float(seconds) for name, seconds in limits.items() if seconds != UNLIMITED
    }


def _check(
    objective: str, max_gpus: int | None, limits: Limits, arrivals: Arrivals | None
) -> None:
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}."
        )
    if max_gpus is not None and not 1 <= max_gpus <= MOST_GPUS:
        raise ValueError(
            f"max GPUs: expected a number from 1 to {MOST_GPUS}, got {max_gpus}."
        )
    for name, value in vars(limits).items():
        what, _, unit = name.rpartition("_")
        if not float(value) > 0.0:
            raise ValueError(f"{what}: expected {unit} above 0, got {value}.")
    _check_arrivals(objective, limits, arrivals)
    if float(limits.rack_watts) < UNLIMITED <= float(limits.rack_nodes):
        raise ValueError(
            "rack power: expected the number of nodes of a rack, got none; "
            "state it (rack_nodes, --rack-nodes)."
        )


def _check_arrivals(objective: str, limits: Limits, arrivals: Arrivals | None) -> None:
    if arrivals is None:
        late = float(limits.ttft_p99_seconds) < UNLIMITED
        if late or objective.startswith("seconds_to_first_token"):
            what = "ttft p99" if late else "objective"
            raise ValueError(
                f"{what}: expected a rate of arrivals (arrivals, --arrivals), got none: "
                f"without queueing there is the bare prefill time alone."
            )
        return
    if not float(check_arrivals(arrivals).requests_per_second) > 0.0:
        raise ValueError(
            "arrivals: expected requests per second above 0, got 0; leave the rate out "
            "for a deployment whose sequences are always in flight."
        )


def _check_prices(objective: str, planned: tuple[Plan, ...]) -> None:
    if objective not in NEEDS:
        return
    fields, words = NEEDS[objective]
    for plan in planned:
        if not any(float(getattr(plan.question.rates, name)) > 0.0 for name in fields):
            raise ValueError(
                f"objective: expected {words} for {plan.label}, got none; state it: "
                f"no prices come with jaxlens."
            )
