"""The relaxed problem: coordinates from 0 to 1, a scaled objective and scaled slacks.

Objective and slacks are logarithms of ratios where quantities are positive by nature, since
latencies and energies are close to power laws; else differences, over a typical size.

Variables that are enumerated are fixed in each `branch`, the others are free.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxlens.optimize.evaluators import Evaluator
from jaxlens.optimize.problems import Limit, Problem
from jaxlens.optimize.variables import Variable

MOST_BRANCHES = 512
MOST_TRIED = 100_000  # combinations that `allowed` is asked about
STEP = 1e-6  # of a difference quotient, in coordinates
TELLING = 1e-3
SMALLEST_SIZE = 1e-9
TINY = 1e-300

Rows = Float[np.ndarray, "lane free"]
Lanes = Int[np.ndarray, " lane"]


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """Objective and slacks of each lane and their gradients in the free coordinates."""

    objective: Float[np.ndarray, " lane"]
    slacks: Float[np.ndarray, "lane limit"]
    objective_slope: Float[np.ndarray, "lane free"]
    slack_slope: Float[np.ndarray, "lane limit free"]


def branches(
    problem: Problem, variables: Mapping[str, Variable]
) -> tuple[tuple[str, ...], Float[np.ndarray, "branch name"]]:
    """Returns the names of enumerated variables and their allowed combinations.

    Without a say on what is allowed, the variables with most values are relaxed where there
    are more than `MOST_BRANCHES` combinations.
    """
    chosen = [
        name
        for name, variable in variables.items()
        if variable.enumerated or variable.low == variable.high
    ]
    while problem.allowed is None and _combinations(chosen, variables) > MOST_BRANCHES:
        chosen.remove(max(chosen, key=lambda name: variables[name].count))
    if _combinations(chosen, variables) > MOST_TRIED:
        raise ValueError(
            f"variables: expected at most {MOST_TRIED} combinations of "
            f"{', '.join(chosen)}, got {_combinations(chosen, variables):g}; narrow them."
        )
    rows = [
        row
        for row in product(*(_all_values(variables[name]) for name in chosen))
        if problem.allowed is None
        or problem.allowed(dict(zip(chosen, row, strict=True)))
    ]
    if not 0 < len(rows) <= MOST_BRANCHES:
        raise ValueError(
            f"variables: expected 1 to {MOST_BRANCHES} allowed combinations of "
            f"{', '.join(chosen) or 'nothing'}, got {len(rows)}; "
            f"{'narrow' if rows else 'widen'} their values."
        )
    return tuple(chosen), np.array(rows, float).reshape(len(rows), len(chosen))


def _combinations(names: list[str], variables: Mapping[str, Variable]) -> float:
    return math.prod(len(_all_values(variables[name])) for name in names)


def _all_values(variable: Variable) -> list[float]:
    values = variable.values
    if variable.low == variable.high:
        return [variable.low]
    return [] if values is None else [float(value) for value in values]


class Relaxation:
    """One problem on one function: what lies at a coordinate of a branch."""

    def __init__(
        self,
        problem: Problem,
        variables: Mapping[str, Variable],
        evaluator: Evaluator,
        *,
        positive: frozenset[str],
        automatic: bool,
    ) -> None:
        self.problem = problem
        self.variables = variables
        self.evaluator = evaluator
        self.automatic = automatic
        self.fixed, self.branches = branches(problem, variables)
        self.free = tuple(name for name in variables if name not in self.fixed)
        self.limits: tuple[tuple[str, Limit], ...] = problem.stated
        self.positive = positive
        self.scales = np.ones(1 + len(self.limits))
        self.weights = np.array([limit.weight for _, limit in self.limits], float)
        self.hard = np.isinf(self.weights)
        self.lowest, self.highest = math.inf, -math.inf  # objective ever seen

    @property
    def size(self) -> float:
        """How many points an exhaustive search has; infinity with real variables."""
        counts = (self.variables[name].count for name in self.free)
        return len(self.branches) * math.prod(counts)

    def calibrate(self, coordinates: Rows, lanes: Lanes) -> None:
        """Sets the sizes that differences are measured in, from a first look."""
        found = self.quantities(coordinates, lanes)
        names = [self.problem.objective, *(name for name, _ in self.limits)]
        stated = [0.0, *(limit.value for _, limit in self.limits)]
        for position, (name, value) in enumerate(zip(names, stated, strict=True)):
            seen = found[:, self._column(name)]
            if not np.isfinite(seen).any():
                raise ValueError(
                    f"{name}: expected a number somewhere, got {seen[0]} at every start, "
                    f"first at {self.point(coordinates[0], int(lanes[0]))}; check the "
                    f"bounds of the variables."
                )
            size = float(np.nanmax(np.abs(seen[np.isfinite(seen)])))
            telling = abs(value) > TELLING * size  # else no size to measure by
            self.scales[position] = (abs(value) if telling else size) or 1.0

    def rescale(self, objective: Float[np.ndarray, " lane"]) -> bool:
        """Returns whether another size of the objective suits what lanes have found.

        Far from its optima a function may be many times as large as near them.
        """
        if self.problem.objective in self.positive:
            return False
        size = float(np.abs(objective[np.isfinite(objective)]).max(initial=0.0))
        if not SMALLEST_SIZE < size < 0.1:
            return False
        self.scales[0] *= size
        return True

    def points(
        self, coordinates: Rows, lanes: Lanes
    ) -> Float[np.ndarray, "lane variable"]:
        """Returns the values of all variables, in the order of the problem."""
        values = np.empty((len(lanes), len(self.variables)))
        for position, name in enumerate(self.variables):
            if name in self.fixed:
                values[:, position] = self.branches[lanes, self.fixed.index(name)]
            else:
                at = coordinates[:, self.free.index(name)]
                values[:, position] = self.variables[name].from_unit(at)
        return values

    def point(
        self, coordinate: Float[np.ndarray, " free"], lane: int
    ) -> dict[str, float]:
        """Returns the values at one coordinate of one branch, by name."""
        row = self.points(coordinate[None], np.array([lane]))[0]
        return dict(zip(self.variables, row.tolist(), strict=True))

    def quantities(
        self, coordinates: Rows, lanes: Lanes
    ) -> Float[np.ndarray, "lane quantity"]:
        """Returns all quantities at coordinates."""
        return self.evaluator.values(self.points(coordinates, lanes))

    def judge(
        self, found: Float[np.ndarray, "lane quantity"]
    ) -> tuple[Float[np.ndarray, " lane"], Float[np.ndarray, "lane limit"]]:
        """Returns scaled objective (less is better) and slacks of evaluated points."""
        column = found[:, self._column(self.problem.objective)]
        finite = column[np.isfinite(column)]
        if finite.size:
            self.lowest = min(self.lowest, float(finite.min()))
            self.highest = max(self.highest, float(finite.max()))
        sign = self.problem.sign
        if self.problem.objective in self.positive:
            objective = sign * np.log(np.maximum(column, TINY))
        else:
            objective = sign * column / self.scales[0]
        slacks = np.empty((len(found), len(self.limits)))
        for position, (name, limit) in enumerate(self.limits):
            seen = found[:, self._column(name)]
            if self.relative(position):
                ratio = np.log(np.maximum(seen, TINY) / limit.value)
                slacks[:, position] = -limit.sense * ratio
            else:
                away = limit.sense * (limit.value - seen)
                slacks[:, position] = away / self.scales[1 + position]
        return objective, slacks

    def relative(self, position: int) -> bool:
        """Returns whether a limit's slack is the logarithm of a ratio."""
        name, limit = self.limits[position]
        return name in self.positive and limit.value > 0.0

    def slopes(
        self, coordinates: Rows, lanes: Lanes, moves: Bool[np.ndarray, "lane free"]
    ) -> Slopes:
        """Returns objective, slacks and their gradients in the coordinates that move."""
        if self.automatic:
            return self._automatic(coordinates, lanes)
        count = len(coordinates)
        # Into the box: a coordinate at 1 steps down.
        steps = np.where(coordinates + STEP <= 1.0, STEP, -STEP)
        of, along = np.nonzero(moves)
        moved = coordinates[of]
        moved[np.arange(of.size), along] += steps[of, along]
        found = self.quantities(
            np.concatenate([coordinates, moved]), np.concatenate([lanes, lanes[of]])
        )
        objective, slacks = self.judge(found)
        slope = np.zeros_like(coordinates)
        slack_slope = np.zeros((*slacks[:count].shape, coordinates.shape[1]))
        width = steps[of, along]
        slope[of, along] = (objective[count:] - objective[of]) / width
        rates = (slacks[count:] - slacks[of]) / width[:, None]
        slack_slope[of, :, along] = rates
        return Slopes(
            objective=objective[:count],
            slacks=slacks[:count],
            objective_slope=slope,
            slack_slope=slack_slope,
        )

    def _automatic(self, coordinates: Rows, lanes: Lanes) -> Slopes:
        points = self.points(coordinates, lanes)
        found, rates = self.evaluator.slopes(points)
        columns = [list(self.variables).index(name) for name in self.free]
        stretch = self._stretch(points[:, columns])
        rates = rates[:, :, columns] * stretch[:, None]
        objective, slacks = self.judge(found)
        column = self._column(self.problem.objective)
        size = self.scales[0]
        if self.problem.objective in self.positive:
            size = np.maximum(found[:, column, None], TINY)
        slope = self.problem.sign * rates[:, column] / size
        slack_slope = np.empty((*slacks.shape, len(self.free)))
        for position, (name, limit) in enumerate(self.limits):
            at = self._column(name)
            size = self.scales[1 + position]
            if self.relative(position):
                size = np.maximum(found[:, at, None], TINY)
            slack_slope[:, position] = -limit.sense * rates[:, at] / size
        return Slopes(
            objective=objective,
            slacks=slacks,
            objective_slope=slope,
            slack_slope=slack_slope,
        )

    def _stretch(self, values: Rows) -> Rows:
        """Derivatives of values in their coordinates."""
        found = np.empty_like(values)
        for position, name in enumerate(self.free):
            variable = self.variables[name]
            if variable.logarithmic:
                span = math.log(variable.high / variable.low)
                found[:, position] = values[:, position] * span
            else:
                found[:, position] = variable.high - variable.low
        return found

    def _column(self, name: str) -> int:
        known = self.evaluator.quantities
        if name not in known:
            raise ValueError(
                f"problem: expected a quantity such as {', '.join(known)}, got {name!r}."
            )
        return known.index(name)
