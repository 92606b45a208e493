"""Many points of one function in few calls of one compiled program, all of them counted.

The same program serves the steps of a solver and the candidates of its rounding, so the
function is compiled once for each structure, whatever the numbers of the problem.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.batch import QUICK_OPTIONS

Scalar = Float[Array, ""] | float
Function = Callable[[Any, Mapping[str, Scalar]], dict[str, Scalar]]

LANES = 16  # points of one call; calls are padded to it


class Evaluator:
    """A function of named values, evaluated in float64 at the rows of a matrix.

    `evaluations` counts the points asked for, `lanes` those of the calls with padding.
    `complete` turns the rows that are asked into those of all `names`, so that one program
    serves searches over different variables.
    """

    def __init__(
        self,
        function: Function,
        shared: Any,
        names: Sequence[str],
        complete: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.complete = complete
        self.function = function
        self.names = tuple(names)
        self.evaluations = 0
        self.lanes = 0
        self.compile_seconds = 0.0
        self.quantities: tuple[str, ...] = ()
        with jax.enable_x64(True):
            numbers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), shared)
            self._shared = jax.device_put(numbers)

    def values(
        self, points: Float[np.ndarray, "point name"]
    ) -> Float[np.ndarray, "point quantity"]:
        """Returns every quantity at every point."""
        return self._run(points, slopes=False)[0]

    def slopes(
        self, points: Float[np.ndarray, "point name"]
    ) -> tuple[
        Float[np.ndarray, "point quantity"], Float[np.ndarray, "point quantity name"]
    ]:
        """Returns quantities and their derivatives, by automatic differentiation."""
        found, rates = self._run(points, slopes=True)
        return found, rates

    def _run(self, points: np.ndarray, *, slopes: bool) -> Any:
        if self.complete is not None:
            points = self.complete(points)
        program = _program(self.function, self.names, slopes)
        known = program._cache_size()
        started = time.perf_counter()
        parts = [
            self._chunk(program, points[first : first + LANES])
            for first in range(0, len(points), LANES)
        ]
        if program._cache_size() > known:
            self.compile_seconds += time.perf_counter() - started
        self.evaluations += len(points)
        self.lanes += LANES * len(parts)
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _chunk(self, program: Any, points: np.ndarray) -> list[np.ndarray]:
        padding = np.repeat(points[-1:], LANES - len(points), axis=0)
        with jax.enable_x64(True):
            found = program(self._shared, np.concatenate([points, padding]))
        (self.quantities,) = found
        return [np.asarray(part)[: len(points)] for part in found[self.quantities]]


def compilations(function: Function) -> int:
    """Returns how many programs `function` has been compiled to."""
    return sum(program._cache_size() for program in _programs.get(function, ()))


_programs: dict[Function, list[Any]] = {}


@cache
def _program(function: Function, names: tuple[str, ...], slopes: bool) -> Any:
    def answers(
        shared: Any, point: Float[Array, " name"]
    ) -> tuple[Any, tuple[str, ...]]:
        values = {name: point[position] for position, name in enumerate(names)}
        found = function(shared, values)
        numbers = [jnp.asarray(found[name], point.dtype) for name in found]
        return jnp.stack(numbers), tuple(found)

    def chunk(shared: Any, points: Float[Array, "point name"]) -> Any:
        quantities: list[tuple[str, ...]] = []

        def value(point: Float[Array, " name"]) -> Any:
            found, asked = answers(shared, point)
            quantities.append(asked)
            return found

        def both(point: Float[Array, " name"]) -> Any:
            rates, found = jax.jacfwd(lambda at: (value(at),) * 2, has_aux=True)(point)
            return found, rates

        found = jax.vmap(both)(points) if slopes else (jax.vmap(value)(points),)
        return {quantities[0]: found}

    options = QUICK_OPTIONS if jax.default_backend() == "cpu" else None
    program = jax.jit(chunk, compiler_options=options)
    _programs.setdefault(function, []).append(program)
    return program
