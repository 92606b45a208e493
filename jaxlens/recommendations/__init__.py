"""A recommendation as a file: what to run, what to expect, and the same numbers again."""

from jaxlens.recommendations.recommendation import (
    Recommendation,
    exact_estimate,
    option_values,
    read,
    reproduction,
    write,
)

__all__ = [
    "Recommendation",
    "exact_estimate",
    "option_values",
    "read",
    "reproduction",
    "write",
]
