"""The compiled augmented Lagrangian: known prices, annealing, reasons and one program."""

import math
from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlens.deployments import Workload
from jaxlens.optimize.annealed_lanes import AnnealedLanes, compilations, ramps
from jaxlens.optimize.evaluators import Evaluator
from jaxlens.optimize.optima import knobs_outcome, solve, solve_function
from jaxlens.optimize.outcomes import FIELDS, Prices, Question, completed, outcome
from jaxlens.optimize.problems import Problem, at_least, at_most
from jaxlens.optimize.relaxations import Relaxation
from jaxlens.optimize.variables import (
    clocks,
    integer,
    one_of,
    power_of_two,
    real,
    supported_clocks,
)
from jaxlens.requests import prepare


def distance(shared, values):
    """A quadratic around `shared["at"]`, whose size is at least 10, and two limits."""
    x, y = values["x"], values["y"]
    a, b = x - shared["at"][0], y - shared["at"][1]
    return {"cost": 10.0 + a * a + 2.0 * b * b, "sum": x + y, "x": x}


def level(shared, values):
    return {"height": 7.0 + 0.0 * values["x"]}


def broken(shared, values):
    return {"height": jnp.nan * values["x"]}


def steep_root(shared, values):
    """A number everywhere, whose slope is NaN at once: 0 times infinity."""
    return {"height": values["x"] + jnp.sqrt(0.0 * values["x"])}


AT = {"at": np.array([3.0, -1.0])}
BOX = {"x": real(-10.0, 10.0), "y": real(-10.0, 10.0)}
WHOLE = {"x": integer(-10, 10), "y": integer(-10, 10)}


def lagrangian(problem, function, shared=None, **options):
    return solve_function(problem, function, shared, method="lagrangian", **options)


def lanes_of(problem, function, shared):
    """The compiled method alone, without rounding and finishing steps."""
    names = tuple(problem.variables)
    evaluator = Evaluator(function, shared, names)
    relaxation = Relaxation(
        problem, problem.variables, evaluator, positive=frozenset(), automatic=True
    )
    middle = np.full((1, len(names)), 0.5)
    relaxation.calibrate(middle, np.array([0]))
    return relaxation, AnnealedLanes(relaxation, function, shared, names, {})


# With a + b >= s beyond the centre the move (a, b) is (2/3, 1/3) of what is missing, and
# the price 2 a.
@pytest.mark.parametrize("least", [3.0, 5.0, 8.0])
def test_a_quadratic_has_the_price_that_is_known(least):
    problem = Problem(minimise="cost", variables=BOX, limits={"sum": at_least(least)})
    found = lagrangian(problem, distance, AT)
    missing = least - 2.0
    assert found.reason == "optimal"
    assert found.values["x"] == pytest.approx(3.0 + missing * 2.0 / 3.0, rel=1e-4)
    assert found.values["y"] == pytest.approx(-1.0 + missing / 3.0, abs=1e-3)
    assert found.multipliers["sum"] == pytest.approx(missing * 4.0 / 3.0, rel=1e-3)
    assert found.binding == ("sum",)


def test_the_first_order_steps_alone_find_prices_within_a_percent():
    limits = {"sum": at_least(5.0), "x": at_most(4.0)}
    problem = Problem(minimise="cost", variables=BOX, limits=limits)
    relaxation, lanes = lanes_of(problem, distance, AT)
    starts = np.array([[0.5, 0.5], [0.05, 0.9], [0.95, 0.1]])
    relaxed, _ = lanes.relaxed(starts, np.zeros(3, int))
    assert all("vanishes" in reason for reason in lanes.reasons)
    # x = 4 and y = 1: cost rises by 4 b = 8 for y, of which 2 a = 2 pays for x.
    prices = relaxed.multipliers / relaxation.scales[1:] * relaxation.scales[0]
    np.testing.assert_allclose(prices, [[8.0, 6.0]] * 3, rtol=0.01)
    # Counted lane by lane, within what the calls have computed.
    evaluator = relaxation.evaluator
    assert 3 * 10 < evaluator.evaluations <= evaluator.lanes


def test_a_limit_that_does_not_bind_is_free_and_a_bound_is_told():
    problem = Problem(
        minimise="cost",
        variables=BOX | {"x": real(-10.0, 2.0)},
        limits={"sum": at_least(-5.0)},
    )
    found = lagrangian(problem, distance, AT)
    assert found.multipliers == {"sum": 0.0}
    assert found.at_bounds == {"x": "highest"}


def test_a_soft_limit_gives_way_beyond_its_weight():
    def where(weight):
        limits = {"sum": at_least(8.0, weight)}
        return lagrangian(
            Problem(minimise="cost", variables=BOX, limits=limits), distance, AT
        )

    assert where(1e4).slacks["sum"] == pytest.approx(0.0, abs=1e-3)
    gentle = where(0.01)
    assert gentle.feasible
    assert gentle.slacks["sum"] < -1.0


def exhaustive(limits, at):
    best = math.inf, (0, 0)
    for x, y in product(range(-10, 11), repeat=2):
        found = distance({"at": at}, {"x": float(x), "y": float(y)})
        if all(limit.slack(found[name]) >= 0.0 for name, limit in limits.items()):
            best = min(best, (float(found["cost"]), (x, y)))
    return best


@pytest.mark.parametrize(
    ("at", "least"), [((3.3, -1.2), 4.6), ((-2.4, 5.3), 7.5), ((0.4, 0.6), 3.3)]
)
def test_annealing_lands_on_the_whole_optimum(at, least):
    limits = {"sum": at_least(least)}
    problem = Problem(minimise="cost", variables=WHOLE, limits=limits)
    relaxation, lanes = lanes_of(problem, distance, {"at": np.array(at)})
    starts, branches = np.full((8, 2), 0.5), np.zeros(8, int)
    relaxed, annealed = lanes.relaxed(starts, branches)
    values = relaxation.points(annealed, branches)
    assert np.abs(values - np.round(values)).max() < 0.05
    best, _ = exhaustive(limits, np.array(at))
    whole = np.round(values)
    costs = [
        float(distance({"at": at}, {"x": x, "y": y})["cost"])
        for x, y in whole
        if x + y >= least
    ]
    assert min(costs) == pytest.approx(best)
    # The relaxed optimum is another point, and promises more.
    between = relaxation.points(relaxed.coordinates, branches)
    assert np.abs(between - np.round(between)).max() > 0.05
    found = lagrangian(problem, distance, {"at": np.array(at)})
    assert found.objective == pytest.approx(best)


def test_what_cannot_be_met_ends_early_and_is_reported():
    problem = Problem(minimise="cost", variables=WHOLE, limits={"sum": at_least(30.0)})
    found = lagrangian(problem, distance, AT)
    assert found.reason == "infeasible"
    assert found.violations == {"sum": pytest.approx(10.0)}
    _, lanes = lanes_of(problem, distance, AT)
    lanes.relaxed(np.full((1, 2), 0.3), np.zeros(1, int))
    assert lanes.reasons == ["limits are still missed when the relaxed rounds end"]


def test_a_flat_objective_is_called_flat():
    problem = Problem(minimise="height", variables={"x": integer(1, 9)})
    assert lagrangian(problem, level).reason == "flat"


def test_what_is_not_a_number_is_refused():
    problem = Problem(minimise="height", variables={"x": real(0.0, 1.0)})
    with pytest.raises(ValueError, match="height: expected a number somewhere"):
        lagrangian(problem, broken)
    with pytest.raises(
        ValueError, match="height: expected a gradient that is a number"
    ):
        lagrangian(problem, steep_root)
    with pytest.raises(ValueError, match="method: expected quadratic or lagrangian"):
        solve_function(problem, level, method="simplex")


def test_one_program_serves_other_numbers():
    def ask(at, least, kinds, **goal):
        limits = {"sum": at_least(least), "x": at_most(9.0)}
        problem = Problem(variables=kinds, limits=limits, **goal)
        return lagrangian(problem, distance, {"at": np.array(at)}, starts=3)

    ask((3.0, -1.0), 5.0, BOX, minimise="cost")
    before = compilations(distance)
    found = ask((1.0, 1.0), 7.0, WHOLE | {"y": real(-3.0, 3.0)}, maximise="sum")
    assert compilations(distance) == before
    assert found.objective == pytest.approx(12.0)
    assert found.compile_seconds == 0.0


@pytest.mark.parametrize(
    "variable", [integer(3, 9), power_of_two(1, 64), one_of([1, 2, 3, 7, 30])]
)
def test_digits_are_places_in_the_list(variable):
    listed = np.array(ramps(variable))
    values = np.asarray(variable.values)
    for place, value in enumerate(values):
        rise = (value - listed[:, 0]) / listed[:, 1]
        assert np.clip(rise, 0.0, listed[:, 2]).sum() == pytest.approx(place)


MODEL = "meta-llama/Llama-3.1-8B"
TPOT_SECONDS = 0.009


def test_a_deployment_is_as_good_as_the_best_of_all_points():
    asked = prepare(MODEL, "h100-sxm", workload=Workload(prompt_tokens=512.0))
    problem = Problem(
        minimise="joules_per_output_token",
        variables={"batch": integer(1, 48), "clock_hz": supported_clocks()},
        limits={
            "memory_slack_bytes": at_least(0.0),
            "seconds_per_output_token": at_most(TPOT_SECONDS),
        },
    )
    found = solve(problem, asked, method="lagrangian")
    question = Question(
        model=asked.model,
        profile=asked.profile,
        base=asked.deployment,
        workload=asked.workload,
        prices=Prices(),
    )
    names = "batch", "clock_hz"
    every = product(range(1, 49), clocks(asked.profile.chip))
    points = completed(asked.deployment, names, np.array(list(every), float))
    evaluator = Evaluator(outcome, question, FIELDS)
    listed = evaluator.values(points).T
    columns = dict(zip(evaluator.quantities, listed, strict=True))
    met = columns["memory_slack_bytes"] >= 0.0
    met &= columns["seconds_per_output_token"] <= TPOT_SECONDS
    best = float(columns["joules_per_output_token"][met].min())
    assert found.objective == pytest.approx(best, rel=1e-3)
    assert found.binding == ("seconds_per_output_token",)
    # Sequences per replica, another objective and another chip: the same program.
    before = compilations(knobs_outcome)
    other = Problem(
        maximise="output_tokens_per_second_per_gpu",
        variables={"sequences": integer(1, 9)},
        limits={"seconds_per_output_token": at_most(1.0)},
    )
    again = solve(other, prepare(MODEL, "b200-sxm"), method="lagrangian")
    assert again.values == {"sequences": 9.0}
    assert compilations(knobs_outcome) == before
