"""How far predictions are from measurements, and what a wrong choice costs.

All functions take paired arrays of positive values. Errors are fractions: 0.1 is 10 %.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Statistic = Callable[[np.ndarray, np.ndarray], float]


def relative_errors(predicted: ArrayLike, measured: ArrayLike) -> np.ndarray:
    """Returns (predicted - measured) / measured of the pairs that are both finite."""
    one, other = _pairs(predicted, measured)
    return (one - other) / other


def _pairs(predicted: ArrayLike, measured: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    one = np.asarray(predicted, dtype=np.float64)
    other = np.asarray(measured, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise ValueError(
            f"scores: expected two lists of one length, got {one.shape}, {other.shape}."
        )
    known = np.isfinite(one) & np.isfinite(other)
    if np.any(other[known] <= 0.0):
        raise ValueError("scores: expected measured values above 0, got 0 or less.")
    return one[known], other[known]


def mape(predicted: ArrayLike, measured: ArrayLike) -> float:
    """Returns the mean of |predicted - measured| / measured; NaN without pairs."""
    errors = np.abs(relative_errors(predicted, measured))
    return float(errors.mean()) if len(errors) else float("nan")


def median_ape(predicted: ArrayLike, measured: ArrayLike) -> float:
    """Returns the median of |predicted - measured| / measured; NaN without pairs."""
    errors = np.abs(relative_errors(predicted, measured))
    return float(np.median(errors)) if len(errors) else float("nan")


def bias(predicted: ArrayLike, measured: ArrayLike) -> float:
    """Returns the mean of (predicted - measured) / measured: above 0 is too much."""
    errors = relative_errors(predicted, measured)
    return float(errors.mean()) if len(errors) else float("nan")


def ranks(values: ArrayLike) -> np.ndarray:
    """Returns the rank of each value from 1; ties share the mean of their ranks."""
    array = np.asarray(values, dtype=np.float64)
    _, group, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - 0.5 * (counts - 1))[group]


def spearman(predicted: ArrayLike, measured: ArrayLike) -> float:
    """Returns Spearman's rank correlation: Pearson's, of the ranks.

    NaN with fewer than two pairs, or where one side is all ties.

    Source: C. Spearman, "The proof and measurement of association between two things",
    American Journal of Psychology 15(1), 1904.
    """
    one, other = _pairs(predicted, measured)
    if len(one) < 2:
        return float("nan")
    first, second = ranks(one), ranks(other)
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 0.0 else float("nan")


def top1_regret(
    predicted_objective: ArrayLike,
    measured_objective: ArrayLike,
    allowed: ArrayLike | None = None,
    predicted_allowed: ArrayLike | None = None,
) -> float:
    """Returns how much more the configuration chosen by prediction costs than the best.

    regret = measured[chosen] / min measured[allowed] - 1, where `chosen` minimises the
    predicted objective among the configurations that the chooser believes allowed.

    Args:
        predicted_objective: One value per configuration; less is better.
        measured_objective: The same configurations, measured.
        allowed: Which configurations meet the limit in truth; all where not given.
        predicted_allowed: Which ones the chooser believes to meet it; `allowed` where
            not given. NaN comes back where none is allowed, infinity where the chosen
            one breaks the limit or the chooser believes that none meets it.
    """
    predicted = np.asarray(predicted_objective, dtype=np.float64)
    measured = np.asarray(measured_objective, dtype=np.float64)
    true = (
        np.ones(len(measured), bool) if allowed is None else np.asarray(allowed, bool)
    )
    believed = (
        true if predicted_allowed is None else np.asarray(predicted_allowed, bool)
    )
    true = true & np.isfinite(measured)
    believed = believed & np.isfinite(predicted) & np.isfinite(measured)
    if not true.any():
        return float("nan")
    if not believed.any():
        return float("inf")
    chosen = int(np.argmin(np.where(believed, predicted, np.inf)))
    if not true[chosen]:
        return float("inf")
    return float(measured[chosen] / measured[true].min() - 1.0)


def summary(predicted: ArrayLike, measured: ArrayLike) -> dict[str, float | int | None]:
    """Returns `rows`, `mape`, `median_ape`, `bias`, `spearman`; None if undefined."""
    one, other = _pairs(predicted, measured)
    statistics: Mapping[str, Statistic] = {
        "mape": mape,
        "median_ape": median_ape,
        "bias": bias,
        "spearman": spearman,
    }
    values = {name: plain(f(one, other)) for name, f in statistics.items()}
    return {"rows": len(one), **values}


def plain(value: float) -> float | None:
    """Returns `value` for JSON, which knows neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def grouped(
    predicted: ArrayLike, measured: ArrayLike, labels: Sequence[Any] | np.ndarray
) -> dict[str, dict[str, float | int | None]]:
    """Returns the `summary` of every group of rows that share a label."""
    one = np.asarray(predicted, dtype=np.float64)
    other = np.asarray(measured, dtype=np.float64)
    names = np.array([_label(label) for label in labels], dtype=np.str_)
    if len(names) != len(one):
        raise ValueError(
            f"scores: expected a label for each of {len(one)} rows, got {len(names)}."
        )
    order = list(dict.fromkeys(names.tolist()))
    return {n: summary(one[names == n], other[names == n]) for n in order}


def _label(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " | ".join(_label(part) for part in value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def bootstrap(
    statistic: Statistic,
    predicted: ArrayLike,
    measured: ArrayLike,
    *,
    share: float = 0.8,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the central interval that holds `share` of resampled `statistic` values.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of
    Statistics 7(1), 1979 (percentile interval).
    """
    one, other = _pairs(predicted, measured)
    if not len(one):
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(len(one), size=(draws, len(one)))
    values = np.array([statistic(one[pick], other[pick]) for pick in picks])
    tail = 0.5 * (1.0 - share)
    low, high = np.nanquantile(values, [tail, 1.0 - tail])
    return float(low), float(high)
