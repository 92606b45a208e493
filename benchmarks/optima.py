"""Single-objective optima of random problems beside exhaustive evaluation of their spaces.

Each setting (model, chip, lengths, knobs) is evaluated at every point once; several problems
with random objectives and limits are then asked of it. `--json` prints every problem.

    python -m benchmarks.optima --problems 200 --json
    python -m benchmarks.optima --problems 16 --method both
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlens import batch, spaces
from jaxlens.deployments import Deployment, Workload
from jaxlens.layouts import check_layout
from jaxlens.optimize.optima import METHODS, solve
from jaxlens.optimize.outcomes import Prices, Question, outcome
from jaxlens.optimize.problems import Limit, Problem, at_least, at_most
from jaxlens.optimize.variables import (
    clocks,
    integer,
    power_of_two,
    supported_clocks,
)
from jaxlens.requests import Request, has_network, prepare

MODELS = (
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-30B-A3B",
    "openai/gpt-oss-120b",
)
CHIPS = (
    "a100-sxm-80gb",
    "h100-sxm",
    "h200-sxm",
    "b200-sxm",
    "gh200",
    "mi300x",
    "l40s",
    "h100-pcie",
)
ASKED = (
    "joules_per_output_token",
    "seconds_per_output_token",
    "seconds_prefill",
    "output_tokens_per_second_per_gpu",
    "gpu_seconds_per_output_token",
    "cost_per_output_token",
    "watts_per_gpu",
    "memory_slack_bytes",
    "sequences_per_stage",
)
# Each with its probability, and whether less is better.
OBJECTIVES = {
    "joules_per_output_token": (0.55, True),
    "cost_per_output_token": (0.15, True),
    "output_tokens_per_second_per_gpu": (0.15, False),
    "seconds_per_output_token": (0.1, True),
    "watts_per_gpu": (0.05, True),
}
PRICES = Prices(per_gpu_second=2.5 / 3600.0, per_joule=0.15 / 3.6e6)
NEAR = 1e-3
LARGE = 100_000
PER_SETTING = 8
IMPOSSIBLE = 0.02  # of the limits are out of reach
DEGREES = {"tensor_parallel", "expert_parallel", "pipeline_parallel", "data_parallel"}


def asked(question: Question, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the problems name, of one deployment."""
    found = outcome(question, values)
    return {name: found[name] for name in ASKED}


def setting(random: np.random.Generator) -> tuple[Request, dict[str, Any]]:
    """Returns a random request and the variables that are searched."""
    chip, model = str(random.choice(CHIPS)), str(random.choice(MODELS))
    workload = Workload(
        prompt_tokens=float(round(np.exp(random.uniform(np.log(64), np.log(8192))))),
        output_tokens=float(round(np.exp(random.uniform(np.log(16), np.log(2048))))),
    )
    request = prepare(model, chip, workload=workload)
    if random.uniform() < 0.3:
        most = int(random.choice([64, 128]))
        variables = {
            "tensor_parallel": power_of_two(1, 4),
            "pipeline_parallel": power_of_two(1, 2),
            "data_parallel": power_of_two(1, 2),
            "batch": integer(1, most),
            "clock_hz": supported_clocks(),
        }
        return request, variables
    most = int(random.choice([64, 256, 512]))
    return request, {
        "tensor_parallel": power_of_two(1, 8),
        "batch": integer(1, most),
        "clock_hz": supported_clocks(),
    }


def everything(
    request: Request, variables: dict[str, Any]
) -> tuple[batch.Columns, np.ndarray, float]:
    """Returns all quantities at every point, whether it is legal, and the seconds."""
    axes = []
    for name, variable in variables.items():
        if name == "clock_hz":
            axes.append(spaces.choices(name, clocks(request.profile.chip)))
        elif name == "batch":
            axes.append(spaces.integers(name, int(variable.low), int(variable.high)))
        else:
            axes.append(spaces.choices(name, variable.table))
    space = spaces.space(*axes)
    question = Question(
        model=request.model,
        profile=request.profile,
        base=request.deployment,
        workload=request.workload,
        prices=PRICES,
    )
    started = time.perf_counter()
    columns = batch.evaluate(asked, question, space)
    seconds = time.perf_counter() - started
    return columns, _legal(request, space), seconds


def _legal(request: Request, space: spaces.Space) -> np.ndarray:
    network = has_network(request.card)
    degrees = [name for name in space.names if name in DEGREES]
    inner = int(np.prod(space.counts[len(degrees) :]))
    found = []
    for row in range(space.size // inner):
        point = spaces.point(space, row * inner)
        chosen: dict[str, Any] = {name: point[name] for name in degrees}
        layout = Deployment(batch=1e15, **chosen)
        problems = check_layout(
            request.shape, request.profile.chip, layout, network=network
        )
        found.append(np.full(inner, not problems))
    return np.concatenate(found)


def problem(
    random: np.random.Generator,
    variables: dict[str, Any],
    columns: batch.Columns,
    legal: np.ndarray,
) -> Problem:
    """Returns a random objective under random limits, most of which can be met."""
    names = list(OBJECTIVES)
    weights = [OBJECTIVES[name][0] for name in names]
    objective = str(random.choice(names, p=weights))
    fits = legal & (columns["memory_slack_bytes"] >= 0.0)
    fits &= columns["sequences_per_stage"] >= 1.0
    pool = np.flatnonzero(fits if fits.any() else legal)
    # Limits around a point that exists: it is feasible unless they are tightened.
    at = int(random.choice(pool))
    limits: dict[str, Limit] = {"memory_slack_bytes": at_least(0.0)}
    for name, odds in {
        "seconds_per_output_token": 0.7,
        "seconds_prefill": 0.4,
        "watts_per_gpu": 0.25,
        "output_tokens_per_second_per_gpu": 0.25,
    }.items():
        if name == objective or random.uniform() > odds:
            continue
        less = name != "output_tokens_per_second_per_gpu"
        loose = np.exp(abs(random.normal(0.0, 0.2)) * (1.0 if less else -1.0))
        value = float(columns[name][at]) * float(loose)
        if random.uniform() < IMPOSSIBLE:
            seen = columns[name][legal]
            value = float(0.8 * seen.min() if less else 1.2 * seen.max())
        limits[name] = at_most(value) if less else at_least(value)
    goal: dict[str, Any] = {
        "minimise" if OBJECTIVES[objective][1] else "maximise": objective
    }
    return Problem(variables=variables, limits=limits, **goal)


def compare(
    request: Request,
    task: Problem,
    columns: batch.Columns,
    legal: np.ndarray,
    method: str = "quadratic",
) -> dict[str, Any]:
    """Returns how the found optimum compares with the best of all points."""
    within = legal & (columns["sequences_per_stage"] >= 1.0)
    for name, limit in task.stated:
        slack = limit.sense * (limit.value - columns[name].astype(float))
        within &= slack >= 1e-6 * abs(limit.value)
    found = solve(task, request, prices=PRICES, method=method)
    objective = columns[task.objective].astype(float)
    possible = bool(within.any())
    best = (
        float((task.sign * objective)[within].min()) * task.sign if possible else None
    )
    regret = None
    if best is not None and found.feasible:
        regret = task.sign * (found.objective - best) / abs(best)
    return {
        "method": method,
        "model": request.shape.name,
        "chip": request.card.chip,
        "prompt_tokens": float(request.workload.prompt_tokens),
        "output_tokens": float(request.workload.output_tokens),
        "objective": task.objective,
        "limits": {name: limit.value for name, limit in task.stated},
        "space": objective.size,
        "possible": possible,
        "feasible": found.feasible,
        "reason": found.reason,
        "best": best,
        "found": found.objective,
        "regret": regret,
        "values": dict(found.values),
        "evaluations": found.evaluations,
        "lanes": found.lanes,
        "share": found.evaluations / objective.size,
        "seconds": found.seconds,
        "compile_seconds": found.compile_seconds,
    }


def run(problems: int, seed: int, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one entry per problem and method."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    asked = 0
    while asked < problems:
        request, variables = setting(random)
        columns, legal, seconds = everything(request, variables)
        if not legal.any():
            continue
        for _ in range(min(PER_SETTING, problems - asked)):
            task = problem(random, variables, columns, legal)
            asked += 1
            for method in methods:
                row = compare(request, task, columns, legal, method)
                rows.append(row | {"exhaustive_seconds": seconds})
        print(f"{asked} of {problems}", file=sys.stderr)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the numbers that matter, of all problems together."""
    possible = [row for row in rows if row["possible"]]
    near = [
        row for row in possible if row["regret"] is not None and row["regret"] <= NEAR
    ]
    large = [row["share"] for row in rows if row["space"] >= LARGE]
    padded = [row["lanes"] / row["space"] for row in rows if row["space"] >= LARGE]
    seconds = [row["seconds"] for row in rows]
    return {
        "problems": len(rows),
        "with_a_feasible_point": len(possible),
        "within_0.1_percent": len(near) / max(1, len(possible)),
        "worst_regret": max((row["regret"] or 0.0 for row in possible), default=0.0),
        "infeasible_though_possible": sum(not row["feasible"] for row in possible),
        "evaluated_share_within_1_percent": float(np.mean(np.array(large) <= 0.01)),
        "feasible_though_impossible": sum(
            row["feasible"] for row in rows if not row["possible"]
        ),
        "large_spaces": len(large),
        "evaluated_share_of_large_spaces": _spread(large),
        "share_with_padding": _spread(padded),
        "evaluations": _spread([row["evaluations"] for row in rows]),
        "seconds": _spread(seconds),
        "compile_seconds_largest": max(row["compile_seconds"] for row in rows),
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "median": float(np.median(values)),
        "95_percent": float(np.quantile(values, 0.95)),
        "largest": float(max(values)),
    }


def main() -> None:
    """Prints the summary, or everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--method",
        choices=[*METHODS, "both"],
        default="quadratic",
        help="of the search",
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    methods = tuple(METHODS) if given.method == "both" else (given.method,)
    rows = run(given.problems, given.seed, methods)
    content: dict[str, Any] = {
        "summary": summary([row for row in rows if row["method"] == methods[0]])
    }
    for method in methods[1:]:
        own = [row for row in rows if row["method"] == method]
        content[f"summary_{method}"] = summary(own)
    if given.json:
        content["rows"] = rows
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
