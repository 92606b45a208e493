"""Deployments that were compared: knobs, results and slacks as columns.

A small space is kept whole. Of a large one, what a stream has kept: the best by each
objective, the front and the nearest, beside counts of all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import numpy as np

from jaxlens.batch import Columns
from jaxlens.device_layouts import Layout
from jaxlens.limits import REASONS, Limits
from jaxlens.plans import Plan
from jaxlens.predictions import Estimate, exact
from jaxlens.questions import FIELDS, knobs_at
from jaxlens.queueing import Arrivals
from jaxlens.requests import Request
from jaxlens.surveys import Survey

# Quantity to rank by, and the sign that makes less of it better.
OBJECTIVES: Mapping[str, float] = {
    "joules_per_output_token": 1.0,
    "seconds_per_output_token": 1.0,
    "seconds_prefill": 1.0,
    "seconds_to_first_token": 1.0,
    "seconds_to_first_token_p99": 1.0,
    "watts_per_gpu": 1.0,
    "output_tokens_per_second": -1.0,
    "output_tokens_per_second_per_gpu": -1.0,
    "output_tokens_per_joule": -1.0,
    "wall_joules_per_output_token": 1.0,
    "dollars_per_million_output_tokens": 1.0,
    "grams_co2_per_million_output_tokens": 1.0,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ExploreResult:
    """The deployments that were compared, as columns: one entry per deployment.

    Columns hold knobs, results and, per reason in `limits.REASONS`, a signed relative
    slack: negative where a deployment is ruled out. `gpu` is a position in `requests`: one
    for each kind of deployment, that is GPU, model, stack, formats and flags. `index` is a
    position in the space of that kind.
    """

    plans: tuple[Plan, ...]  # one per kind of deployment
    limits: Limits
    objective: str
    columns: Columns
    soft: tuple[str, ...] = ()  # power budgets that exclude nothing
    arrivals: Arrivals | None = None  # results are then at that load
    surveys: tuple[Survey, ...] = ()  # one per plan, where `columns` is a part of them

    @property
    def requests(self) -> tuple[Request, ...]:
        """One for each kind of deployment."""
        return tuple(plan.request for plan in self.plans)

    @property
    def layouts(self) -> tuple[tuple[Layout, ...], ...]:
        """Layouts of each kind of deployment."""
        return tuple(plan.layouts for plan in self.plans)

    @property
    def labels(self) -> tuple[str, ...]:
        """What tells each kind of deployment from the others: the GPU, at least."""
        return tuple(plan.label for plan in self.plans)

    @property
    def size(self) -> int:
        """How many deployments were compared."""
        if self.surveys:
            return sum(survey.evaluated for survey in self.surveys)
        return sum(plan.size for plan in self.plans)

    @property
    def whole(self) -> bool:
        """Whether columns hold every deployment, in the order of the plans' spaces."""
        return not self.surveys

    @property
    def interrupted(self) -> bool:
        """Whether the comparison ended before all deployments were evaluated."""
        return any(survey.interrupted for survey in self.surveys)

    @property
    def feasible_count(self) -> int:
        """How many deployments meet every limit."""
        if self.surveys:
            return sum(survey.feasible for survey in self.surveys)
        return int(self.feasible.sum())

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


def request(result: ExploreResult, index: int) -> Request:
    """Returns one of the compared deployments with its model, GPU and traffic."""
    plan = result.plans[int(result.columns["gpu"][index])]
    knobs = knobs_at(plan.question, plan.space, int(result.columns["index"][index]))
    knobs.pop("sequences")
    sent = {name: knobs.pop(name) for name, o in FIELDS.items() if o == "workload"}
    asked = plan.request
    return replace(
        asked,
        deployment=replace(asked.deployment, **knobs),
        workload=replace(asked.workload, **sent),
    )


def estimate(asked: Request) -> Estimate:
    """Returns the full estimate of a request in float64, in plain numbers."""
    found = exact(asked.model, asked.profile, asked.deployment, asked.workload)
    return jax.tree.map(float, found)
