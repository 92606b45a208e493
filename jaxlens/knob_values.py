"""The values that a knob may take: listed, a range of integers, powers or a grid.

They know how many they are without being built. As text:

    1,2,4            listed values
    1..8             integers, both ends included
    0..64+8          ... in steps of 8
    1..64*2          powers: 1, 2, 4 up to 64
    1.0:2.0:11       a grid of 11 equally spaced values
    1:1000:7:log     ... in equal ratios
    none             without the limit

Parts can be joined by commas, and every number may have its unit: 1.2GHz:1.8GHz:7.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from jaxlens.deployments import UNLIMITED
from jaxlens.quantities import quantity
from jaxlens.spaces import LARGEST_AXIS, TABLE_CAPACITY, Axis
from jaxlens.spaces import choices as listed_axis
from jaxlens.spaces import grid as grid_axis

MOST_LISTED = 65_536  # values that are not equally spaced
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*[A-Za-zµ/%]*"
RANGE = re.compile(rf"({NUMBER})\s*\.\.\s*({NUMBER})\s*(?:([*+])\s*({NUMBER}))?")
GRID = re.compile(rf"({NUMBER})\s*:\s*({NUMBER})\s*:\s*(\d+)\s*(:\s*log)?")
SYNTAX = "1,2,4 or 1..8 or 0..64+8 or 1..64*2 or 1.0:2.0:11 or 1:1000:7:log"


@dataclass(frozen=True, kw_only=True)
class Values:
    """Ascending values: `listed`, or `count` of them from `low` in equal steps."""

    listed: tuple[float, ...] = ()
    low: float = 0.0
    step: float = 0.0
    count: int = 0

    def __len__(self) -> int:
        return len(self.listed) or self.count

    @property
    def lowest(self) -> float:
        """The least value."""
        return self.listed[0] if self.listed else self.low

    @property
    def highest(self) -> float:
        """The greatest value."""
        return (
            self.listed[-1] if self.listed else self.low + self.step * (self.count - 1)
        )

    @property
    def every(self) -> tuple[float, ...]:
        """All of them: for axes that are short."""
        if self.listed:
            return self.listed
        return tuple(self.low + self.step * digit for digit in range(self.count))

    def scaled(self, factor: float) -> "Values":
        """Returns the values in another unit; no limit stays none."""
        return Values(
            listed=tuple(v if v >= UNLIMITED else v * factor for v in self.listed),
            low=self.low * factor,
            step=self.step * factor,
            count=self.count,
        )


def choices(values: Iterable[float], *, where: str = "choices") -> Values:
    """Returns listed values, in ascending order and each once."""
    given = [float(value) for value in values]
    if not given or not all(math.isfinite(value) for value in given):
        raise ValueError(f"{where}: expected finite values, got {given}.")
    if len(given) > MOST_LISTED:
        raise ValueError(
            f"{where}: expected at most {MOST_LISTED:,} listed values, got "
            f"{len(given):,}; take an equally spaced range."
        )
    return Values(listed=tuple(sorted(set(given))))


def integers(low: int, high: int, step: int = 1, *, where: str = "integers") -> Values:
    """Returns the integers from `low` to at most `high`.

    >>> integers(8, 64, 8).highest
    64.0
    """
    whole = all(float(value) == int(value) for value in (low, high, step))
    if not whole or high < low or step < 1:
        raise ValueError(
            f"{where}: expected whole numbers, low <= high, and a step of at least 1, "
            f"got {low:g}..{high:g}+{step:g}."
        )
    count = _counted(where, (int(high) - int(low)) // int(step) + 1)
    return Values(low=float(low), step=float(step), count=count)


def powers(
    low: float, high: float, base: float = 2.0, *, where: str = "powers"
) -> Values:
    """Returns `low` x `base`^n up to `high`.

    >>> powers(1, 8).listed
    (1.0, 2.0, 4.0, 8.0)
    """
    if not 0.0 < low <= high < math.inf or not 1.0 < base < math.inf:
        raise ValueError(
            f"{where}: expected 0 < low <= high and a factor above 1, "
            f"got {low:g}..{high:g}*{base:g}."
        )
    count = int(math.log(high / low, base) + 1e-9) + 1
    return choices((low * base**power for power in range(count)), where=where)


def grid(
    low: float, high: float, count: int, *, log: bool = False, where: str = "grid"
) -> Values:
    """Returns `count` values from `low` to `high`, both included.

    Args:
        low: The least value.
        high: The greatest value.
        count: How many.
        log: Whether ratios are equal instead of differences.
        where: What an error is about.
    """
    finite = math.isfinite(low) and math.isfinite(high)
    if not finite or not low < high or count < 2 or (log and low <= 0.0):
        least = "0 < low < high" if log else "low < high"
        raise ValueError(
            f"{where}: expected {least} and at least two values, "
            f"got {low:g}:{high:g}:{count}{':log' if log else ''}."
        )
    if log:
        ratios = np.geomspace(low, high, count).tolist()
        return choices((float(f"{value:.12g}") for value in ratios), where=where)
    count = _counted(where, count)
    return Values(low=float(low), step=(high - low) / (count - 1), count=count)


def parsed(text: str, unit: str = "", *, where: str) -> Values:
    """Returns the values that a text stands for, in SI.

    >>> parsed("1, 2, 4..16*2", where="sequences").listed
    (1.0, 2.0, 4.0, 8.0, 16.0)
    """
    parts = [_part(part.strip(), unit, where) for part in text.split(",")]
    if len(parts) == 1:
        return parts[0]
    if sum(len(part) for part in parts) > MOST_LISTED:
        raise ValueError(f"{where}: expected fewer values in one list, got {text!r}.")
    return choices((value for part in parts for value in part.every), where=where)


def axis(name: str, values: Values) -> Axis:
    """Returns the axis of a device space; all of them have a table."""
    if values.listed:
        return listed_axis(name, values.listed)
    if values.count == 1:
        return listed_axis(name, [values.low])
    found = grid_axis(name, values.low, values.highest, values.count)
    return Axis(
        name=name,
        count=found.count,
        start=found.start,
        step=values.step,
        table=np.zeros(TABLE_CAPACITY),
    )


def _part(text: str, unit: str, where: str) -> Values:
    def number(written: str) -> float:
        return quantity(written, unit, where=where)

    if text.lower() == "none":
        return Values(listed=(UNLIMITED,))
    if match := RANGE.fullmatch(text):
        low, high = number(match[1]), number(match[2])
        if match[3] == "*":
            return powers(low, high, float(match[4]), where=where)
        step = number(match[4]) if match[4] else 1.0
        return _whole(low, high, step, where)
    if match := GRID.fullmatch(text):
        return grid(
            number(match[1]),
            number(match[2]),
            int(match[3]),
            log=bool(match[4]),
            where=where,
        )
    try:
        return choices([number(text)], where=where)
    except ValueError as error:
        if re.fullmatch(NUMBER, text):
            raise
        raise ValueError(
            f"{where}: expected values such as {SYNTAX}, got {text!r}."
        ) from error


def _whole(low: float, high: float, step: float, where: str) -> Values:
    """A range of equal steps, which need not be integers where a unit is given."""
    if step > 0.0 and low <= high and not all(v == int(v) for v in (low, high, step)):
        count = _counted(where, int((high - low) / step + 1e-9) + 1)
        return Values(low=low, step=step, count=count)
    return integers(low, high, step, where=where)  # pyright: ignore[reportArgumentType]


def _counted(where: str, count: int) -> int:
    if count > LARGEST_AXIS:
        raise ValueError(
            f"{where}: expected at most {LARGEST_AXIS:,} values, got {count:,}; "
            f"take a coarser step."
        )
    return count
