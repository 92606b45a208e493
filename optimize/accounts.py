"""What a search has found, in the units of the problem: prices, slacks and bounds."""

from collections.abc import Iterable

import numpy as np

from jaxlens.optimize.problems import Limit
from jaxlens.optimize.relaxations import Relaxation
from jaxlens.optimize.results import Alternative, Optimum
from jaxlens.optimize.rounding import Candidate
from jaxlens.optimize.searches import Search

FLAT = 1e-9
SAME = 1e-6  # scaled
WALLED = 1e-3  # slope that presses a variable against its bound, scaled


def account(search: Search, best: Candidate) -> Optimum:
    """Returns what a search has found, in the units of the problem."""
    relaxation, evaluator = search.relaxation, search.relaxation.evaluator
    names = evaluator.quantities
    quantities = dict(zip(names, best.found.tolist(), strict=True))
    slacks, violations = {}, {}
    for (name, limit), label in zip(
        relaxation.limits, labels(relaxation.limits), strict=True
    ):
        slacks[label] = limit.slack(quantities[name])
        missed = best.excess > 0.0 and slacks[label] < 0.0
        if missed and np.isinf(limit.weight):
            violations[label] = -slacks[label]
    objective = relaxation.problem.objective
    multipliers = _multipliers(search, best)
    lane = search.best_lane(best.branch)
    coordinates = (
        best.coordinates
        if lane is None or search.relaxed is None
        else search.relaxed.coordinates[lane]
    )
    relaxed = best.objective if lane is None else search.lane_objective(lane)
    return Optimum(
        reason=_reason(search, best, lane),
        values=_values(relaxation, best),
        objective=quantities[objective],
        quantities=quantities,
        slacks=slacks,
        multipliers=multipliers,
        violations=violations,
        binding=tuple(name for name, price in multipliers.items() if price > 0.0),
        at_bounds=_at_bounds(search, lane),
        relaxed_values=relaxation.point(coordinates, best.branch),
        relaxed_objective=_unscaled(relaxation, relaxed),
        alternatives=_alternatives(search, best),
        steps=0 if search.relaxed is None else search.relaxed.steps,
        evaluations=evaluator.evaluations,
        lanes=evaluator.lanes,
        seconds=search.seconds,
        compile_seconds=evaluator.compile_seconds,
        space=relaxation.size,
    )


def _reason(search: Search, best: Candidate, lane: int | None) -> str:
    low, high = search.relaxation.lowest, search.relaxation.highest
    if best.excess > 0.0:
        return "infeasible"
    if high - low <= FLAT * max(abs(low), abs(high)):
        return "flat"
    if search.relaxed is None or lane is None or search.rounding.discrete:
        return "optimal"
    near = search.relaxed.objective <= search.relaxed.objective[lane] + SAME
    return "optimal" if (near & search.relaxed.converged).any() else "relaxed"


def _values(relaxation: Relaxation, best: Candidate) -> dict[str, float]:
    """Values by name, exactly those of the variables' lists."""
    found = relaxation.point(best.coordinates, best.branch)
    for name, value in found.items():
        values = relaxation.variables[name].values
        if values is not None:
            found[name] = float(values[np.argmin(np.abs(values - value))])
    return found


def _unscaled(relaxation: Relaxation, scaled: float) -> float:
    problem = relaxation.problem
    if problem.objective in relaxation.positive:
        return float(np.exp(problem.sign * scaled))
    return float(problem.sign * scaled * relaxation.scales[0])


def _multipliers(search: Search, best: Candidate) -> dict[str, float]:
    """Derivatives of the objective in the limits, in user units."""
    relaxation = search.relaxation
    names = labels(relaxation.limits)
    lane = search.best_lane(best.branch)
    if lane is None or search.relaxed is None or best.excess > 0.0:
        return dict.fromkeys(names, 0.0)
    objective = _unscaled(relaxation, float(search.relaxed.objective[lane]))
    size = relaxation.scales[0]
    if relaxation.problem.objective in relaxation.positive:
        size = abs(objective)
    found = {}
    for position, (_, limit) in enumerate(relaxation.limits):
        unit = relaxation.scales[1 + position]
        if relaxation.relative(position):
            unit = limit.value
        price = float(search.relaxed.multipliers[lane, position])
        found[names[position]] = float(price * size / unit) if price > 1e-6 else 0.0
    return found


def _at_bounds(search: Search, lane: int | None) -> dict[str, str]:
    if lane is None or search.relaxed is None:
        return {}
    found = {}
    for axis, name in enumerate(search.relaxation.free):
        at = search.relaxed.coordinates[lane, axis]
        slope = search.relaxed.reduced_slope[lane, axis]
        if at < 1e-6 and slope > WALLED:
            found[name] = "lowest"
        if at > 1.0 - 1e-6 and slope < -WALLED:
            found[name] = "highest"
    return found


def _alternatives(search: Search, best: Candidate) -> tuple[Alternative, ...]:
    column = search.relaxation.evaluator.quantities.index(
        search.relaxation.problem.objective
    )
    others = [search.bests[b] for b in search.finished if b != best.branch]
    return tuple(
        Alternative(
            values=_values(search.relaxation, c),
            objective=float(c.found[column]),
            feasible=c.excess == 0.0,
        )
        for c in sorted(others, key=lambda c: c.rank)
    )


def labels(limits: Iterable[tuple[str, Limit]]) -> list[str]:
    """Returns a name for each limit: its quantity, with the sense if it has several."""
    listed = list(limits)
    names = [name for name, _ in listed]
    return [
        name
        if names.count(name) == 1
        else f"{name} {'<=' if limit.sense > 0.0 else '>='} {limit.value:g}"
        for name, limit in listed
    ]
