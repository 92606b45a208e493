"""Searches over plain functions, whose optima are known or can be counted out."""

import math
from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlens.optimize.evaluators import compilations
from jaxlens.optimize.optima import solve_function
from jaxlens.optimize.problems import Problem, at_least, at_most
from jaxlens.optimize.quadratic_models import plan
from jaxlens.optimize.relaxations import Slopes
from jaxlens.optimize.variables import (
    Variable,
    clocks,
    integer,
    one_of,
    power_of_two,
    real,
    supported_clocks,
)
from jaxlens.profiles import load_profile

PARTS = 8
MET = 1e-9  # limits are met to that


def valley(shared, values):
    x, y = values["x"], values["y"]
    return {
        "height": (1.0 - x) ** 2 + 100.0 * (y - x * x) ** 2,
        "sum": x + y,
        "square": x * x + y * y,
    }


def bowl(shared, values):
    """A tilted quadratic with a linear and a curved limit, all from `shared`."""
    x, y = values["x"], values["y"]
    a, b = x - shared["at"][0], y - shared["at"][1]
    return {
        "cost": a * a + shared["tilt"] * a * b + 3.0 * b * b + 10.0,
        "line": shared["line"][0] * x + shared["line"][1] * y,
        "product": x * y,
    }


def two_wells(shared, values):
    x = values["x"]
    return {"depth": (x * x - 4.0) ** 2 + 0.5 * x, "x": x}


def shares(shared, values):
    x = jnp.stack([values[f"x{part}"] for part in range(PARTS)])
    cost = jnp.sum(shared["saved"] / x + shared["cost"] * x)
    return {"cost": cost, "total": jnp.sum(x)}


def level(shared, values):
    return {"height": 7.0 + 0.0 * values["x"], "x": values["x"]}


def broken(shared, values):
    return {"height": jnp.nan * values["x"]}


def half_broken(shared, values):
    x = values["x"]
    return {"height": jnp.where(x > 0.0, jnp.log(jnp.maximum(x, 1e-9)) ** 2, jnp.nan)}


def tenths(low, high):
    """Numbers with one digit after the point: limits are met to 1e-9, not to the bit."""
    return st.integers(10 * low, 10 * high).map(lambda whole: whole / 10.0)


PLANE = {"x": real(-2.0, 2.0), "y": real(-2.0, 2.0)}


def test_the_bottom_of_a_curved_valley():
    found = solve_function(Problem(minimise="height", variables=PLANE), valley)
    assert found.feasible
    assert found.values["x"] == pytest.approx(1.0, abs=1e-3)
    assert found.values["y"] == pytest.approx(1.0, abs=1e-3)


def test_a_binding_limit_has_the_price_that_loosening_it_saves():
    def least(limit):
        problem = Problem(
            minimise="height", variables=PLANE, limits={"square": at_most(limit)}
        )
        return solve_function(problem, valley)

    found = least(1.0)
    assert found.binding == ("square",)
    assert found.quantities["square"] <= 1.0
    slope = (least(0.99).objective - least(1.01).objective) / 0.02
    assert found.multipliers["square"] == pytest.approx(slope, rel=0.02)


def test_a_limit_that_does_not_bind_is_free():
    problem = Problem(
        minimise="height", variables=PLANE, limits={"square": at_most(50.0)}
    )
    found = solve_function(problem, valley)
    assert found.multipliers == {"square": 0.0}
    assert found.binding == ()
    assert found.slacks["square"] == pytest.approx(48.0, abs=0.1)


def test_maximising_is_minimising_the_negative():
    # On the circle of radius 1, x + y is largest at 45 degrees: sqrt 2.
    problem = Problem(maximise="sum", variables=PLANE, limits={"square": at_most(1.0)})
    found = solve_function(problem, valley)
    assert found.objective == pytest.approx(math.sqrt(2.0), rel=1e-5)
    # d sqrt(2 r) / d r at r = 1.
    assert found.multipliers["square"] == pytest.approx(math.sqrt(0.5), rel=1e-3)


def test_the_deeper_of_two_wells():
    problem = Problem(minimise="depth", variables={"x": real(-4.0, 4.0)})
    assert solve_function(problem, two_wells).values["x"] == pytest.approx(
        -2.015, abs=1e-2
    )


def test_a_soft_limit_gives_way_where_it_costs_more_than_its_weight():
    def where(weight):
        limits = {"x": at_least(3.0, weight)}
        problem = Problem(
            minimise="depth", variables={"x": real(0.5, 4.0)}, limits=limits
        )
        return solve_function(problem, two_wells)

    assert where(1e6).values["x"] == pytest.approx(3.0, abs=1e-3)
    gentle = where(1e-3)
    assert gentle.feasible
    assert gentle.values["x"] == pytest.approx(1.98, abs=0.02)
    assert gentle.slacks["x"] < 0.0


def test_what_cannot_be_met_is_reported_with_the_nearest_point():
    problem = Problem(
        minimise="height", variables=PLANE, limits={"square": at_least(30.0)}
    )
    found = solve_function(problem, valley)
    assert found.reason == "infeasible"
    assert not found.feasible
    # The corners are nearest, with 8.
    assert found.violations == {"square": pytest.approx(22.0)}
    assert "square by 22" in found.explanation


def test_a_flat_objective_is_called_flat():
    problem = Problem(minimise="height", variables={"x": integer(1, 9)})
    assert solve_function(problem, level).reason == "flat"


def test_an_objective_that_is_never_a_number_is_refused():
    problem = Problem(minimise="height", variables={"x": real(0.0, 1.0)})
    with pytest.raises(ValueError, match="height: expected a number somewhere"):
        solve_function(problem, broken)


def test_undefined_places_are_walked_around():
    problem = Problem(minimise="height", variables={"x": real(-4.0, 4.0)})
    assert solve_function(problem, half_broken).values["x"] == pytest.approx(
        1.0, abs=1e-2
    )


def test_the_function_is_compiled_once_for_all_numbers():
    problem = Problem(minimise="height", variables=PLANE)
    solve_function(problem, valley)
    before = compilations(valley)
    for limit in (0.5, 1.5):
        other = Problem(
            minimise="sum",
            variables={"x": integer(-3, 3), "y": one_of([0.5, 1.0])},
            limits={"square": at_most(limit)},
        )
        found = solve_function(other, valley)
    # Exact points have a program of their own beside the one with slopes.
    assert compilations(valley) == before
    assert found.evaluations <= found.lanes


@settings(max_examples=25, deadline=None)
@given(
    at=st.tuples(tenths(-12, 12), tenths(-12, 12)),
    tilt=tenths(-3, 3),
    line=st.tuples(tenths(-2, 2), tenths(-2, 2)),
    least=tenths(-10, 14),
    most=tenths(-20, 90),
)
def test_rounding_is_exhaustive_enough_and_never_worse_than_the_nearest_point(
    at, tilt, line, least, most
):
    shared = {"at": np.array(at), "tilt": tilt, "line": np.array(line)}
    limits = {"line": at_least(least), "product": at_most(most)}
    problem = Problem(
        minimise="cost",
        variables={"x": integer(-10, 10), "y": integer(-10, 10)},
        limits=limits,
    )
    found = solve_function(problem, bowl, shared)
    costs = {}
    for x, y in product(range(-10, 11), repeat=2):
        answers = bowl(shared, {"x": float(x), "y": float(y)})
        if answers["line"] >= least - MET and answers["product"] <= most + MET:
            costs[x, y] = float(answers["cost"])
    assert found.feasible == bool(costs)
    if not costs:
        return
    assert found.objective == pytest.approx(min(costs.values()), rel=1e-3)
    nearest = tuple(round(found.relaxed_values[name]) for name in ("x", "y"))
    assert found.objective <= costs.get(nearest, math.inf) + 1e-9


@settings(max_examples=10, deadline=None)
@given(at=st.tuples(tenths(-8, 8), tenths(-8, 8)), least=tenths(-6, 6))
def test_real_variables_are_solved_again_beside_whole_ones(at, least):
    shared = {"at": np.array(at), "tilt": 0.5, "line": np.array([1.0, 1.0])}
    problem = Problem(
        minimise="cost",
        variables={"x": integer(-10, 10), "y": real(-10.0, 10.0)},
        limits={"line": at_least(least)},
    )
    found = solve_function(problem, bowl, shared)
    best = math.inf
    for x in range(-10, 11):
        # 3 b^2 + a b / 2 is least at b = -a / 12, or at the limit above it.
        free = at[1] - (x - at[0]) / 12.0
        y = min(max(free, least - x), 10.0)
        if y >= -10.0 and x + y >= least - 1e-12:
            answers = bowl(shared, {"x": float(x), "y": max(y, -10.0)})
            best = min(best, float(answers["cost"]))
    assert found.objective == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_budget_is_split_among_many_as_dynamic_programming_does(seed):
    random = np.random.default_rng(seed)
    saved, cost = random.uniform(1.0, 100.0, PARTS), random.uniform(0.01, 1.0, PARTS)
    budget = int(random.integers(20, 50))
    problem = Problem(
        minimise="cost",
        variables={f"x{part}": integer(1, 40) for part in range(PARTS)},
        limits={"total": at_most(budget)},
    )
    found = solve_function(problem, shares, {"saved": saved, "cost": cost})
    least = np.full(budget + 1, np.inf)
    least[0] = 0.0
    for part in range(PARTS):
        before, least = least, np.full(budget + 1, np.inf)
        for x in range(1, min(40, budget) + 1):
            price = saved[part] / x + cost[part] * x
            least[x:] = np.minimum(least[x:], before[: budget + 1 - x] + price)
    assert found.objective == pytest.approx(least.min(), rel=1e-3)
    assert found.multipliers["total"] > 0.0


@pytest.mark.parametrize(
    ("slope", "row", "slack"),
    [
        ((-3.0, -1.0), (-1.0, -1.0), 0.3),  # held by the limit
        ((1.0, 1.0), (1.0, 0.5), -0.2),  # brought back within it
        ((0.4, -0.2), (0.5, 0.5), 1.0),  # free
        ((2.0, -2.0), (0.0, 1.0), 1.0),  # held by the box
    ],
)
def test_a_step_is_the_best_of_its_model(slope, row, slack):
    # One limit, curvature 2 and 1: compared with a fine grid of steps.
    curvature = np.diag([2.0, 1.0])
    at = Slopes(
        objective=np.zeros(1),
        slacks=np.array([[slack]]),
        objective_slope=np.array([slope]),
        slack_slope=np.array([[row]]),
    )
    box = np.full((1, 2), 0.5)
    step, price = plan(
        at, curvature[None], np.zeros((1, 1)), np.full(1, 1e6), -box, box
    )
    axis = np.linspace(-0.5, 0.5, 201)
    tried = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    def value(steps):
        return steps @ np.array(slope) + 0.5 * np.sum(steps @ curvature * steps, axis=1)

    met = slack + tried @ np.array(row) >= -1e-9
    assert np.abs(step).max() <= 0.5
    if met.any():
        assert slack + step[0] @ np.array(row) >= -1e-3
        assert value(step)[0] <= value(tried[met]).min() + 1e-3
    assert price[0, 0] >= 0.0


def test_enumerated_variables_alone_are_counted_out():
    problem = Problem(
        minimise="height",
        variables={"x": power_of_two(1, 8), "y": one_of([1.0, 4.0, 15.0, 70.0])},
        limits={"sum": at_least(17.0)},
    )
    found = solve_function(problem, valley)
    assert (found.values["x"], found.values["y"]) == (4.0, 15.0)


def test_what_is_not_allowed_is_left_out():
    problem = Problem(
        minimise="height",
        variables={"x": power_of_two(1, 8), "y": one_of([1.0, 4.0, 15.0])},
        allowed=lambda values: values["x"] > 1.0,
    )
    found = solve_function(problem, valley)
    assert (found.values["x"], found.values["y"]) == (2.0, 4.0)
    nothing = Problem(
        minimise="height",
        variables={"x": power_of_two(1, 8), "y": real(0.0, 1.0)},
        allowed=lambda values: False,
    )
    with pytest.raises(ValueError, match=r"allowed combinations of x, got 0; widen"):
        solve_function(nothing, valley)


@pytest.mark.parametrize("variable", [integer(1, 900), real(2.0, 3.0), integer(-3, 4)])
def test_coordinates_go_there_and_back(variable):
    at = np.linspace(variable.low, variable.high, 7)
    unit = variable.to_unit(at)
    assert unit[0] == 0.0
    assert unit[-1] == pytest.approx(1.0)
    np.testing.assert_allclose(variable.from_unit(unit), at, rtol=1e-12)


def test_clocks_are_those_of_the_chip():
    chip = load_profile("h100-sxm").chip
    table = clocks(chip)
    assert table[0] == chip.min_hz
    assert table[-1] == chip.max_hz
    assert np.diff(table) == pytest.approx(float(chip.step_hz))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: integer(5, 2), "integer: expected a range that holds a value"),
        (lambda: real(0.0, math.inf), "real: expected finite bounds"),
        (lambda: integer(1, 10**9), "integer: expected at most"),
        (lambda: power_of_two(1, 6), "power of two: expected powers of two"),
        (lambda: one_of([]), "one of: expected at least one"),
        (lambda: supported_clocks(2e9, 1e9), "clocks: expected a range"),
        (lambda: at_most(math.inf), "at_most: expected a finite limit"),
        (lambda: at_least(1.0, 0.0), "at_least: expected a weight above 0"),
        (lambda: Problem(variables=PLANE), "expected one objective"),
        (lambda: Problem(minimise="f", variables={}), "at least one variable"),
        (
            lambda: Problem(minimise="f", variables={"x": (1, 2)}),
            "variables: expected x to be something like integer",
        ),
        (
            lambda: Problem(minimise="f", variables=PLANE, limits={"x": 0.05}),
            "limits: expected x to be something like at_most",
        ),
        (
            lambda: solve_function(Problem(minimise="cost", variables=PLANE), valley),
            "expected a quantity such as height",
        ),
        (
            lambda: solve_function(
                Problem(minimise="x", variables={"x": supported_clocks()}), two_wells
            ),
            "x: expected values that are known without a chip",
        ),
        (
            lambda: solve_function(
                Problem(minimise="height", variables=PLANE), valley, starts=0
            ),
            "search: expected at least one start",
        ),
    ],
)
def test_bad_problems_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_kinds_of_variables():
    assert power_of_two(2, 16).count == 4
    assert integer(3, 5).values.tolist() == [3.0, 4.0, 5.0]
    assert real(0.0, 1.0).count == math.inf
    assert isinstance(one_of([3, 1]), Variable)
