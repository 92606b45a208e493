"""The layout, batch and clock of one model on one kind of GPU that meet limits best."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxlens.deployments import UNLIMITED
from jaxlens.optimize.optima import solve
from jaxlens.optimize.outcomes import SEQUENCES, Prices, deployed
from jaxlens.optimize.problems import Limit, Problem, Values, at_least, at_most
from jaxlens.optimize.results import Optimum
from jaxlens.optimize.variables import (
    Variable,
    clocks,
    integer,
    power_of_two,
    supported_clocks,
)
from jaxlens.requests import Request
from jaxlens.shapes import Experts

MOST_SEQUENCES = 1024  # per replica
MOST_STAGES = 8
# Objectives of which more is better.
MAXIMISED = ("output_tokens_per_second", "output_tokens_per_second_per_gpu")
MINIMISED = (
    "joules_per_output_token",
    "seconds_per_output_token",
    "seconds_prefill",
    "gpu_seconds_per_output_token",
    "cost_per_output_token",
)
# What replicas of a model without experts change; of others they change nothing.
FLEET = ("output_tokens_per_second", "watts", "requests_per_second")


@dataclass(frozen=True, kw_only=True)
class LayoutAdvice:
    """The best deployment as a request, and the search behind it."""

    request: Request
    problem: Problem
    optimum: Optimum
    notes: tuple[str, ...]


def advise_layout(
    request: Request,
    limits: Mapping[str, Limit] | None = None,
    *,
    max_gpus: int = 8,
    objective: str = "joules_per_output_token",
    most_sequences: int = MOST_SEQUENCES,
    prices: Prices | None = None,
    alternatives: int = 3,
) -> LayoutAdvice:
    """Returns the best TP, PP, DP, EP, sequences per replica and clock, together.

    Experts are split like other matrices, or spread over all tensor x data ranks. Memory
    is a limit in any case.

    Args:
        request: Model, chip, traffic, and knobs that are not searched.
        limits: By quantity, such as {"seconds_per_output_token": at_most(0.05)}.
        max_gpus: Most GPUs, all replicas together.
        objective: One of `MINIMISED` or `MAXIMISED`.
        most_sequences: Most sequences in flight on one replica.
        prices: For `cost_per_output_token`.
        alternatives: Other layouts to round as well.
    """
    problem, notes = layout_problem(
        request,
        limits or {},
        max_gpus=max_gpus,
        objective=objective,
        most_sequences=most_sequences,
    )
    optimum = solve(problem, request, prices=prices, rounded=1 + alternatives)
    deployment = deployed(request.deployment, optimum.values)
    return LayoutAdvice(
        request=replace(request, deployment=deployment),
        problem=problem,
        optimum=optimum,
        notes=notes,
    )


def layout_problem(
    request: Request,
    limits: Mapping[str, Limit],
    *,
    max_gpus: int = 8,
    objective: str = "joules_per_output_token",
    most_sequences: int = MOST_SEQUENCES,
) -> tuple[Problem, tuple[str, ...]]:
    """Returns the problem that `advise_layout` solves, and notes on what is left out."""
    if objective not in (*MINIMISED, *MAXIMISED):
        raise ValueError(
            f"objective: expected one of {', '.join((*MINIMISED, *MAXIMISED))}, got "
            f"{objective!r}."
        )
    if max_gpus < 1:
        raise ValueError(f"max GPUs: expected at least 1, got {max_gpus}.")
    highest = 2 ** (int(max_gpus).bit_length() - 1)
    routed = any(isinstance(feed, Experts) for feed in request.shape.feeds)
    replicas = routed or bool({objective, *limits} & set(FLEET))
    variables: dict[str, Variable] = {
        "tensor_parallel": power_of_two(1, highest),
        "pipeline_parallel": power_of_two(1, min(MOST_STAGES, highest)),
        "data_parallel": power_of_two(1, highest if replicas else 1),
        "expert_parallel": power_of_two(1, highest if routed else 1),
        SEQUENCES: integer(1, most_sequences),
    }
    notes: list[str] = []
    if not replicas and highest > 1:
        notes.append("replicas of this model share nothing: one of them is laid out")
    if float(request.deployment.clock_hz) == UNLIMITED:
        try:
            clocks(request.profile.chip)
            variables["clock_hz"] = supported_clocks()
        except ValueError as error:
            notes.append(f"the clock is left open: {error}")
    if highest == 1:
        notes.append("one GPU: there is no layout to choose, only batch and clock")

    def allowed(values: Values) -> bool:
        ranks = values["tensor_parallel"] * values["data_parallel"]
        fits = ranks * values["pipeline_parallel"] <= max_gpus
        return fits and values["expert_parallel"] in (1.0, ranks)

    stated: dict[str, Limit] = {"memory_slack_bytes": at_least(0.0), **limits}
    goal = {"maximise" if objective in MAXIMISED else "minimise": objective}
    problem = Problem(variables=variables, limits=stated, allowed=allowed, **goal)
    return problem, tuple(notes)


def latency_limits(
    *,
    ttft_seconds: float | None = None,
    tpot_seconds: float | None = None,
    watts_per_gpu: float | None = None,
    output_tokens_per_second: float | None = None,
) -> dict[str, Limit]:
    """Returns limits by quantity, of those that are given.

    TTFT is the time of one bare prefill, without queueing.
    """
    found = {
        "seconds_prefill": (at_most, ttft_seconds),
        "seconds_per_output_token": (at_most, tpot_seconds),
        "watts_per_gpu": (at_most, watts_per_gpu),
        "output_tokens_per_second": (at_least, output_tokens_per_second),
    }
    return {
        name: bound(value)
        for name, (bound, value) in found.items()
        if value is not None
    }
