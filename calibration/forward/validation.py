"""What a fit of forward passes is worth: on models and shapes it has not seen, on clocks."""

from typing import Any

import numpy as np

from jaxlens.calibration import scores
from jaxlens.calibration.fits import Options
from jaxlens.calibration.forward.fitting import OPTIONS, ForwardFit, left_out
from jaxlens.calibration.forward.predictions import predict_forward

__all__ = ["clock_regrets", "cross_validated", "predict_forward", "shape_folds"]

FOLDS = 10
ALLOWED_REGRET = 0.01


def shape_folds(shapes: np.ndarray, folds: int = FOLDS, seed: int = 0) -> np.ndarray:
    """Returns a random fold for each row; rows of one shape share theirs."""
    names, place = np.unique(shapes, return_inverse=True)
    return np.random.default_rng(seed).permutation(len(names))[place] % folds


def cross_validated(fitted: ForwardFit, options: Options = OPTIONS) -> dict[str, Any]:
    """Returns errors by table without the model, and without the shape, of each row."""
    labels = fitted.problem.labels
    schemes = {
        "leave one model out": labels["model"],
        "random shapes": shape_folds(labels["shape"]),
    }
    result: dict[str, Any] = {"in sample": _errors(fitted, fitted.predicted)}
    for name, folds in schemes.items():
        result[name] = _errors(fitted, left_out(fitted, folds, options))
    return result


def clock_regrets(
    fitted: ForwardFit, joules: np.ndarray, slack: float = 0.0
) -> dict[str, dict[str, float]]:
    """Returns what the predicted best clock of each workload costs more than the best.

    Args:
        fitted: Rows at several clocks of the same workload.
        joules: Predicted, by row.
        slack: The highest clock within this share of the predicted minimum is chosen.
    """
    labels = fitted.problem.labels
    measured = fitted.problem.measured[:, 1]
    regrets = {}
    keys = np.array(
        [f"{n} {s}" for n, s in zip(labels["table"], labels["shape"], strict=True)]
    )
    for key in dict.fromkeys(keys.tolist()):
        rows = np.flatnonzero(keys == key)
        clock = labels["clock_hz"][rows]
        if np.ptp(clock) < 0.2 * clock.max():
            continue
        near = joules[rows] <= (1.0 + slack) * joules[rows].min()
        chosen = int(np.argmax(np.where(near, clock, 0.0)))
        regrets[key.partition(" ")[2]] = {
            "clock_hz": float(clock[chosen]),
            "best_clock_hz": float(clock[np.argmin(measured[rows])]),
            "regret": float(measured[rows][chosen] / measured[rows].min() - 1.0),
        }
    return regrets


def _errors(fitted: ForwardFit, predicted: np.ndarray) -> dict[str, Any]:
    task = fitted.problem
    result: dict[str, Any] = {}
    for number, table in enumerate(task.tables):
        rows = task.labels["table"] == number
        said, measured = predicted[rows], task.measured[rows]
        name = table.provenance["file"]
        result[name] = {
            "rows": int(rows.sum()),
            "time": scores.mape(said[:, 0], measured[:, 0]),
            "energy": scores.mape(said[:, 1], measured[:, 1]),
        }
    regrets = clock_regrets(fitted, predicted[:, 1])
    if regrets:
        right = sum(r["regret"] <= ALLOWED_REGRET for r in regrets.values())
        result["clock right"] = f"{right} of {len(regrets)}"
    return result
