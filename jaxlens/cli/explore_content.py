"""The whole answer of `jaxlens explore` as plain numbers and words, for programs."""

from typing import Any

from jaxlens import exploring
from jaxlens.answers import answer
from jaxlens.commands import checkpoint, gpu_commands, serve_command
from jaxlens.deployments import UNLIMITED
from jaxlens.exploring import ExploreResult
from jaxlens.plans import OWN_FORMAT, Plan
from jaxlens.questions import AT_LOAD, FIELDS, RESULTS

DEGREES = {
    "tp": "tensor_parallel",
    "pp": "pipeline_parallel",
    "dp": "data_parallel",
    "ep": "expert_parallel",
}
NUMBERS = ("gpus", *DEGREES.values(), "batch", *RESULTS[1:])
PRICED = {
    "dollars_per_million_output_tokens": (
        "dollars_per_gpu_second",
        "dollars_per_joule",
    ),
    "grams_co2_per_million_output_tokens": ("grams_co2_per_joule",),
}


def content(result: ExploreResult, rows: list[int]) -> dict[str, Any]:
    """Returns everything that was found; `rows` are the deployments to list."""
    found: dict[str, Any] = {
        "model": ", ".join(dict.fromkeys(one.shape.name for one in result.requests)),
        "objective": result.objective,
        "deployments": result.size,
        "feasible": result.feasible_count,
        "infeasible_by_reason": exploring.ruled_out(result),
        "infeasible_by_one_reason": exploring.ruled_out_by_one(result),
        "kinds": list(result.labels),
        "interrupted": result.interrupted,
        "best": [row(result, index) for index in rows],
        "best_of_each_gpu": [
            row(result, index) for index in exploring.best_of_each_gpu(result)
        ],
        "front": [row(result, int(index)) for index in exploring.front(result)],
    }
    if not rows:
        nearest = exploring.nearest(result)
        bounds = exploring.missed_bounds(result, nearest)
        return {**found, "nearest": {**row(result, nearest), "missed_bounds": bounds}}
    for entry, index in zip(found["best"], rows, strict=True):
        entry["tied_with_best"] = (
            True if index == rows[0] else exploring.tied(result, rows[0], index)
        )
    return {**found, **_recommendation(result, rows[0])}


def row(result: ExploreResult, index: int) -> dict[str, Any]:
    """Returns one deployment: knobs, results, what binds and what it misses."""
    asked = exploring.request(result, index)
    columns, kind = result.columns, int(result.columns["gpu"][index])
    names = [*NUMBERS, *(AT_LOAD if result.arrivals is not None else ())]
    numbers = {name: float(columns[name][index]) for name in names}
    rates = result.plans[kind].question.rates
    for name, needed in PRICED.items():
        if not any(float(getattr(rates, field)) > 0.0 for field in needed):
            del numbers[name]
    return {
        "gpu": asked.card.chip,
        "kind": result.labels[kind],
        **numbers,
        "clock_hz": float(asked.deployment.clock_hz),
        **_varied(result, kind, index),
        "binds": list(exploring.binds(result, index)),
        "misses": exploring.missed(result, index),
    }


def asked_formats(plan: Plan) -> dict[str, str | None]:
    """Returns the formats of weights and cache; None is the checkpoint's own."""
    found: dict[str, str | None] = {}
    for name in ("weights", "kv"):
        value = plan.kind.get(name)
        found[name] = None if value in (None, OWN_FORMAT) else str(value)
    return found


def _varied(result: ExploreResult, kind: int, index: int) -> dict[str, float | None]:
    """The other knobs that the space varies; None without a limit."""
    axes = {axis.name: axis for axis in result.plans[kind].space.axes}
    found: dict[str, float | None] = {}
    for name in FIELDS:
        if axes[name].count > 1:
            value = float(result.columns[name][index])
            found[name] = None if value > 0.5 * UNLIMITED else value
    return found


def _recommendation(result: ExploreResult, index: int) -> dict[str, Any]:
    winner, why = exploring.request(result, index), exploring.explain(result, index)
    plan = result.plans[int(result.columns["gpu"][index])]
    asked = checkpoint(str(plan.kind["model"]), winner.shape, **asked_formats(plan))
    profile, deployment = winner.profile, winner.deployment
    return {
        "winner": answer(winner, exploring.estimate(winner)),
        "why": {
            "binds": list(why.binds),
            "runner_up": None if why.runner_up is None else row(result, why.runner_up),
            "runner_up_worse_by": why.margin,
            "tied": why.tied,
        },
        "serve_command": serve_command(
            asked, profile.chip, profile.stack, deployment, winner.workload
        ),
        "gpu_commands": gpu_commands(winner.card.vendor, profile.chip, deployment),
    }
