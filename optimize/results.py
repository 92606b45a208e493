"""The answer of a search: where the optimum is, what holds it, and what it cost to find."""

from collections.abc import Mapping
from dataclasses import dataclass

REASONS = {
    "optimal": "within every limit; no neighbour is better",
    "relaxed": "within every limit, but the relaxed search ran out of steps",
    "flat": "within every limit, but no variable moves the objective",
    "infeasible": "no point within every limit was found: this one misses least",
}


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """The best point that was found in another branch: another layout, for instance."""

    values: Mapping[str, float]
    objective: float
    feasible: bool


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best point of a problem. Slacks, multipliers and violations are in user units.

    A multiplier is a shadow price: by how much the objective would improve for each unit
    that its limit is loosened. It belongs to the relaxed optimum, where values are not yet
    whole. It is 0 where a limit does not bind.
    """

    reason: str  # one of `REASONS`
    values: Mapping[str, float]
    objective: float
    quantities: Mapping[str, float]
    slacks: Mapping[str, float]
    multipliers: Mapping[str, float]
    violations: Mapping[str, float]  # of the limits that are missed, above 0
    binding: tuple[str, ...]  # limits that cost something
    at_bounds: Mapping[str, str]  # variables held at "lowest" or "highest"
    relaxed_values: Mapping[str, float]
    relaxed_objective: float
    alternatives: tuple[Alternative, ...]
    steps: int  # of the solver
    evaluations: int  # lanes of all steps, difference quotients and candidates
    lanes: int  # the same with the padding of calls
    seconds: float  # without compilation
    compile_seconds: float
    space: float  # points of an exhaustive search

    @property
    def feasible(self) -> bool:
        """Whether every hard limit is met."""
        return self.reason != "infeasible"

    @property
    def explanation(self) -> str:
        """The reason in words, with what is missed and by how much."""
        text = REASONS[self.reason]
        if not self.violations:
            return text
        missed = ", ".join(
            f"{name} by {by:.4g}" for name, by in self.violations.items()
        )
        return f"{text}: {missed}"
