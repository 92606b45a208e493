"""What a search may choose: the values that each variable can take.

A variable is relaxed to the interval between its lowest and highest value. Where it spans
more than a factor of eight its logarithm is what moves, as costs go with ratios.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from jaxlens.hardware import Chip

LOGARITHMIC_SPAN = 8.0
MOST_VALUES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Variable:
    """Bounds and kind of one variable: `real`, or one with a list of values."""

    kind: str
    low: float
    high: float
    table: tuple[float, ...] = ()  # of power of two, one of and clock
    enumerated: bool = False  # each value is a search of its own, if they are few

    @cached_property
    def values(self) -> Float[np.ndarray, " value"] | None:
        """Returns every value in increasing order; None for a real variable."""
        if self.kind == "real":
            return None
        if self.kind == "integer":
            return np.arange(self.low, self.high + 1.0)
        return np.array(self.table)

    @property
    def count(self) -> float:
        """How many values there are; infinity for a real variable."""
        if self.kind == "integer":
            return self.high - self.low + 1.0
        return math.inf if self.kind == "real" else len(self.table)

    @property
    def logarithmic(self) -> bool:
        """Whether the logarithm is what moves."""
        return self.low > 0.0 and self.high >= LOGARITHMIC_SPAN * self.low

    def to_unit(self, value: np.ndarray) -> np.ndarray:
        """Returns the coordinate of a value: 0 at the lowest, 1 at the highest."""
        if self.high == self.low:
            return 0.0 * value
        if self.logarithmic:
            return np.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def from_unit(self, coordinate: np.ndarray) -> np.ndarray:
        """Returns the value at a coordinate: the inverse of `to_unit`."""
        if self.logarithmic:
            return self.low * np.exp(coordinate * math.log(self.high / self.low))
        return self.low + coordinate * (self.high - self.low)


def real(low: float, high: float) -> Variable:
    """Returns a variable that takes every value from `low` to `high`."""
    _check_bounds("real", low, high)
    return Variable(kind="real", low=float(low), high=float(high))


def integer(low: int, high: int) -> Variable:
    """Returns a variable that takes the whole numbers from `low` to `high`."""
    _check_bounds("integer", low, high)
    whole = float(low).is_integer() and float(high).is_integer()
    if not whole or high - low >= MOST_VALUES:
        raise ValueError(
            f"integer: expected at most {MOST_VALUES} whole numbers, got {low} to "
            f"{high}; round the bounds, or take a real variable."
        )
    return Variable(kind="integer", low=float(low), high=float(high))


def power_of_two(low: int, high: int) -> Variable:
    """Returns a variable that takes the powers of two from `low` to `high`.

    >>> power_of_two(1, 8).table
    (1.0, 2.0, 4.0, 8.0)
    """
    _check_bounds("power of two", low, high)
    first, last = (math.log2(bound) if bound > 0 else math.nan for bound in (low, high))
    if not (first.is_integer() and last.is_integer()):
        raise ValueError(
            f"power of two: expected powers of two as bounds, got {low} and {high}; "
            f"choose 1, 2, 4, 8 …"
        )
    table = tuple(2.0**power for power in range(int(first), int(last) + 1))
    return Variable(
        kind="power of two", low=table[0], high=table[-1], table=table, enumerated=True
    )


def one_of(values: Iterable[float]) -> Variable:
    """Returns a variable that takes one of the given numbers.

    >>> one_of([8, 2, 4]).table
    (2.0, 4.0, 8.0)
    """
    table = tuple(sorted({float(value) for value in values}))
    if not table or not all(math.isfinite(value) for value in table):
        raise ValueError(
            f"one of: expected at least one finite number, got {list(table)}."
        )
    return Variable(
        kind="one of", low=table[0], high=table[-1], table=table, enumerated=True
    )


def supported_clocks(
    low_hz: float | None = None, high_hz: float | None = None
) -> Variable:
    """Returns a variable that takes the clocks that a chip can be locked to.

    Which they are is known once the problem meets a chip: see `of_chip`.
    """
    low = 0.0 if low_hz is None else float(low_hz)
    high = 1e12 if high_hz is None else float(high_hz)
    _check_bounds("clocks", low, high)
    return Variable(kind="clock", low=low, high=high)


def of_chip(variable: Variable, chip: Chip) -> Variable:
    """Returns `variable` with the clocks of `chip` if it is one of supported clocks."""
    if variable.kind != "clock" or variable.table:
        return variable
    table = clocks(chip)
    chosen = tuple(c for c in table if variable.low <= c <= variable.high)
    if not chosen:
        raise ValueError(
            f"clocks: expected some from {variable.low / 1e6:g} to "
            f"{variable.high / 1e6:g} MHz, but the chip supports {table[0] / 1e6:g} to "
            f"{table[-1] / 1e6:g} MHz; widen the range."
        )
    return Variable(kind="clock", low=chosen[0], high=chosen[-1], table=chosen)


def clocks(chip: Chip) -> tuple[float, ...]:
    """Returns the clocks that a chip can be locked to, lowest first.

    Raises:
        ValueError: Nothing is known of them, so that no clock can be advised.
    """
    low, high, step = float(chip.min_hz), float(chip.max_hz), float(chip.step_hz)
    if not (0.0 < low < high < math.inf and 0.0 < step < math.inf):
        raise ValueError(
            f"clocks: expected a chip with a range of clocks and their step, got "
            f"{low:g} to {high:g} Hz in steps of {step:g}; clock advice is impossible: "
            f"leave `clock_hz` out of the variables, or state min_hz, max_hz and step_hz "
            f"in the chip's file."
        )
    count = math.floor((high - low) / step + 1e-9) + 1
    table = [low + step * position for position in range(count)]
    return tuple(table if high - table[-1] < 1e-6 * step else [*table, high])


def _check_bounds(where: str, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{where}: expected finite bounds, got {low} to {high}; state how far the "
            f"search may go."
        )
    if low > high:
        raise ValueError(
            f"{where}: expected a range that holds a value, got {low:g} to {high:g}; "
            f"swap the bounds."
        )
