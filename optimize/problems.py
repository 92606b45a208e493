"""What is asked: an objective, variables and limits."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jaxlens.optimize.variables import Variable

Values = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A bound on one quantity. `weight` makes it soft: see `at_most`."""

    sense: float  # 1 for at most, -1 for at least
    value: float
    weight: float = math.inf

    def slack(self, quantity: float) -> float:
        """Returns by how much `quantity` stays within the limit; negative beyond."""
        return self.sense * (self.value - quantity)


def at_most(value: float, weight: float = math.inf) -> Limit:
    """Returns an upper limit.

    Args:
        value: The limit, in the unit of the quantity.
        weight: Makes it soft: 1 % beyond the limit costs as much as `weight` % of the
            objective. By default it is hard.
    """
    return _limit(1.0, value, weight)


def at_least(value: float, weight: float = math.inf) -> Limit:
    """Returns a lower limit; `weight` as in `at_most`."""
    return _limit(-1.0, value, weight)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An optimisation problem, in the names of variables and quantities.

    Either `minimise` or `maximise` names the objective. A quantity may have several
    limits. `allowed` refuses combinations of values: it gets those of the enumerated
    variables (`power_of_two`, `one_of`) by name.
    """

    variables: Mapping[str, Variable]
    minimise: str = ""
    maximise: str = ""
    limits: Mapping[str, Limit | Sequence[Limit]] = field(default_factory=dict)
    allowed: Callable[[Values], bool] | None = None

    def __post_init__(self) -> None:
        if bool(self.minimise) == bool(self.maximise):
            raise ValueError(
                f"problem: expected one objective, to minimise or to maximise, got "
                f"{self.minimise!r} and {self.maximise!r}."
            )
        if not self.variables:
            raise ValueError(
                "problem: expected at least one variable, got none; say what may be "
                "chosen, such as {'batch': integer(1, 512)}."
            )
        _check_kinds("variables", self.variables.items(), Variable, "integer(1, 512)")
        listed = [(name, limit) for name, limit in self.stated]
        _check_kinds("limits", listed, Limit, "at_most(0.05)")

    @property
    def objective(self) -> str:
        """Name of the quantity that is minimised or maximised."""
        return self.minimise or self.maximise

    @property
    def sign(self) -> float:
        """1 if less of the objective is better, else -1."""
        return 1.0 if self.minimise else -1.0

    @property
    def stated(self) -> tuple[tuple[str, Limit], ...]:
        """Every limit with the quantity that it bounds."""
        found: list[tuple[str, Limit]] = []
        for name, given in self.limits.items():
            several = given if isinstance(given, Sequence) else (given,)
            found += [(name, limit) for limit in several]
        return tuple(found)


def _limit(sense: float, value: float, weight: float) -> Limit:
    where = "at_most" if sense > 0.0 else "at_least"
    if not math.isfinite(value):
        raise ValueError(
            f"{where}: expected a finite limit, got {value}; leave it out."
        )
    if not weight > 0.0:
        raise ValueError(
            f"{where}: expected a weight above 0, got {weight}; leave the limit out."
        )
    return Limit(sense=sense, value=float(value), weight=float(weight))


def _check_kinds(where: str, pairs: object, kind: type, example: str) -> None:
    for name, value in pairs:  # pyright: ignore[reportGeneralTypeIssues]
        if not isinstance(value, kind):
            raise ValueError(
                f"{where}: expected {name} to be something like {example}, got {value!r}."
            )
