"""What a kernel formula is made of: coefficients with a unit, a prior and its source."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration.kernels.chip_facts import CATALOGUE, Chips

Values = Mapping[str, Array]
Features = Mapping[str, Array]
LogTarget = Callable[[Values, Features], Array]
Columns = Mapping[str, np.ndarray]
Labels = tuple[str, ...]
SCORED_SECONDS = 1e-5
LEAST_SHARE = 1e-6  # files round shares near zero or one


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """One coefficient, fitted as a standard score z of its prior.

    scale "log": prior exp(spread z); "share": the same for the odds of a share of one;
    "linear": prior + spread z.
    """

    name: str
    unit: str
    prior: float
    spread: float
    source: str
    scale: Literal["log", "share", "linear"] = "log"


def value_of(coefficient: Coefficient, score: Array | np.ndarray) -> Array:
    """Returns the value of a coefficient at a standard score."""
    prior, moved = coefficient.prior, coefficient.spread * jnp.asarray(score)
    if coefficient.scale == "linear":
        return prior + moved
    if coefficient.scale == "share":
        odds = prior / (1.0 - prior) * jnp.exp(moved)
        return odds / (1.0 + odds)
    return prior * jnp.exp(moved)


def values_of(
    coefficients: Sequence[Coefficient], scores: Array | np.ndarray
) -> dict[str, Array]:
    """Returns the values of all coefficients, by name."""
    return {c.name: value_of(c, scores[..., i]) for i, c in enumerate(coefficients)}


def score_of(coefficient: Coefficient, value: float) -> float:
    """Returns the standard score of a value: the inverse of `value_of`."""
    if coefficient.scale == "linear":
        return (value - coefficient.prior) / coefficient.spread
    if coefficient.scale == "share":
        inside = min(max(value, LEAST_SHARE), 1.0 - LEAST_SHARE)
        odds = coefficient.prior / (1.0 - coefficient.prior)
        return math.log(inside / (1.0 - inside) / odds) / coefficient.spread
    return math.log(value / coefficient.prior) / coefficient.spread


def scores_of(
    coefficients: Sequence[Coefficient], values: Mapping[str, float]
) -> np.ndarray:
    """Returns the standard scores of all coefficients, in order."""
    return np.array([score_of(c, values[c.name]) for c in coefficients])


def scaled(
    name: str, unit: str, prior: float, spread: float, why: str = ""
) -> Coefficient:
    """Returns a coefficient above zero."""
    return Coefficient(
        name=name, unit=unit, prior=prior, spread=spread, source=_source(why)
    )


def share(name: str, prior: float, spread: float, why: str = "") -> Coefficient:
    """Returns a coefficient between zero and one."""
    return Coefficient(
        name=name,
        unit="1",
        prior=prior,
        spread=spread,
        source=_source(why),
        scale="share",
    )


def _source(why: str) -> str:
    return f"prior: {why or 'order of magnitude on current accelerators'}"


def corrections(*names: str, spread: float) -> tuple[Coefficient, ...]:
    """Returns the coefficients of a correction: zero unless the data insist."""
    return tuple(
        Coefficient(
            name=name,
            unit="1",
            prior=0.0,
            spread=spread,
            source="prior: no correction",
            scale="linear",
        )
        for name in names
    )


def _long_launches(columns: Columns) -> np.ndarray:
    return columns["seconds"] >= SCORED_SECONDS


class FeaturesOf(Protocol):
    """Computes the inputs of a formula from the columns of a table."""

    def __call__(
        self, columns: Columns, chips: Chips = CATALOGUE
    ) -> dict[str, np.ndarray]:
        """Returns the inputs of every row; `chips` holds facts beside the catalogue's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of measured table, and the formula that explains it.

    Attributes:
        kind: Name of the table's schema.
        coefficients: What is fitted.
        log_target: The formula of log seconds or log watts; element-wise in rows.
        features: Its inputs, from the columns of a table.
        levels: Columns that name a group, from the coarsest pool to the group itself.
        shape: Columns that name a shape: rows that share them are held out together.
        must_match: Columns in which a stand-in for an unknown group has to agree.
        rows: Most rows of a group that are fitted.
        scored: Rows that count in full; launches of at least 10 us by default.
    """

    kind: str
    coefficients: tuple[Coefficient, ...]
    log_target: LogTarget
    features: FeaturesOf
    levels: tuple[Labels, ...]
    shape: Labels
    must_match: Labels
    rows: int
    scored: Callable[[Columns], np.ndarray] = field(default=_long_launches)
