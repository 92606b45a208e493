"""Many evaluations in one call: the only home of jit, vmap and chunks.

Small spaces of a function that takes NumPy arrays as well as traced scalars (`elementwise`)
are evaluated at once: compiling it would take longer than all of them.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.spaces import Space, coordinates, digits, point

Scalar = Float[Array, ""] | float
Function = Callable[[Any, Mapping[str, Scalar]], dict[str, Scalar]]
Columns = dict[str, np.ndarray]

CHUNK = 8192  # configurations per call of the compiled program
# Below this size a program that compiles fast finishes before one that runs fast.
# Measured: two cores of an AMD EPYC with AVX-512, jax 0.10.2, Llama-3.1-70B: 1.1 s to
# compile and 0.25 M configurations/s a core, against 4.3 s of CPU time and 6 M.
QUICK_SIZE = 500_000
QUICK_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}
FAST_OPTIONS = {"xla_cpu_prefer_vector_width": 512}
# Up to this size NumPy finishes before any program has been compiled.
# Measured: two cores of an AMD EPYC with AVX-512: 0.5 M (dense) and 0.25 M configurations/s
# (experts) a core, against 4 to 10 s of CPU time to compile.
PLAIN_SIZE = 2**20
PLAIN_CHUNK = (
    16384  # temporaries stay in a core's cache, and calls cost less than their work
)

_ELEMENTWISE: set[Function] = set()


def elementwise(function: Function) -> Function:
    """Returns a function of a module, which takes NumPy arrays as it takes scalars."""
    _ELEMENTWISE.add(function)
    return function


def is_elementwise(function: Function) -> bool:
    """Returns whether a function takes NumPy arrays."""
    return function in _ELEMENTWISE


def evaluate(
    function: Function,
    shared: Any,
    space: Space,
    progress: Callable[[int], None] | None = None,
) -> Columns:
    """Returns what `function` gives at every configuration of a space, in float32.

    All of it is held in memory: `streams.stream` is for large spaces.

    Args:
        function: `function(shared, values)`, scalar in, scalars out by name. A function of
            a module: it is compiled once per structure of `shared` and `space`, whatever
            their numbers.
        shared: What all configurations have in common, a pytree of floats.
        space: The configurations; results are in the order of its indices.
        progress: Called with the number of configurations that a chunk has finished.

    Raises:
        ValueError: a result is NaN; the message names the configuration.
    """
    return columns(function, shared, space, 0, space.size, progress)


def columns(
    function: Function,
    shared: Any,
    space: Space,
    first: int,
    count: int,
    progress: Callable[[int], None] | None = None,
) -> Columns:
    """Returns what `function` gives at `count` configurations from index `first` on.

    As `evaluate`, of a part of a space. Which of the two programs runs depends on the size
    of the whole space, so that parts and whole give the same bits.

    Raises:
        ValueError: the range leaves the space, or a result is NaN; the message names the
            configuration.
    """
    if not (first >= 0 and count > 0 and first + count <= space.size):
        raise ValueError(
            f"sweep: expected a range within the {space.size} configurations of the "
            f"space, got {count} from index {first} on."
        )
    plain = is_elementwise(function) and space.size <= PLAIN_SIZE
    program = (
        _plain(function) if plain else _compiled(function, space.size <= QUICK_SIZE)
    )
    size = PLAIN_CHUNK if plain else CHUNK
    shared, traced = numbers(shared, np.float32), numbers(space, np.float32)
    offsets = np.arange(size, dtype=np.float32)

    def chunk(begin: int) -> Columns:
        start = np.array(digits(space, begin), np.float32)
        found = jax.device_get(program(shared, traced, start, offsets))
        length = min(size, first + count - begin)
        if progress is not None:
            progress(length)
        return {name: values[:length] for name, values in found.items()}

    begins = range(first, first + count, size)
    parts = [chunk(first)]  # alone: it may compile
    if len(begins) > 1:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts += pool.map(chunk, begins[1:])
    found = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    _reject_nan(found, space, first)
    return found


def at_once(function: Function, shared: Any, values: Mapping[str, Any]) -> Columns:
    """Returns what an elementwise function gives for arrays, in the type of its numbers."""
    with np.errstate(all="ignore"):
        found = function(shared, values)
    shape = np.broadcast_shapes(*(np.shape(value) for value in values.values()))
    return {name: np.broadcast_to(value, shape) for name, value in found.items()}


def numbers(tree: Any, dtype: Any) -> Any:
    """Returns a tree of NumPy numbers and arrays of one type."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype)[()], tree)


def compilations(function: Function) -> int:
    """Returns how many programs `function` has been compiled to."""
    return sum(_compiled(function, quick)._cache_size() for quick in (True, False))


def _plain(function: Function) -> Any:
    def chunk(shared: Any, space: Space, start: Any, offsets: Any) -> Columns:
        values = coordinates(space, start, offsets)
        found = at_once(function, shared, values)
        return {name: np.asarray(column, np.float32) for name, column in found.items()}

    return chunk


@cache
def _compiled(function: Function, quick: bool) -> Any:
    def chunk(shared: Any, space: Space, start: Any, offsets: Any) -> Any:
        def one(offset: Scalar) -> dict[str, Scalar]:
            found = function(shared, coordinates(space, start, offset))
            return {name: jnp.asarray(value) for name, value in found.items()}

        return jax.vmap(one)(offsets)

    if jax.default_backend() != "cpu":
        return jax.jit(chunk)
    options = QUICK_OPTIONS if quick else FAST_OPTIONS
    return jax.jit(chunk, compiler_options=options)


def _reject_nan(columns: Columns, space: Space, first: int) -> None:
    for name, values in columns.items():
        bad = np.flatnonzero(np.isnan(values))
        if bad.size:
            index = first + int(bad[0])
            raise ValueError(
                f"sweep: expected numbers, got NaN for {name} in {bad.size} of "
                f"{values.size} configurations, first at index {index}, "
                f"{point(space, index)}; check the coefficients of chip and stack."
            )
