"""How often intervals hold what was measured on architectures that set none of them.

Half-widths are those of 80 % intervals of a normal: exp(±1.2816 scatter). Residuals that set
the scatter come from fits that leave out one architecture each, so they have seen the one that
is judged: only nested fits would be wholly blind.
"""

from typing import Any

import numpy as np

from jaxlens.calibration.calibrating import CrossValidation, Problem
from jaxlens.intervals import NORMAL_80

COVERAGE = 0.8
MIN_ROWS = 8  # below which a scatter is not worth much
NAMES = ("energy", "latency")

Coverage = dict[str, dict[str, dict[str, Any]]]


def scatter(residuals: np.ndarray) -> float | None:
    """Returns the standard deviation whose 80 % interval holds 80 % of `residuals`.

    None where there are too few of them to say.
    """
    if len(residuals) < MIN_ROWS:
        return None
    return float(np.quantile(np.abs(residuals), COVERAGE) / NORMAL_80)


def coverage(task: Problem, validation: CrossValidation) -> Coverage:
    """Returns coverage and median width of 80 % intervals, by chip and target.

    A row is held where |log(predicted / measured)| <= 1.2816 scatter. Its residual is of
    the fit without its architecture, and its scatter is set by the left-out residuals of
    the other architectures on the same chip. A width is (upper - lower) / predicted.
    Chips without enough other rows are left out. Where one architecture was measured
    only, the folds of the validation stand for architectures.
    """
    measured = np.asarray(task.evidence.measured)
    result: Coverage = {}
    for gpu in dict.fromkeys(task.labels["gpu"].tolist()):
        on_chip = task.labels["gpu"] == gpu
        for column, name in enumerate(NAMES):
            known = on_chip & np.isfinite(measured[:, column])
            found = _leave_one_out(
                validation.residuals[known, column], validation.folds[known]
            )
            if found is not None:
                result.setdefault(gpu, {})[name] = found
    return result


def _leave_one_out(residuals: np.ndarray, folds: np.ndarray) -> dict[str, Any] | None:
    """Returns coverage, median width and number of the rows that have an interval."""
    half = np.full(len(residuals), np.nan)
    for fold in dict.fromkeys(folds.tolist()):
        spread = scatter(residuals[folds != fold])
        if spread is not None:
            half[folds == fold] = NORMAL_80 * spread
    judged = np.isfinite(half)
    if not judged.any():
        return None
    held = np.abs(residuals[judged]) <= half[judged]
    return {
        "coverage": float(held.mean()),
        "median_width": float(np.median(2.0 * np.sinh(half[judged]))),
        "rows": int(judged.sum()),
    }
