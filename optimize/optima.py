"""The optimum of a problem: of a deployment, or of any function of scalars."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxlens.deployments import Deployment
from jaxlens.layouts import check_layout
from jaxlens.optimize.accounts import account
from jaxlens.optimize.evaluators import Evaluator, Function
from jaxlens.optimize.outcomes import (
    FIELDS,
    KNOBS,
    QUANTITIES,
    SEQUENCES,
    Prices,
    Question,
    Scalar,
    completed,
    outcome,
)
from jaxlens.optimize.problems import Problem, Values, at_least
from jaxlens.optimize.relaxations import Relaxation
from jaxlens.optimize.results import Optimum
from jaxlens.optimize.searches import Descent, Search
from jaxlens.optimize.variables import Variable, of_chip
from jaxlens.requests import RANGES, Request, has_network

SIGNED = frozenset({"memory_slack_bytes"})
POSITIVE = frozenset(QUANTITIES) - SIGNED
METHODS = {
    "quadratic": "sequential quadratic programming: fewest evaluations",
    "lagrangian": "augmented Lagrangian and annealing, compiled with its gradients",
}
ROUNDED = 2  # branches that are rounded in any case: the best and a runner-up
GROUPS = ("data_parallel", "pipeline_parallel")
DEGREES = ("tensor_parallel", "expert_parallel", *GROUPS)


def solve(
    problem: Problem,
    request: Request,
    *,
    prices: Prices | None = None,
    starts: int = 1,
    rounded: int = ROUNDED,
    method: str = "quadratic",
) -> Optimum:
    """Returns the best deployment of a request, over knobs of its deployment.

    Variables are fields of `Deployment`, or `sequences` per replica; objective and limits
    are named in `outcomes.QUANTITIES`. Layouts that an engine refuses are left out.

    Args:
        problem: What is asked.
        request: Model, profile, traffic and the knobs that are not searched.
        prices: What GPU time and energy cost, for `cost_per_output_token`.
        starts: Starts inside of promising branches, beside the best corner of each.
        rounded: Branches to round at least: one more than alternatives.
        method: How relaxed optima are found, one of `METHODS`.

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    chip = request.profile.chip
    _check_names(problem)
    _check_effort(starts, rounded, method)
    variables = {
        name: _checked(name, of_chip(variable, chip))
        for name, variable in problem.variables.items()
    }
    question = Question(
        model=request.model,
        profile=request.profile,
        base=request.deployment,
        workload=request.workload,
        prices=prices or Prices(),
    )
    asked = replace(
        problem,
        variables=variables,
        limits=_with_groups(problem),
        allowed=_legal(problem, request),
    )
    names = tuple(variables)

    def complete(points: np.ndarray) -> np.ndarray:
        return completed(request.deployment, names, points)

    evaluator = Evaluator(outcome, question, FIELDS, complete)
    # Compiling derivatives takes five times as long as the function, and longer than all
    # difference quotients of a search.
    relaxation = Relaxation(
        asked, variables, evaluator, positive=POSITIVE, automatic=False
    )
    descent = None
    if method == "lagrangian":
        fixed = {name: float(getattr(request.deployment, name)) for name in FIELDS}
        fixed[SEQUENCES] = 0.0
        if SEQUENCES in variables:
            fixed["batch"] = 0.0
        descent = _annealed(relaxation, knobs_outcome, question, KNOBS, fixed)
    search = Search(relaxation, starts, descent)
    return account(search, search.run(rounded))


def knobs_outcome(question: Question, values: Mapping[str, Scalar]) -> dict[str, Any]:
    """Returns `outcome` of all knobs: either batch or sequences per replica is 0."""
    knobs = {name: values[name] for name in FIELDS}
    more = values[SEQUENCES] * values["data_parallel"]
    return outcome(question, knobs | {"batch": values["batch"] + more})


def solve_function(
    problem: Problem,
    function: Function,
    shared: Any = None,
    *,
    starts: int = 6,
    rounded: int = ROUNDED,
    method: str = "quadratic",
) -> Optimum:
    """Returns the best point of `function(shared, values)`, which gives scalars by name.

    Written with jax.numpy and defined in a module, so that it is compiled once. Gradients
    are automatic here.
    """
    _check_effort(starts, rounded, method)
    for name, variable in problem.variables.items():
        if variable.values is not None and not variable.values.size:
            raise ValueError(
                f"{name}: expected values that are known without a chip, got supported "
                f"clocks; list them with one_of."
            )
    evaluator = Evaluator(function, shared, tuple(problem.variables))
    relaxation = Relaxation(
        problem, problem.variables, evaluator, positive=frozenset(), automatic=True
    )
    descent = None
    if method == "lagrangian":
        names = tuple(problem.variables)
        descent = _annealed(relaxation, function, shared, names, {})
    search = Search(relaxation, starts, descent)
    return account(search, search.run(rounded))


def _annealed(
    relaxation: Relaxation,
    function: Function,
    shared: Any,
    names: tuple[str, ...],
    fixed: Mapping[str, float],
) -> Descent:
    """The compiled method, imported when asked for: optax takes long to import."""
    from jaxlens.optimize.annealed_lanes import AnnealedLanes

    return AnnealedLanes(relaxation, function, shared, names, fixed)


def _check_effort(starts: int, rounded: int, method: str) -> None:
    if method not in METHODS:
        raise ValueError(
            f"method: expected {' or '.join(METHODS)}, got {method!r}; leave it out for "
            f"the quadratic one."
        )
    if min(starts, rounded) < 1:
        raise ValueError(
            f"search: expected at least one start and one branch to round, got {starts} "
            f"and {rounded}."
        )


def _check_names(problem: Problem) -> None:
    for name in problem.variables:
        if name not in KNOBS:
            raise ValueError(
                f"variables: expected of {', '.join(KNOBS)}, got {name!r}."
            )
    if SEQUENCES in problem.variables and "batch" in problem.variables:
        raise ValueError(
            "variables: expected batch or sequences per replica, got both; drop one."
        )
    for name in (problem.objective, *problem.limits):
        if name not in QUANTITIES:
            raise ValueError(
                f"problem: expected a quantity of {', '.join(QUANTITIES)}, got {name!r}."
            )


def _checked(name: str, variable: Variable) -> Variable:
    """`variable`, if its bounds are plausible for a knob."""
    low, high = 1.0, 1e6
    if name in RANGES:
        _, low, high, _ = RANGES[name]
    elif name in ("clock_hz", "power_cap_watts"):
        low, high = 1.0, 1e12
    if low <= variable.low and variable.high <= high:
        return variable
    raise ValueError(
        f"{name}: expected bounds within {low:g} to {high:,.10g}, got {variable.low:g} to "
        f"{variable.high:g}."
    )


def _with_groups(problem: Problem) -> dict[str, Any]:
    """The limits, with at least one sequence for each group of GPUs."""
    limits: dict[str, Any] = dict(problem.limits)
    searched = {"batch", SEQUENCES, *GROUPS} & set(problem.variables)
    if searched and "sequences_per_stage" not in limits:
        limits["sequences_per_stage"] = at_least(1.0)
    return limits


def _legal(problem: Problem, request: Request) -> Any:
    """Whether an engine accepts a layout, and the user does."""
    shape, chip = request.shape, request.profile.chip
    network = has_network(request.card)

    def allowed(values: Values) -> bool:
        degrees = {name: values[name] for name in DEGREES if name in values}
        layout: Deployment = replace(request.deployment, batch=1e15, **degrees)
        if degrees and check_layout(shape, chip, layout, network=network):
            return False
        return problem.allowed is None or problem.allowed(values)

    return allowed
