"""Compiled programs of streams: many points at once, in float32 and in float64.

One call covers any number of points, block by block. That number, the digits of the first
point and all numbers of the question are traced.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxlens import reductions
from jaxlens.batch import (
    FAST_OPTIONS,
    QUICK_OPTIONS,
    Function,
    Scalar,
    at_once,
    is_elementwise,
)
from jaxlens.batch import numbers as cast
from jaxlens.keeps import Numbers, Plan
from jaxlens.spaces import Space, coordinates, point

EXACT_BATCH = 256  # points evaluated at once in float64


def column_names(function: Function, shared: Any, space: Space) -> tuple[str, ...]:
    """Returns the names of the columns of a function, without evaluating it."""
    scalar = jax.ShapeDtypeStruct((), np.float32)
    values = dict.fromkeys(space.names, scalar)
    return tuple(jax.eval_shape(function, cast(shared, np.float32), values))


def exact(
    function: Function, shared: Any, space: Space, index: Int[np.ndarray, " point"]
) -> dict[str, Float[np.ndarray, " point"]]:
    """Returns all columns of some configurations in float64, in batches of one size."""
    if is_elementwise(function):
        return _exact_at_once(function, shared, space, index)
    padded = [int(i) for i in index]
    padded += padded[-1:] * (-len(padded) % EXACT_BATCH)
    points = [point(space, i) for i in padded]
    parts = []
    with jax.enable_x64(True):
        program, wide = _exact_program(function), cast(shared, np.float64)
        for begin in range(0, len(padded), EXACT_BATCH):
            batch = points[begin : begin + EXACT_BATCH]
            values = {n: np.array([p[n] for p in batch], float) for n in space.names}
            parts.append(jax.device_get(program(wide, values)))
    return {
        name: np.concatenate([part[name] for part in parts])[: len(index)]
        for name in parts[0]
    }


def compilations(function: Function) -> int:
    """Returns how many programs streams of `function` have been compiled to."""
    programs = [made for key, made in _PROGRAMS.items() if key[0] is function]
    return sum(program._cache_size() for program in programs)


_PROGRAMS: dict[tuple[Any, ...], Any] = {}


def chunk_program(
    function: Function,
    plan: Plan,
    block: int,
    quick: bool,
    devices: tuple[Any, ...],
) -> Any:
    """Returns the program for a chunk on each device, blocks one after the other.

    It takes shared, space, numbers and counts of the axes; then, for each device, digits
    and place of the first point, number of points and what was kept before. It returns
    what is kept then, and the counts of the call.
    """
    key = (function, plan, block, quick, devices)
    if key not in _PROGRAMS:
        options = QUICK_OPTIONS if quick else FAST_OPTIONS
        cpu = devices[0].platform == "cpu"
        _PROGRAMS[key] = jax.jit(
            _sharded(function, plan, block, devices),
            compiler_options=options if cpu else None,
        )
    return _PROGRAMS[key]


def _sharded(
    function: Function, plan: Plan, block: int, devices: tuple[Any, ...]
) -> Any:
    def chunks(
        shared: Any,
        space: Space,
        numbers: Numbers,
        counts: Any,
        starts: Any,
        places: Any,
        lengths: Any,
        kept: Any,
    ) -> Any:
        own = (starts[0], places[0], lengths[0], part(kept, 0))
        found = _chunk(function, plan, block, (shared, space, numbers, counts), *own)
        return jax.tree.map(lambda leaf: leaf[None], found)

    if len(devices) == 1:
        return chunks
    every, one = PartitionSpec(), PartitionSpec("device")
    return jax.shard_map(
        chunks,
        mesh=Mesh(np.array(devices), ("device",)),
        in_specs=(every, every, every, every, one, one, one, one),
        out_specs=one,
        check_vma=False,
    )


def _chunk(
    function: Function,
    plan: Plan,
    block: int,
    given: tuple[Any, Space, Numbers, Any],
    start: Float[Array, " axis"],
    place: Int[Array, "2"],
    length: Int[Array, ""],
    kept: reductions.Kept,
) -> tuple[reductions.Kept, reductions.Tally]:
    """What is kept and counted of `length` points from digits `start` on."""
    shared, space, numbers, counts = given
    lane = jnp.arange(block, dtype=jnp.int32)
    columns = _columns_of(function, reductions.read(plan))

    def step(carry: Any) -> Any:
        done, start, high, low, kept, tally = carry
        offset = done + lane
        valid = offset < length
        found = columns(shared, space, start, lane.astype(start.dtype))
        kept = reductions.update(plan, numbers, kept, found, valid, high, low + lane)
        tally = reductions.count(plan, numbers, tally, found, valid, offset)
        over = (low + block) // reductions.LOW_RANGE
        low = low + block - over * reductions.LOW_RANGE
        start = _advanced(start, counts, block)
        return done + block, start, high + over, low, kept, tally

    zero = jnp.zeros((), jnp.int32)
    none = reductions.no_counts(plan)
    first = (zero, start, place[0], place[1], kept, none)
    last = lax.while_loop(lambda carry: carry[0] < length, step, first)
    return last[4], last[5]


def _columns_of(function: Function, names: Sequence[str]) -> Callable[..., Any]:
    def one(shared: Any, space: Space, start: Any, offset: Scalar) -> Any:
        found = function(shared, coordinates(space, start, offset))
        return {name: jnp.asarray(found[name], jnp.float32) for name in names}

    return jax.vmap(one, (None, None, None, 0))


def _advanced(start: Any, counts: Any, steps: int) -> Float[Array, " axis"]:
    """Digits `steps` further on: exact, as `spaces.coordinates`."""
    carry: Any = jnp.asarray(float(steps), start.dtype)
    moved = []
    for position in reversed(range(start.shape[0])):
        total = start[position] + carry
        carry = jnp.floor((total + 0.5) / counts[position])
        moved.append(total - carry * counts[position])
    return jnp.stack(moved[::-1])


def _exact_at_once(
    function: Function, shared: Any, space: Space, index: Int[np.ndarray, " point"]
) -> dict[str, Float[np.ndarray, " point"]]:
    points = [point(space, int(i)) for i in index]
    values = {n: np.array([p[n] for p in points], np.float64) for n in space.names}
    found = at_once(function, cast(shared, np.float64), values)
    return {name: np.array(column, np.float64) for name, column in found.items()}


@cache
def _exact_program(function: Function) -> Any:
    def values(shared: Any, values: Mapping[str, Scalar]) -> dict[str, Any]:
        return {n: jnp.asarray(one) for n, one in function(shared, values).items()}

    many = jax.vmap(values, (None, 0))
    if jax.default_backend() != "cpu":
        return jax.jit(many)
    return jax.jit(many, compiler_options=QUICK_OPTIONS)


def part(tree: Any, position: int) -> Any:
    """Returns one device's part of a tree."""
    return jax.tree.map(lambda leaf: leaf[position], tree)
