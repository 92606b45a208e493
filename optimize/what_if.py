"""What a better chip would be worth: how the best achievable answer moves with each number.

With x* the optimum and m its multipliers, the envelope theorem says

    dJ*/dp = dJ/dp - sum_j m_j dc_j/dp    at x* held still,

for limits c_j >= 0: deployments adapt, but to first order that changes nothing. The layout
and the range of clocks stay what they are.

Source: P. Milgrom, I. Segal, "Envelope theorems for arbitrary choice sets", Econometrica
70(2), 2002, https://doi.org/10.1111/1468-0262.00296.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.hardware import Chip
from jaxlens.optimize.accounts import labels
from jaxlens.optimize.optima import solve
from jaxlens.optimize.outcomes import Prices, Question, outcome
from jaxlens.optimize.problems import Problem
from jaxlens.optimize.results import Optimum
from jaxlens.optimize.variables import of_chip, one_of
from jaxlens.requests import Request

# The range of clocks is part of the problem, and the boost clock says where peaks hold.
HELD = ("min_hz", "max_hz", "step_hz", "boost_hz")
COEFFICIENTS = tuple(f.name for f in fields(Chip) if f.name not in HELD)
IMPROVEMENT = 0.1


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What one number of a chip is worth to the best achievable answer."""

    name: str
    value: float
    slope: float  # of the best objective, per unit of the number
    elasticity: float  # per cent of the objective per cent of the number
    gain: float  # relative improvement if the number gets better by 10 %: at least 0
    better: str  # "more" or "less" of it


@dataclass(frozen=True, kw_only=True)
class HardwareAdvice:
    """The optimum on the chip as it is, and what each of its numbers is worth there."""

    optimum: Optimum
    worths: tuple[Worth, ...]  # best first


def advise_hardware(
    problem: Problem,
    request: Request,
    *,
    prices: Prices | None = None,
    coefficients: Sequence[str] = COEFFICIENTS,
) -> HardwareAdvice:
    """Returns which numbers of a chip would pay, at the relaxed optimum of a problem.

    Raises:
        ValueError: There is no optimum: no point meets the limits. Or a coefficient is
            unknown.
    """
    unknown = [name for name in coefficients if name not in COEFFICIENTS]
    if unknown:
        raise ValueError(
            f"coefficient: expected of {', '.join(COEFFICIENTS)}, got {unknown[0]!r}."
        )
    optimum = solve(problem, request, prices=prices)
    if not optimum.feasible:
        raise ValueError(
            f"hardware: expected limits that a deployment can meet, got "
            f"{optimum.explanation}; loosen them."
        )
    slopes = envelope(problem, request, optimum, coefficients, prices=prices)
    worths = [
        _worth(
            name, float(getattr(request.profile.chip, name)), slope, problem, optimum
        )
        for name, slope in slopes.items()
    ]
    return HardwareAdvice(
        optimum=optimum, worths=tuple(sorted(worths, key=lambda w: -w.gain))
    )


def envelope(
    problem: Problem,
    request: Request,
    optimum: Optimum,
    coefficients: Sequence[str] = COEFFICIENTS,
    *,
    prices: Prices | None = None,
) -> dict[str, float]:
    """Returns the slope of the best objective in each coefficient of the chip.

    Forward mode, all coefficients at once, at the relaxed optimum and without compilation.
    """
    chip = request.profile.chip
    limits = [
        (name, limit, optimum.multipliers[label])
        for (name, limit), label in zip(
            problem.stated, labels(problem.stated), strict=True
        )
        if optimum.multipliers.get(label, 0.0) != 0.0
    ]

    def lagrangian(numbers: Any) -> Any:
        changed = dict(zip(coefficients, numbers, strict=True))
        profile = replace(request.profile, chip=replace(chip, **changed))
        found = outcome(
            Question(
                model=request.model,
                profile=profile,
                base=request.deployment,
                workload=request.workload,
                prices=prices or Prices(),
            ),
            optimum.relaxed_values,
        )
        total = problem.sign * found[problem.objective]
        for name, limit, price in limits:
            total = total + price * limit.sense * found[name]
        return total

    with jax.enable_x64(True):
        values = [jnp.asarray(float(getattr(chip, name))) for name in coefficients]

        def along(direction: Any) -> Any:
            return jax.jvp(lagrangian, (values,), (direction,))[1]

        directions = [jnp.asarray(row) for row in np.eye(len(coefficients))]
        slopes = problem.sign * np.asarray(jax.vmap(along)(directions))
    return dict(zip(coefficients, slopes.tolist(), strict=True))


def reoptimised(
    problem: Problem,
    request: Request,
    optimum: Optimum,
    coefficient: str,
    factor: float,
    *,
    prices: Prices | None = None,
) -> float:
    """Returns the best relaxed objective if a coefficient is `factor` times its value.

    The layout and the clocks to choose from are those of `optimum` and of the chip as it
    is: what `envelope` assumes.
    """
    chip = request.profile.chip
    variables = {
        name: one_of([optimum.values[name]])
        if variable.enumerated
        else of_chip(variable, chip)
        for name, variable in problem.variables.items()
    }
    changed = replace(chip, **{coefficient: factor * float(getattr(chip, coefficient))})
    other = replace(request, profile=replace(request.profile, chip=changed))
    held = replace(problem, variables=variables, allowed=None)
    return solve(held, other, prices=prices).relaxed_objective


def _worth(
    name: str, value: float, slope: float, problem: Problem, optimum: Optimum
) -> Worth:
    elasticity = slope * value / optimum.relaxed_objective
    harm = problem.sign * elasticity  # above 0: more of it is worse
    factor = 1.0 / (1.0 + IMPROVEMENT) if harm > 0.0 else 1.0 + IMPROVEMENT
    return Worth(
        name=name,
        value=value,
        slope=slope,
        elasticity=elasticity,
        gain=abs(factor**elasticity - 1.0),
        better="less" if harm > 0.0 else "more",
    )
