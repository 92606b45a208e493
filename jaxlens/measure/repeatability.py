"""How much repeated measurements of the same case differ."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any


def repeatability(
    rows: Iterable[Mapping[str, Any]], column: str, *, runs: int = 2
) -> float | None:
    """Returns the median over cases of the largest deviation from a case's median.

    Relative, over cases that were measured in `runs` runs or more; None without any.

    >>> rows = [{"case": "a", "run": i, "seconds": s} for i, s in enumerate((1.0, 1.1, 1.2))]
    >>> round(repeatability(rows, "seconds"), 3)
    0.091
    """
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row.get(column) is not None:
            groups.setdefault(str(row["case"]), []).append(float(row[column]))
    spreads = [_spread(values) for values in groups.values() if len(values) >= runs]
    return statistics.median(spreads) if spreads else None


def _spread(values: list[float]) -> float:
    middle = statistics.median(values)
    return max(abs(value / middle - 1.0) for value in values)
