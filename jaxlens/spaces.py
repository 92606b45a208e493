"""A space of configurations: named axes, decoded from an index and never built.

The last axis varies fastest. An index is decoded on the device in mixed radix, from the
digits of the first index of a chunk and an offset within it; all counts and values are
traced, so spaces of other sizes and values run in the same compiled program.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.pytrees import pytree, static

Scalar = Float[Array, ""] | float

# Digits are whole numbers in float32: exact, and faster to divide than integers.
LARGEST_AXIS = 2**22
LARGEST_CHUNK = 2**22
TABLE_CAPACITY = 64  # tables are padded to it or to the next capacity: few shapes
TABLE_CAPACITIES = (TABLE_CAPACITY, 4096, 65_536)


@pytree
class Axis:
    """One knob: start + step x digit, plus the entry of a table if it has one."""

    name: str = static()
    count: Scalar
    start: Scalar = 0.0
    step: Scalar = 0.0
    table: Float[np.ndarray, " capacity"]  # exact on the host, float32 on the device


@pytree
class Space:
    """All combinations of its axes. `size` is a product: nothing is built."""

    axes: tuple[Axis, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes, slowest first."""
        return tuple(axis.name for axis in self.axes)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each axis has."""
        return tuple(int(axis.count) for axis in self.axes)

    @property
    def size(self) -> int:
        """How many configurations there are."""
        return math.prod(self.counts)


def space(*axes: Axis) -> Space:
    """Returns the combinations of `axes`, the last of which varies fastest."""
    names = [axis.name for axis in axes]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"space: expected axes of different names, got {names}.")
    return Space(axes=axes)


def choices(name: str, values: Iterable[float]) -> Axis:
    """Returns an axis of the given values, in their order."""
    given = [float(value) for value in values]
    if not given or not all(math.isfinite(value) for value in given):
        raise ValueError(f"{name}: expected finite values, got {given}.")
    if len(given) > TABLE_CAPACITIES[-1]:
        raise ValueError(
            f"{name}: expected at most {TABLE_CAPACITIES[-1]:,} values, got "
            f"{len(given):,}; take an equally spaced range."
        )
    capacity = next(size for size in TABLE_CAPACITIES if size >= len(given))
    padding = given[-1:] * (capacity - len(given))
    table = np.array([*given, *padding], np.float64)
    return Axis(name=name, count=_count(name, len(given)), table=table)


def powers_of_two(name: str, low: int, high: int) -> Axis:
    """Returns the powers of two from `low` to `high`, both included.

    >>> point(space(powers_of_two("tensor_parallel", 1, 16)), 3)
    {'tensor_parallel': 8.0}
    """
    first, last = _bits(low), _bits(high)
    if first is None or last is None or first > last:
        raise ValueError(
            f"{name}: expected two powers of two, low to high, got {low} and {high}."
        )
    return choices(name, [2.0**power for power in range(first, last + 1)])


def log_grid(name: str, low: float, high: float, count: int) -> Axis:
    """Returns `count` values from `low` to `high` in equal ratios, both included.

    >>> point(space(log_grid("batch", 1.0, 256.0, 5)), 3)
    {'batch': 64.0}
    """
    finite = math.isfinite(low) and math.isfinite(high)
    if not finite or not 0.0 < low < high or count < 2:
        raise ValueError(
            f"{name}: expected 0 < low < high and at least two values, "
            f"got {count} from {low} to {high}."
        )
    ratios = np.geomspace(low, high, count).tolist()
    return choices(name, [float(f"{value:.12g}") for value in ratios])


def tabled(axis: Axis) -> Axis:
    """Returns `axis` with a table of zeros if it has none.

    Ranges and listed values then have one structure and run in one compiled program.
    """
    if axis.table.size:
        return axis
    return replace(axis, table=np.zeros(TABLE_CAPACITY))


def at(space: Space, index: int) -> Space:
    """Returns the space of one configuration of `space`: same structure, same program."""
    found = zip(space.axes, digits(space, index), strict=True)
    return Space(axes=tuple(_only(axis, digit) for axis, digit in found))


def integers(name: str, low: int, high: int, step: int = 1) -> Axis:
    """Returns the integers from `low` to at most `high`."""
    if high < low or step < 1:
        raise ValueError(
            f"{name}: expected low <= high and a step of at least 1, "
            f"got {low}, {high} and {step}."
        )
    return _linear(name, (high - low) // step + 1, float(low), float(step))


def grid(name: str, low: float, high: float, count: int) -> Axis:
    """Returns `count` equally spaced values from `low` to `high`, both included."""
    finite = math.isfinite(low) and math.isfinite(high)
    if not finite or count < 1 or high < low or (count == 1 and high != low):
        raise ValueError(
            f"{name}: expected low <= high and at least two values between them, "
            f"got {count} from {low} to {high}."
        )
    return _linear(name, count, low, (high - low) / max(count - 1, 1))


def digits(space: Space, index: int) -> tuple[int, ...]:
    """Returns the position on each axis of the configuration with an index."""
    if not 0 <= index < space.size:
        raise ValueError(
            f"space: expected an index from 0 to {space.size - 1}, got {index}."
        )
    found = []
    for count in reversed(space.counts):
        index, digit = divmod(index, count)
        found.append(digit)
    return tuple(reversed(found))


def index(space: Space, digits: Iterable[int]) -> int:
    """Returns the index of the configuration at `digits`: the inverse of `digits`."""
    result = 0
    for count, digit in zip(space.counts, digits, strict=True):
        if not 0 <= digit < count:
            raise ValueError(f"space: expected a digit below {count}, got {digit}.")
        result = result * count + digit
    return result


def point(space: Space, index: int) -> dict[str, float]:
    """Returns the values of the configuration with an index."""
    found = zip(space.axes, digits(space, index), strict=True)
    return {axis.name: float(_value(axis, digit)) for axis, digit in found}


def coordinates(
    space: Space, start: Float[Array, " axis"], offset: Scalar
) -> Mapping[str, Scalar]:
    """Returns the values of the configuration `offset` after the one at digits `start`.

    Runs on the device. Exact for axes and offsets below 2^22: sums of digits stay below
    2^23, where (n + 1/2) / count cannot round to the wrong side of an integer.
    """
    values: dict[str, Scalar] = {}
    carry = offset
    for position in reversed(range(len(space.axes))):
        axis = space.axes[position]
        total = start[position] + carry
        carry = elementary.floor((total + 0.5) / axis.count)
        values[axis.name] = _value(axis, total - carry * axis.count)
    return {name: values[name] for name in space.names}


def _value(axis: Axis, digit: Scalar) -> Scalar:
    line = axis.start + axis.step * digit
    if axis.table.shape[0] == 0:
        return line
    if isinstance(digit, int):
        return line + float(axis.table[min(digit, axis.table.size - 1)])
    position = elementary.minimum(elementary.position(digit), axis.table.size - 1)
    return line + elementary.entry(axis.table, position, line)


def _only(axis: Axis, digit: int) -> Axis:
    """The axis of one of its values; a table keeps its capacity."""
    start, table = axis.start + axis.step * digit, axis.table
    if table.size:
        table = np.full_like(table, table[min(digit, table.size - 1)])
    return replace(axis, count=1.0, start=start, step=0.0, table=table)


def _linear(name: str, count: int, start: float, step: float) -> Axis:
    return Axis(
        name=name,
        count=_count(name, count),
        start=start,
        step=step,
        table=np.zeros(0),
    )


def _count(name: str, count: int) -> float:
    if count > LARGEST_AXIS:
        raise ValueError(
            f"{name}: expected at most {LARGEST_AXIS} values, got {count}; "
            f"take a coarser step."
        )
    return float(count)


def _bits(value: int) -> int | None:
    power = int(value).bit_length() - 1
    return power if value >= 1 and value == 2**power else None
