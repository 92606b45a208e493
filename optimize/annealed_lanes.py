"""A relaxed problem as numbers for the compiled augmented Lagrangian, and its answers.

Fixed are function, names and padded sizes: one program serves all bounds, limits, objectives,
targets and starts of a structure. Lanes go 16 to a call.
"""

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxlens.batch import QUICK_OPTIONS
from jaxlens.optimize.augmented_lagrangian import (
    CONVERGED,
    REASONS,
    UNDEFINED,
    Lane,
    State,
    Task,
    descend,
)
from jaxlens.optimize.evaluators import Function
from jaxlens.optimize.relaxations import Relaxation
from jaxlens.optimize.solvers import HARD_WEIGHT, USED_UP, Relaxed
from jaxlens.optimize.variables import Variable

LANES = 16  # of one call
LIMITS = 8  # what limits are padded to, or a multiple
RAMPS = 4  # what the ramps of a digit are padded to, or a power of two
EVEN = 1e-9  # relative: equal distances
ASIDE = 1.5  # digits: annealing begins that far beside the relaxed optimum at most

Rows = Float[np.ndarray, "lane free"]


class AnnealedLanes:
    """The compiled method on one relaxation; counts into its evaluator."""

    def __init__(
        self,
        relaxation: Relaxation,
        function: Function,
        shared: Any,
        names: tuple[str, ...],
        fixed: Mapping[str, float],
    ) -> None:
        """Takes what `function` is asked, and the values of names that are not searched."""
        self.relaxation = relaxation
        self.function = function
        self.shared = shared
        self.names = names
        self.fixed = fixed
        self.places = [names.index(name) for name in relaxation.free]
        self.visits = np.zeros(len(relaxation.branches), int)
        self.reasons: list[str] = []  # of the lanes of the last call

    def relaxed(self, starts: Rows, branches: Int[np.ndarray, " lane"]) -> Any:
        """Returns where lanes were at rest, and where annealing has taken them.

        Raises:
            ValueError: no lane has a gradient that is a number.
        """
        lanes = self._lanes(starts, branches)
        task = self._task()
        states, steps = [], 0
        for first in range(0, len(starts), LANES):
            rows = np.minimum(np.arange(first, first + LANES), len(starts) - 1)
            state, taken = self._run(task, _rows(lanes, rows))
            states.append(_rows(state, slice(len(starts) - first)))
            steps += int(taken)
        if not states:
            return _nothing(starts, len(self.relaxation.limits)), starts
        state = jax.tree.map(lambda *leaves: np.concatenate(leaves), *states)
        self.relaxation.evaluator.evaluations += int(state.evaluations.sum())
        self.relaxation.evaluator.lanes += LANES * steps
        self._check(state)
        return self._found(state, steps), state.at[:, self.places]

    def _run(self, task: Task, lanes: Lane) -> tuple[State, Any]:
        with jax.enable_x64(True):
            program, seconds = _compiled(self.function, self.names, task, lanes)
            self.relaxation.evaluator.compile_seconds += seconds
            return jax.device_get(program(task, lanes))

    def _check(self, state: State) -> None:
        self.reasons = [REASONS[int(reason)] for reason in state.reason]
        if (state.reason == UNDEFINED).all():
            raise ValueError(
                f"{self.relaxation.problem.objective}: expected a gradient that is a number "
                f"at some start, got NaN or infinity at all {len(state.reason)}; narrow the "
                f"bounds, or take method='quadratic'."
            )

    def _found(self, state: State, steps: int) -> Relaxed:
        limits = slice(len(self.relaxation.limits))
        slacks = state.slacks[:, limits]
        prices = np.where(slacks > USED_UP, 0.0, state.prices[:, limits])
        return Relaxed(
            coordinates=np.asarray(state.relaxed)[:, self.places],
            objective=np.asarray(state.objective),
            slacks=np.asarray(slacks),
            multipliers=prices,
            reduced_slope=np.asarray(state.slope)[:, self.places],
            converged=np.asarray(state.reason) == CONVERGED,
            steps=steps,
        )

    def _lanes(self, starts: Rows, branches: Int[np.ndarray, " lane"]) -> Lane:
        relaxation, count = self.relaxation, len(starts)
        shape = count, len(self.names)
        start, free, away = np.full(shape, 0.5), np.zeros(shape), np.zeros(shape)
        fixed = np.tile([self.fixed.get(name, 0.0) for name in self.names], (count, 1))
        for position, name in enumerate(relaxation.fixed):
            values = relaxation.branches[branches, position]
            fixed[:, self.names.index(name)] = values
        start[:, self.places], free[:, self.places] = starts, 1.0
        for lane, branch in enumerate(branches):
            turn = self.visits[branch]
            self.visits[branch] += 1
            # The first lane of a branch anneals from the relaxed optimum itself.
            golden = (turn * 0.618034 * (1.0 + np.arange(len(self.places)))) % 1.0
            signs = np.where(golden < 0.5, golden, golden - 1.0)
            away[lane, self.places] = 2.0 * ASIDE * signs
        found: dict[str, Any] = dict(start=start, free=free, fixed=fixed, away=away)
        return Lane(**found)

    def _task(self) -> Task:
        relaxation, problem = self.relaxation, self.relaxation.problem
        known = relaxation.evaluator.quantities
        limits = relaxation.limits
        count = max(1, -(-len(limits) // LIMITS)) * LIMITS

        def padded(values: Any, fill: float) -> np.ndarray:
            rest = [fill] * (count - len(limits))
            return np.array([*(float(value) for value in values), *rest])

        listed = [limit for _, limit in limits]
        numbers: dict[str, Any] = dict(
            shared=jax.tree.map(lambda leaf: np.asarray(leaf, float), self.shared),
            sign=np.array(problem.sign),
            place=np.array(float(known.index(problem.objective))),
            relative=np.array(float(problem.objective in relaxation.positive)),
            scale=np.array(float(relaxation.scales[0])),
            places=padded([known.index(name) for name, _ in limits], 0.0),
            relatives=padded([relaxation.relative(i) for i in range(len(limits))], 0.0),
            senses=padded([limit.sense for limit in listed], 0.0),
            values=padded([limit.value for limit in listed], 1.0),
            scales=padded(relaxation.scales[1:], 1.0),
            weights=np.minimum(padded(relaxation.weights, 1.0), HARD_WEIGHT),
            hard=padded(relaxation.hard, 0.0),
        )
        return Task(**numbers, **self._boxes())

    def _boxes(self) -> dict[str, Any]:
        size = len(self.names)
        searched = self.relaxation.variables
        found: dict[str, Any] = {"low": np.ones(size), "high": np.ones(size)}
        found["logarithmic"] = np.zeros(size)
        rows = [
            ramps(searched[name]) if name in self.relaxation.free else np.zeros((0, 3))
            for name in self.names
        ]
        longest = max((len(row) for row in rows), default=0)
        width = max(RAMPS, 1 << max(longest - 1, 0).bit_length())
        table = np.tile([0.0, 1.0, 0.0], (size, width, 1))
        for place, row in enumerate(rows):
            table[place, : len(row)] = row
        for place, name in zip(self.places, self.relaxation.free, strict=True):
            variable = searched[name]
            found["low"][place], found["high"][place] = variable.low, variable.high
            found["logarithmic"][place] = float(variable.logarithmic)
        found["lefts"], found["widths"], found["mosts"] = np.moveaxis(table, 2, 0)
        return found


def _rows(tree: Any, rows: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def ramps(variable: Variable) -> Float[np.ndarray, "ramp 3"]:
    """Returns left end, distance and number of steps of each evenly spaced part of a list.

    >>> from jaxlens.optimize.variables import integer, one_of
    >>> ramps(integer(3, 9)).tolist()
    [[3.0, 1.0, 6.0]]
    >>> ramps(one_of([1, 2, 3, 7])).tolist()
    [[1.0, 1.0, 2.0], [3.0, 4.0, 1.0]]
    """
    if variable.kind == "integer":
        return np.array([[variable.low, 1.0, variable.high - variable.low]])
    if variable.values is None or variable.values.size < 2:
        return np.zeros((0, 3))
    found: list[list[float]] = []
    for left, right in zip(variable.values[:-1], variable.values[1:], strict=True):
        width = right - left
        if found and abs(width - found[-1][1]) <= EVEN * width:
            found[-1][2] += 1.0
        else:
            found.append([float(left), float(width), 1.0])
    return np.array(found)


def compilations(function: Function) -> int:
    """Returns how many programs `function` has been compiled to."""
    return sum(known[0] is function for known in _programs)


_programs: dict[Any, Any] = {}


def _compiled(
    function: Function, names: tuple[str, ...], task: Task, lanes: Lane
) -> tuple[Any, float]:
    """The program for a structure, and the seconds that compiling has taken now."""
    leaves, structure = jax.tree.flatten((task, lanes))
    key = function, names, structure, tuple(np.shape(leaf) for leaf in leaves)
    started = time.perf_counter()
    known = key in _programs
    if not known:
        # optax counts its steps in integers, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            _programs[key] = _program(function, names).lower(task, lanes).compile()
    return _programs[key], 0.0 if known else time.perf_counter() - started


@cache
def _program(function: Function, names: tuple[str, ...]) -> Any:
    def program(task: Task, lanes: Lane) -> Any:
        return descend(function, names, task, lanes)

    options = QUICK_OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(program, compiler_options=options)


def _nothing(starts: Rows, limits: int) -> Relaxed:
    none = np.zeros((0, limits))
    return Relaxed(
        coordinates=starts,
        objective=np.zeros(0),
        slacks=none,
        multipliers=none,
        reduced_slope=np.zeros_like(starts),
        converged=np.zeros(0, bool),
        steps=0,
    )
