"""The optimum of a problem: relaxed in every branch at once, rounded where it can be best.

A branch is one combination of the enumerated variables, such as a layout. Branches are
rounded in the order of their relaxed optima, until those that are left promise no less than
what has been found: branch and bound, whose bounds are local optima of the relaxed problem.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from jaxlens.deployments import Deployment
from jaxlens.layouts import check_layout
from jaxlens.optimize.evaluators import Evaluator, Function
from jaxlens.optimize.outcomes import (
    FIELDS,
    KNOBS,
    QUANTITIES,
    SEQUENCES,
    Prices,
    Question,
    completed,
    outcome,
)
from jaxlens.optimize.problems import Limit, Problem, Values, at_least
from jaxlens.optimize.relaxations import Relaxation
from jaxlens.optimize.results import Alternative, Optimum
from jaxlens.optimize.rounding import MET, Candidate, Rounding
from jaxlens.optimize.solvers import SMALL_EXCESS, Relaxed, joined, relax
from jaxlens.optimize.variables import Variable, of_chip
from jaxlens.requests import RANGES, Request, has_network

SIGNED = frozenset({"memory_slack_bytes"})
POSITIVE = frozenset(QUANTITIES) - SIGNED
WORTH = 1e-4  # relative: a branch that promises less than this is left alone
MOST_CORNERS = 3  # free variables whose corners are all looked at
ROUNDED = 2  # branches that are rounded in any case: the best and a runner-up
GROUPS = ("data_parallel", "pipeline_parallel")
DEGREES = ("tensor_parallel", "expert_parallel", *GROUPS)
PROMISING = 0.03  # scaled: branches this near the best are searched further
FEW = 3
FLAT = 1e-9
WALLED = 1e-3  # slope that presses a variable against its bound, scaled


def solve(
    problem: Problem,
    request: Request,
    *,
    prices: Prices | None = None,
    starts: int = 1,
    rounded: int = ROUNDED,
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

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    chip = request.profile.chip
    _check_names(problem)
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
    return _Search(relaxation, starts).solve(rounded)


def solve_function(
    problem: Problem,
    function: Function,
    shared: Any = None,
    *,
    starts: int = 6,
    rounded: int = ROUNDED,
) -> Optimum:
    """Returns the best point of `function(shared, values)`, which gives scalars by name.

    Written with jax.numpy and defined in a module, so that it is compiled once. Gradients
    are automatic here.
    """
    evaluator = Evaluator(function, shared, tuple(problem.variables))
    relaxation = Relaxation(
        problem, problem.variables, evaluator, positive=frozenset(), automatic=True
    )
    return _Search(relaxation, starts).solve(rounded)


@dataclass
class _Search:
    relaxation: Relaxation
    starts: int

    def solve(self, rounded: int) -> Optimum:
        started = time.perf_counter()
        best = self.run(rounded)
        seconds = time.perf_counter() - started
        return self.result(best, seconds - self.relaxation.evaluator.compile_seconds)

    def run(self, rounded: int) -> Candidate:
        relaxation = self.relaxation
        self.rounding = Rounding(relaxation)
        self.count = len(relaxation.branches)
        self.looks = self._look()
        self.relaxed: Relaxed | None = None
        self.relaxed, self.lane_branch = self._relax()
        self.bests = [self._known(branch) for branch in range(self.count)]
        self.finished: set[int] = set()
        self.bounds = [self._bound(branch) for branch in range(self.count)]
        for branch in sorted(range(self.count), key=lambda b: self.bounds[b]):
            bound = self.bounds[branch]
            best = min(self.bests, key=lambda c: c.rank)
            missed, objective = bound
            hopeless = (missed, objective + WORTH) >= best.rank[:2]
            if hopeless and len(self.finished) >= rounded:
                continue
            if missed > 0.0 and best.excess == 0.0 and len(self.finished) >= rounded:
                continue
            self._round(branch)
        return min(self.bests, key=lambda c: c.rank)

    def _known(self, branch: int) -> Candidate:
        found = self.rounding.best_known(branch)
        assert found is not None
        return found

    def _look(self) -> list[list[Candidate]]:
        """Corners and centre of every branch, exactly."""
        free = len(self.relaxation.free)
        rows = np.full((1, free), 0.5)
        if 0 < free <= MOST_CORNERS:
            corners = np.array(list(product((0.0, 1.0), repeat=free)))
            rows = np.concatenate([rows, corners])
        elif free:
            ends = [np.where(np.eye(free) > 0, end, 0.5) for end in (0.0, 1.0)]
            rows = np.concatenate([rows, *ends])
        every = np.concatenate([rows] * self.count)
        lanes = np.repeat(np.arange(self.count), len(rows))
        self.relaxation.calibrate(every, lanes)
        return self.rounding.evaluate_all(lanes, every)

    def _relax(self) -> tuple[Relaxed | None, np.ndarray]:
        """Every branch from its best corner, promising ones from further starts too."""
        free = len(self.relaxation.free)
        if not free:
            return None, np.arange(0)
        corners = [min(seen, key=lambda c: c.rank).coordinates for seen in self.looks]
        lanes = np.arange(self.count)
        self.lane_branch = lanes
        self.relaxed = self._relaxed(np.clip(corners, 0.02, 0.98), lanes)
        more = np.repeat(self._promising(), self.starts)
        starts = np.tile(_spread(self.starts, free), (len(more) // self.starts, 1))
        found = joined(self.relaxed, self._relaxed(starts, more))
        lanes = np.concatenate([lanes, more])
        if self.relaxation.rescale(found.multipliers, found.objective):
            self.rounding.judge_again()
            again = self._relaxed(found.coordinates, lanes)
            found = replace(again, steps=found.steps + again.steps)
        return found, lanes

    def _promising(self) -> np.ndarray:
        """Branches that are near the best, or among the first few."""
        ranks = [self._lane_rank(branch) for branch in range(self.count)]
        order = sorted(range(self.count), key=lambda branch: ranks[branch])
        best = ranks[order[0]]
        near = [b for b in order if ranks[b] <= (best[0], best[1] + PROMISING)]
        return np.array(near if len(near) > FEW else order[:FEW])

    def _relaxed(self, starts: np.ndarray, lanes: np.ndarray) -> Relaxed:
        relaxation = self.relaxation
        low = np.zeros_like(starts)
        return relax(
            relaxation.slopes, starts, lanes, low, low + 1.0, relaxation.weights
        )

    def _ordered(self, branch: int) -> list[int]:
        """Lanes of a branch, best first."""
        assert self.relaxed is not None
        own = np.flatnonzero(self.lane_branch == branch)
        return sorted(own.tolist(), key=self._lane_rank)

    def _lane_rank(self, lane: int) -> tuple[float, float]:
        assert self.relaxed is not None
        missed = float(self.relaxed.excess(self.relaxation.hard)[lane])
        objective = float(self.relaxed.objective[lane])
        soft = ~self.relaxation.hard
        beyond = np.maximum(-self.relaxed.slacks[lane, soft], 0.0)
        objective += float(beyond @ self.relaxation.weights[soft])
        if not np.isfinite(objective):
            return np.inf, np.inf
        return (0.0 if missed <= 10.0 * SMALL_EXCESS else missed), objective

    def _bound(self, branch: int) -> tuple[float, float]:
        if self.relaxed is None:
            return self.bests[branch].rank[:2]
        return min(
            self._lane_rank(self._ordered(branch)[0]), self.bests[branch].rank[:2]
        )

    def _round(self, branch: int) -> None:
        self.finished.add(branch)
        if self.relaxed is None:
            return
        lanes = self._distinct(self._ordered(branch))
        centres = self.relaxed.coordinates[lanes]
        if self.rounding.discrete:
            prices = self.relaxed.multipliers[lanes]
            found = self.rounding.rounded(branch, centres, prices)
        else:
            found = self.rounding.solved(branch, centres)
        self.bests[branch] = min(found, self.bests[branch], key=lambda c: c.rank)

    def _distinct(self, lanes: list[int]) -> list[int]:
        """Lanes that have ended elsewhere than better ones, within 1 %; three at most."""
        assert self.relaxed is not None
        chosen: list[int] = []
        for lane in lanes:
            at = self.relaxed.coordinates[lane]
            near = [
                other
                for other in chosen
                if np.abs(at - self.relaxed.coordinates[other]).max() < 0.01
            ]
            missed, objective = self._lane_rank(lane)
            first = self._lane_rank(lanes[0])
            hopeless = (missed, objective) > (first[0], first[1] + 0.02)
            if not chosen or not (near or hopeless):
                chosen.append(lane)
        return chosen[:3]

    def result(self, best: Candidate, seconds: float) -> Optimum:
        relaxation, evaluator = self.relaxation, self.relaxation.evaluator
        names = evaluator.quantities
        quantities = dict(zip(names, best.found.tolist(), strict=True))
        slacks, violations = {}, {}
        for (name, limit), label in zip(
            relaxation.limits, labels(relaxation.limits), strict=True
        ):
            slacks[label] = limit.slack(quantities[name])
            size = MET * max(1.0, abs(limit.value))
            if slacks[label] < -size and np.isinf(limit.weight):
                violations[label] = -slacks[label]
        objective = relaxation.problem.objective
        multipliers = self._multipliers(best)
        lane = self._best_lane(best.branch)
        coordinates = (
            best.coordinates
            if lane is None or self.relaxed is None
            else self.relaxed.coordinates[lane]
        )
        relaxed = best.objective if lane is None else self._lane_rank(lane)[1]
        return Optimum(
            reason=self._reason(best, lane),
            values=self._values(best),
            objective=quantities[objective],
            quantities=quantities,
            slacks=slacks,
            multipliers=multipliers,
            violations=violations,
            binding=tuple(name for name, price in multipliers.items() if price > 0.0),
            at_bounds=self._at_bounds(lane),
            relaxed_values=relaxation.point(coordinates, best.branch),
            relaxed_objective=self._unscaled(relaxed),
            alternatives=self._alternatives(best),
            steps=0 if self.relaxed is None else self.relaxed.steps,
            evaluations=evaluator.evaluations,
            lanes=evaluator.lanes,
            seconds=seconds,
            compile_seconds=evaluator.compile_seconds,
            space=relaxation.size,
        )

    def _best_lane(self, branch: int) -> int | None:
        return None if self.relaxed is None else self._ordered(branch)[0]

    def _reason(self, best: Candidate, lane: int | None) -> str:
        low, high = self.relaxation.lowest, self.relaxation.highest
        if best.excess > 0.0:
            return "infeasible"
        if high - low <= FLAT * max(abs(low), abs(high)):
            return "flat"
        converged = self.relaxed is None or bool(self.relaxed.converged[lane])
        discrete = bool(self.rounding.discrete)
        return "optimal" if converged or discrete else "relaxed"

    def _values(self, best: Candidate) -> dict[str, float]:
        """Values by name, exactly those of the variables' lists."""
        found = self.relaxation.point(best.coordinates, best.branch)
        for name, value in found.items():
            values = self.relaxation.variables[name].values
            if values is not None:
                found[name] = float(values[np.argmin(np.abs(values - value))])
        return found

    def _unscaled(self, scaled: float) -> float:
        problem, relaxation = self.relaxation.problem, self.relaxation
        if problem.objective in relaxation.positive:
            return float(np.exp(problem.sign * scaled))
        return float(problem.sign * scaled * relaxation.scales[0])

    def _multipliers(self, best: Candidate) -> dict[str, float]:
        """Derivatives of the objective in the limits, in user units."""
        relaxation = self.relaxation
        names = labels(relaxation.limits)
        lane = self._best_lane(best.branch)
        if lane is None or self.relaxed is None or best.excess > 0.0:
            return dict.fromkeys(names, 0.0)
        objective = self._unscaled(float(self.relaxed.objective[lane]))
        size = relaxation.scales[0]
        if relaxation.problem.objective in relaxation.positive:
            size = abs(objective)
        found = {}
        for position, (_, limit) in enumerate(relaxation.limits):
            unit = relaxation.scales[1 + position]
            if relaxation.relative(position):
                unit = limit.value
            price = float(self.relaxed.multipliers[lane, position])
            found[names[position]] = float(price * size / unit) if price > 1e-6 else 0.0
        return found

    def _at_bounds(self, lane: int | None) -> dict[str, str]:
        if lane is None or self.relaxed is None:
            return {}
        found = {}
        for axis, name in enumerate(self.relaxation.free):
            at = self.relaxed.coordinates[lane, axis]
            slope = self.relaxed.reduced_slope[lane, axis]
            if at < 1e-6 and slope > WALLED:
                found[name] = "lowest"
            if at > 1.0 - 1e-6 and slope < -WALLED:
                found[name] = "highest"
        return found

    def _alternatives(self, best: Candidate) -> tuple[Alternative, ...]:
        column = self.relaxation.evaluator.quantities.index(
            self.relaxation.problem.objective
        )
        others = [self.bests[b] for b in self.finished if b != best.branch]
        return tuple(
            Alternative(
                values=self._values(c),
                objective=float(c.found[column]),
                feasible=c.excess == 0.0,
            )
            for c in sorted(others, key=lambda c: c.rank)
        )


def labels(limits: Iterable[tuple[str, Limit]]) -> list[str]:
    """Returns a name for each limit: its quantity, with the sense if it has several."""
    listed = list(limits)
    names = [name for name, _ in listed]
    return [
        name
        if names.count(name) == 1
        else f"{name} {'<=' if limit.sense > 0.0 else '>='} {limit.value:g}"
        for name, limit in listed
    ]


def _spread(count: int, free: int) -> list[np.ndarray]:
    """Points that fill a box evenly, the first in its middle.

    Source: M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018,
    https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/.
    """
    ratio = 2.0
    for _ in range(30):  # x^(n+1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (free + 1.0))
    steps = ratio ** -np.arange(1.0, free + 1.0)
    return [(0.5 + position * steps) % 1.0 for position in range(count)]


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
