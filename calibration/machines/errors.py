"""How far a fitted machine is from what was measured, by family of operations.

In sample; on cases that the fit left out (a fifth at a time); on rows of another run that it
never saw; and on whole steps of a model, of which only the operations were measured. Beside
them stands what measurements of the same case differ by among themselves.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlens.calibration.machines import runs
from jaxlens.calibration.machines.fitting import MachineFit
from jaxlens.calibration.machines.runs import Row

TARGETS = ("time", "energy")
MEASURED = {"time": runs.seconds, "energy": runs.joules}
SPREADS = {"time": "seconds_spread", "energy": "watts_spread"}


def families(fitted: MachineFit) -> dict[str, dict[str, Any]]:
    """Returns rows and errors of each family that was fitted."""
    task = fitted.problem
    chosen = task.weights.sum(axis=1) > 0.0
    result: dict[str, dict[str, Any]] = {}
    for family in dict.fromkeys(task.families[chosen].tolist()):
        own = chosen & (task.families == family)
        rows = [task.rows[i] for i in np.flatnonzero(own)]
        result[family] = {"rows": len(rows), "cases": len({r["case"] for r in rows})}
        for column, target in enumerate(TARGETS):
            measured = task.measured[own, column]
            result[family][target] = {
                "in_sample": mape(fitted.predicted[own, column], measured),
                "held_out": mape(fitted.left_out[own, column], measured),
                "spread": _spread(rows, SPREADS[target]),
                "repeatability": _repeatability(rows, target),
            }
    return result


def judged(
    fitted: MachineFit, kernels: dict[int, tuple[float, float]] | None = None
) -> dict[str, dict[str, Any]]:
    """Returns errors of each family on rows of cases that the fit did not see.

    Args:
        fitted: The fit, with rows of weight 0 that are only judged.
        kernels: Seconds and joules by the kernel formulas, by position of the row.
    """
    task = fitted.problem
    chosen = (task.weights.sum(axis=1) == 0.0) & (task.families != runs.STEPS)
    result: dict[str, dict[str, Any]] = {}
    for family in dict.fromkeys(task.families[chosen].tolist()):
        own = np.flatnonzero(chosen & (task.families == family))
        result[family] = {"rows": len(own)}
        formulas = np.array(
            [(kernels or {}).get(int(i), (np.nan, np.nan)) for i in own]
        )
        for column, target in enumerate(TARGETS):
            measured = task.measured[own, column]
            result[family][target] = {
                "profile": mape(fitted.predicted[own, column], measured),
                "kernels": mape(formulas[:, column], measured),
            }
    return result


def steps(fitted: MachineFit) -> list[dict[str, Any]]:
    """Returns whole steps: predicted from operations alone, beside what was measured."""
    task = fitted.problem
    result = []
    for i in np.flatnonzero(task.families == runs.STEPS):
        row = task.rows[i]
        found: dict[str, Any] = {
            name: row.get(name)
            for name in ("model", "phase", "batch", "prompt_tokens", "mode")
        }
        for column, name in enumerate(("seconds", "joules")):
            measured = task.measured[i, column]
            said = float(fitted.predicted[i, column])
            known = bool(np.isfinite(measured))
            found[f"predicted_{name}"] = said if known else None
            found[f"measured_{name}"] = float(measured) if known else None
            found[f"{name}_error"] = said / float(measured) - 1.0 if known else None
        found["kernels_seconds"] = row.get("kernels_seconds")
        result.append(found)
    return result


def mape(predicted: np.ndarray, measured: np.ndarray) -> float | None:
    """Returns the mean of |predicted / measured - 1|, None without a pair.

    >>> mape(np.array([1.1, 2.0]), np.array([1.0, np.nan]))
    0.10000000000000009
    """
    errors = np.abs(predicted / measured - 1.0)
    errors = errors[np.isfinite(errors)]
    return float(errors.mean()) if len(errors) else None


def _spread(rows: Sequence[Row], name: str) -> float | None:
    known = [float(row[name]) for row in rows if name in row]
    return statistics.median(known) if known else None


def _repeatability(rows: Sequence[Row], target: str) -> float | None:
    """Median over repeated cases of the largest deviation from a case's median."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        value = MEASURED[target](row)
        if value == value:
            groups.setdefault(str(row["case"]), []).append(value)
    deviations = [
        max(abs(value / statistics.median(values) - 1.0) for value in values)
        for values in groups.values()
        if len(values) > 1
    ]
    return statistics.median(deviations) if deviations else None
