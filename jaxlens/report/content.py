"""Everything that a report shows, as plain numbers and words."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from jaxlens import exploring
from jaxlens.answers import answer
from jaxlens.deployments import UNLIMITED
from jaxlens.exploring import ExploreResult
from jaxlens.predictions import Estimate
from jaxlens.report.operations import operations, roofs
from jaxlens.report.what_ifs import what_ifs
from jaxlens.requests import Request
from jaxlens.sensitivities import elasticities, relative_change

POINTS = (
    3000  # of the cloud that are drawn; the front and the best are always among them
)
RECOMMENDED = 6
INPUTS = 16  # bars of the tornado
# Columns of a point, in the order in which the page reads them.
POINT = (
    "seconds_per_output_token",
    "joules_per_output_token",
    "seconds_prefill",
    "output_tokens_per_second_per_gpu",
    "watts_per_gpu",
    "gpus",
    "batch",
    "clock_hz",
    "tensor_parallel",
    "expert_parallel",
    "pipeline_parallel",
    "data_parallel",
)
SHOWN = (
    "joules_per_output_token",
    "seconds_per_output_token",
    "seconds_prefill",
    "output_tokens_per_second",
    "watts_per_gpu",
)


def content(
    result: ExploreResult,
    *,
    title: str = "",
    commands: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Returns what a report on `result` shows.

    Args:
        result: What was compared, with at least one deployment within its limits.
        title: Heading; by default the name of the model.
        commands: Text to run, by what it does: server, clocks, benchmark.

    Raises:
        ValueError: no deployment is within its limits.
    """
    rows = exploring.best(result, RECOMMENDED)
    if not rows:
        raise ValueError(
            "report: expected a deployment within all limits, got none; "
            "loosen one, or look at what comes nearest with `jaxlens explore`."
        )
    winner = exploring.request(result, rows[0])
    points, front = _points(result, rows)
    return {
        "title": title or winner.shape.name,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": version("jaxlens"),
        "question": _question(result, winner),
        "gpus": [request.card.chip for request in result.requests],
        "columns": ["gpu", *POINT],
        "points": points,
        "front": front,
        "recommended": [_recommended(result, row) for row in rows],
        "commands": commands or {},
        "what_ifs": _what_ifs(result, winner),
        "roofline": _roofline(winner),
        "tornado": _tornado(winner),
    }


def _question(result: ExploreResult, winner: Request) -> dict[str, Any]:
    limits = {
        name: float(value)
        for name, value in vars(result.limits).items()
        if np.ndim(value) == 0 and float(value) < UNLIMITED
    }
    return {
        "model": winner.shape.name,
        "stack": winner.card.stack,
        "workload": {key: float(v) for key, v in vars(winner.workload).items()},
        "limits": limits,
        "objective": result.objective,
        "deployments": result.size,
        "feasible": int(result.feasible.sum()),
        "infeasible_by_reason": exploring.ruled_out(result),
    }


def _points(
    result: ExploreResult, rows: list[int]
) -> tuple[list[list[float]], list[int]]:
    """Points within the limits, thinned evenly, and the positions of the front."""
    front = [int(index) for index in exploring.front(result)]
    cloud = np.flatnonzero(result.feasible)
    step = max(1, -(-cloud.size // POINTS))
    kept = sorted({*rows, *front, *(int(index) for index in cloud[::step])})
    position = {index: place for place, index in enumerate(kept)}
    columns = [result.columns[name] for name in ("gpu", *POINT)]
    points = [[_short(column[index]) for column in columns] for index in kept]
    return points, [position[index] for index in front]


def _recommended(result: ExploreResult, row: int) -> dict[str, Any]:
    asked = exploring.request(result, row)
    layout = asked.deployment
    return {
        "gpu": asked.card.chip,
        "gpus": asked.gpus,
        "batch": float(layout.batch),
        "clock_hz": float(layout.clock_hz),
        "tensor_parallel": float(layout.tensor_parallel),
        "expert_parallel": float(layout.expert_parallel),
        "pipeline_parallel": float(layout.pipeline_parallel),
        "data_parallel": float(layout.data_parallel),
        "binds": list(exploring.binds(result, row)),
        **answer(asked, exploring.estimate(asked)),
    }


def _what_ifs(result: ExploreResult, winner: Request) -> list[dict[str, Any]]:
    base = exploring.estimate(winner)
    rows: list[dict[str, Any]] = [
        {"change": "as recommended", "problem": "", **_shown(base)}
    ]
    for found in what_ifs(winner):
        row: dict[str, Any] = {"change": found.change, "problem": found.problem}
        if found.estimate is not None:
            row |= _shown(found.estimate)
            row["problem"] = found.problem or _missed(result, found.estimate)
        rows.append(row)
    return rows


def _missed(result: ExploreResult, estimate: Estimate) -> str:
    """Which limits on latency a changed deployment misses."""
    limits = result.limits
    latencies = {
        "TTFT": (estimate.seconds_prefill, limits.ttft_seconds),
        "TPOT": (estimate.seconds_per_output_token, limits.tpot_seconds),
    }
    over = [name for name, (took, most) in latencies.items() if took > most]
    return f"misses the {' and '.join(over)} limit" if over else ""


def _shown(estimate: Estimate) -> dict[str, float]:
    return {name: float(getattr(estimate, name)) for name in SHOWN}


def _roofline(winner: Request) -> dict[str, Any]:
    return {
        "roofs": roofs(winner),
        "operations": [
            {
                "name": operation.name,
                "phase": operation.phase,
                "flop_per_byte": operation.flop_per_byte,
                "flop_per_s": operation.flop_per_s,
                "seconds": operation.seconds,
                "peak_flop_per_s": operation.peak_flop_per_s,
            }
            for operation in operations(winner)
        ],
    }


def _tornado(winner: Request) -> list[dict[str, Any]]:
    quantity = "joules_per_output_token"
    found = elasticities(
        winner.model, winner.profile, winner.deployment, winner.workload, (quantity,)
    )[quantity]
    largest = sorted(found, key=lambda name: -abs(found[name]))[:INPUTS]
    return [
        {
            "input": name,
            "more": relative_change(found[name], 1.1),
            "less": relative_change(found[name], 1.0 / 1.1),
            "origin": _origin(winner, name),
        }
        for name in largest
    ]


def _origin(winner: Request, name: str) -> str:
    coefficient = winner.card.coefficients.get(name)
    return coefficient.origin if coefficient else "chosen"


def _short(value: float) -> float:
    """Six significant digits: what float32 holds, in fewer characters."""
    return float(f"{float(value):.6g}")
