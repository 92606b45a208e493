"""How much of two kernels side by side does not overlap, from pairs that were timed.

While a product and a copy run beside each other, a unit of time holds a = 1 / slowdown of the
product's work and b of the copy's. HBM serves both, so the product's share of it counts with
the copy's, as in predictions of staged overlap, and contention w is what is missing to a full
unit of time:

    max_w(a', b) = 1,    a' = max(a, a u + b)

with u the product's HBM traffic per time alone over that of the copy. Without shared HBM this
is w = (slowdown_product - 1)(slowdown_copy - 1). The fit weighs rows by the spread of their
times, inflated by how far they disagree, and starts from the chip's present value.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlens.hardware import Chip
from jaxlens.intervals import NORMAL_80
from jaxlens.kernel_works import works

PRIOR_SPREAD = 1.0  # of the logarithm, as in the files of the chips
LOWEST, POINTS = 1e-4, 2000  # of the grid over w
NOISE = 0.03  # least relative error of a pair of slowdowns
SPREADS = 2.0  # half-widths of rows, in standard deviations
COLUMNS = (
    "product_slowdown",
    "copy_slowdown",
    "seconds_alone",
    "copy_seconds_alone",
    "copied_bytes",
)

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What pairs of kernels say, an entry for each row."""

    product: np.ndarray  # a', work of the product in a unit of time
    copy: np.ndarray  # b, of the copy
    noise: np.ndarray  # relative error of both together


@dataclass(frozen=True, kw_only=True)
class ContentionFit:
    """A fitted contention, and what it is worth."""

    value: float
    sd: float  # of the logarithm
    low: float  # 80 % interval
    high: float
    rows: int
    # Root mean square log error of the time of both: fitted on the other rows where there are
    # two or more, at the chip's value before, and with perfect overlap (the hard maximum).
    fitted_error: float
    prior_error: float
    hard_error: float


def fit_contention(rows: Sequence[Row], chip: Chip) -> tuple[float, float]:
    """Returns the contention of a chip and the standard deviation of its logarithm.

    Args:
        rows: Rows of kind `overlap`, as `jaxlens measure --suite overlap` writes them:
            product_slowdown, copy_slowdown, seconds_alone, copy_seconds_alone,
            copied_bytes, m, n, k, dtype, and seconds_spread where it is known. Others are
            left out.
        chip: Its `overlap_contention` is the prior.

    Without a row the prior comes back, with its spread.
    """
    return _fitted(_pairs(rows), float(chip.overlap_contention))


def judge_contention(rows: Sequence[Row], chip: Chip) -> ContentionFit:
    """Returns the fit beside the errors of the hard maximum and of the prior."""
    pairs, prior = _pairs(rows), float(chip.overlap_contention)
    count = len(pairs.noise)
    if not count:
        raise ValueError(
            "contention: expected rows of kind overlap with slowdowns, got none; "
            "`jaxlens measure --suite overlap` writes them."
        )
    value, sd = _fitted(pairs, prior)
    held = [value] * count
    if count > 1:
        everything = np.arange(count)
        held = [_fitted(_subset(pairs, everything != i), prior)[0] for i in everything]
    return ContentionFit(
        value=value,
        sd=sd,
        low=value * math.exp(-NORMAL_80 * sd),
        high=min(1.0, value * math.exp(NORMAL_80 * sd)),
        rows=count,
        fitted_error=_error(pairs, np.array(held)),
        prior_error=_error(pairs, np.array(prior)),
        hard_error=_error(pairs, np.array(0.0)),
    )


def _pairs(rows: Sequence[Row]) -> Pairs:
    found = [_pair(row) for row in rows if _is_whole(row)]
    columns = np.array(found, float).reshape(-1, 3).T
    return Pairs(product=columns[0], copy=columns[1], noise=columns[2])


def _is_whole(row: Row) -> bool:
    """Whether a row has all that tells contention."""
    return all(
        isinstance(row.get(name), int | float) and float(row[name]) > 0.0
        for name in (*COLUMNS, "m", "n", "k")
    )


def _pair(row: Row) -> tuple[float, float, float]:
    """Returns a', b and the noise of a row; slowdowns below one are noise and count as one."""
    moved = float(works("gemm", row)["gemm"].hbm_bytes)
    traffic = moved / row["seconds_alone"]
    streamed = row["copied_bytes"] / row["copy_seconds_alone"]
    shared = min(1.0, traffic / streamed)
    product = 1.0 / max(1.0, float(row["product_slowdown"]))
    copy = 1.0 / max(1.0, float(row["copy_slowdown"]))
    spread = float(row.get("seconds_spread") or 0.0) / SPREADS
    return max(product, product * shared + copy), copy, math.hypot(NOISE, spread)


def _subset(pairs: Pairs, chosen: np.ndarray) -> Pairs:
    return Pairs(
        product=pairs.product[chosen],
        copy=pairs.copy[chosen],
        noise=pairs.noise[chosen],
    )


def _log_times(pairs: Pairs, contention: np.ndarray) -> np.ndarray:
    """Log of the time that both take, in units of the measured one: 0 where all is said."""
    a, b = pairs.product, pairs.copy
    root = np.sqrt((a - b) ** 2 + 4.0 * contention * a * b)
    return np.log(0.5 * (a + b + root))


def _fitted(pairs: Pairs, prior: float) -> tuple[float, float]:
    """Posterior mean and deviation of log w, with noise inflated to the rows' scatter."""
    if not len(pairs.noise):
        return prior, PRIOR_SPREAD
    logs = np.linspace(math.log(LOWEST), 0.0, POINTS)
    missed = _log_times(pairs, np.exp(logs)[:, None]) / pairs.noise
    squares = np.sum(missed * missed, axis=1)
    inflation = max(1.0, float(squares.min()) / len(pairs.noise))
    centre = math.log(max(prior, LOWEST))
    away = (logs - centre) / PRIOR_SPREAD
    energy = 0.5 * (squares / inflation + away * away)
    weight = np.exp(energy.min() - energy)
    weight /= weight.sum()
    mean = float(weight @ logs)
    return math.exp(mean), math.sqrt(float(weight @ (logs - mean) ** 2))


def _error(pairs: Pairs, contention: np.ndarray) -> float:
    times = _log_times(pairs, contention)
    return float(np.sqrt(np.mean(times * times)))
