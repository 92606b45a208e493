"""Searches over deployments, beside exhaustive evaluation of the same spaces."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxlens import batch, spaces
from jaxlens.cli import main
from jaxlens.deployments import Workload
from jaxlens.exploring import estimate
from jaxlens.optimize.advise_layout import (
    advise_layout,
    latency_limits,
    layout_problem,
)
from jaxlens.optimize.evaluators import compilations
from jaxlens.optimize.optima import solve
from jaxlens.optimize.outcomes import Prices, Question, deployed, outcome
from jaxlens.optimize.problems import Problem, at_least, at_most
from jaxlens.optimize.variables import (
    clocks,
    integer,
    one_of,
    power_of_two,
    real,
    supported_clocks,
)
from jaxlens.optimize.what_if import advise_hardware, reoptimised
from jaxlens.requests import prepare

MODEL = "meta-llama/Llama-3.1-8B"
MOST = 48
NAMES = (
    "joules_per_output_token",
    "seconds_per_output_token",
    "seconds_prefill",
    "output_tokens_per_second_per_gpu",
    "memory_slack_bytes",
    "watts_per_gpu",
)
FITS = {"memory_slack_bytes": at_least(0.0)}
VARIABLES = {
    "tensor_parallel": power_of_two(1, 4),
    "batch": integer(1, MOST),
    "clock_hz": supported_clocks(),
}


def some(question, values):
    found = outcome(question, values)
    return {name: found[name] for name in NAMES}


@pytest.fixture(scope="module")
def request_of_one():
    return prepare(MODEL, "h100-sxm", workload=Workload(prompt_tokens=512.0))


@pytest.fixture(scope="module")
def everything(request_of_one):
    asked = request_of_one
    space = spaces.space(
        spaces.choices("tensor_parallel", [1, 2, 4]),
        spaces.integers("batch", 1, MOST),
        spaces.choices("clock_hz", clocks(asked.profile.chip)),
    )
    question = Question(
        model=asked.model,
        profile=asked.profile,
        base=asked.deployment,
        workload=asked.workload,
        prices=Prices(),
    )
    return space, batch.evaluate(some, question, space)


def within(columns, limits):
    met = columns["memory_slack_bytes"] >= 0.0
    for name, limit in limits.items():
        met &= limit.sense * (limit.value - columns[name].astype(float)) >= 0.0
    return met


def limits_at(columns, quantiles):
    """Limits that a share of all points meets, by quantity."""
    fits = columns["memory_slack_bytes"] >= 0.0
    return {
        name: bound(float(np.quantile(columns[name][fits], share)))
        for name, (bound, share) in quantiles.items()
    }


@pytest.mark.parametrize(
    ("objective", "quantiles"),
    [
        ("joules_per_output_token", {}),
        ("joules_per_output_token", {"seconds_per_output_token": (at_most, 0.3)}),
        ("joules_per_output_token", {"seconds_per_output_token": (at_most, 0.002)}),
        (
            "joules_per_output_token",
            {
                "seconds_per_output_token": (at_most, 0.6),
                "seconds_prefill": (at_most, 0.4),
                "watts_per_gpu": (at_most, 0.5),
            },
        ),
        ("seconds_per_output_token", {"watts_per_gpu": (at_most, 0.3)}),
        ("watts_per_gpu", {"output_tokens_per_second_per_gpu": (at_least, 0.6)}),
    ],
)
def test_the_optimum_is_that_of_all_points(
    request_of_one, everything, objective, quantiles
):
    space, columns = everything
    limits = limits_at(columns, quantiles)
    problem = Problem(minimise=objective, variables=VARIABLES, limits=FITS | limits)
    found = solve(problem, request_of_one)
    met = within(columns, limits)
    assert found.feasible
    best = float(columns[objective][met].min())
    assert found.objective == pytest.approx(best, rel=1e-3)
    assert all(slack >= 0.0 for slack in found.slacks.values())
    assert found.space == space.size
    # A rounded optimum cannot beat the relaxed one.
    assert found.objective >= found.relaxed_objective * (1.0 - 1e-5)


def test_one_program_serves_all_searches_of_a_model(request_of_one):
    solve(Problem(minimise="watts", variables={"batch": integer(1, 4)}), request_of_one)
    before = compilations(outcome)
    other = prepare("meta-llama/Llama-3.1-70B", "b200-sxm")
    problem = Problem(
        maximise="output_tokens_per_second_per_gpu",
        variables={"power_cap_watts": real(400.0, 900.0), "sequences": integer(1, 9)},
        limits={"seconds_per_output_token": at_most(1.0)},
    )
    assert solve(problem, other).feasible
    assert compilations(outcome) == before


def test_a_price_is_what_loosening_the_limit_saves(request_of_one):
    def least(limit):
        limits = FITS | {"seconds_per_output_token": at_most(limit)}
        variables = VARIABLES | {"tensor_parallel": one_of([1])}
        problem = Problem(
            minimise="joules_per_output_token", variables=variables, limits=limits
        )
        return solve(problem, request_of_one)

    found = least(0.009)
    assert found.binding == ("seconds_per_output_token",)
    more, less = (least(0.009 * factor) for factor in (1.01, 0.99))
    slope = (less.relaxed_objective - more.relaxed_objective) / (0.02 * 0.009)
    price = found.multipliers["seconds_per_output_token"]
    assert price == pytest.approx(slope, rel=0.02)


def test_a_limit_out_of_reach_names_itself_and_the_nearest_point(
    request_of_one, everything
):
    _, columns = everything
    least = float(columns["seconds_per_output_token"].min())
    limits = {"seconds_per_output_token": at_most(0.5 * least)}
    problem = Problem(
        minimise="joules_per_output_token", variables=VARIABLES, limits=limits
    )
    found = solve(problem, request_of_one)
    assert found.reason == "infeasible"
    missed = found.violations["seconds_per_output_token"]
    assert missed == pytest.approx(0.5 * least, rel=1e-3)


def test_refused_layouts_are_left_out(request_of_one):
    # 32 heads over 3 ranks: refused.
    variables = VARIABLES | {"tensor_parallel": one_of([2, 3])}
    problem = Problem(minimise="seconds_per_output_token", variables=variables)
    found = solve(problem, request_of_one)
    assert found.values["tensor_parallel"] == 2.0
    nothing = replace(problem, variables={"tensor_parallel": one_of([3, 5])})
    with pytest.raises(ValueError, match="allowed combinations of tensor_parallel"):
        solve(nothing, request_of_one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variables": {"tp": integer(1, 4)}}, "variables: expected of batch"),
        ({"variables": {"batch": integer(0, 4)}}, "batch: expected bounds within 1"),
        (
            {"variables": {"batch": integer(1, 4), "sequences": integer(1, 4)}},
            "expected batch or sequences per replica, got both",
        ),
        ({"minimise": "joules"}, "problem: expected a quantity of seconds_prefill"),
        ({"limits": {"tpot": at_most(1.0)}}, "problem: expected a quantity of"),
        (
            {"variables": {"clock_hz": supported_clocks(5e9, 6e9)}},
            "clocks: expected some from 5000 to 6000 MHz",
        ),
    ],
)
def test_bad_problems_say_what_is_wrong(request_of_one, change, message):
    problem = Problem(minimise="joules_per_output_token", variables=VARIABLES)
    with pytest.raises(ValueError, match=message):
        solve(replace(problem, **change), request_of_one)


def without_clocks(asked):
    chip = replace(asked.profile.chip, step_hz=0.0)
    return replace(asked, profile=replace(asked.profile, chip=chip))


def test_a_chip_without_clocks_says_which_advice_is_impossible(request_of_one):
    asked = without_clocks(request_of_one)
    problem = Problem(minimise="joules_per_output_token", variables=VARIABLES)
    with pytest.raises(ValueError, match="clock advice is impossible"):
        solve(problem, asked)
    advice = advise_layout(asked, max_gpus=2, most_sequences=8)
    assert "clock_hz" not in advice.optimum.values
    assert any("clock advice is impossible" in note for note in advice.notes)


def test_layout_advice_stays_within_its_limits(request_of_one):
    limits = latency_limits(tpot_seconds=0.008, ttft_seconds=0.1)
    advice = advise_layout(request_of_one, limits, max_gpus=4, most_sequences=64)
    said = estimate(advice.request)
    assert said.joules_per_output_token == pytest.approx(advice.optimum.objective)
    assert said.seconds_per_output_token <= 0.008
    assert said.memory_slack_bytes >= 0.0
    assert advice.request.gpus <= 4
    others = [other.objective for other in advice.optimum.alternatives]
    assert others
    assert min(others) >= advice.optimum.objective
    assert float(advice.request.deployment.batch) == advice.optimum.values["sequences"]


def test_one_gpu_has_no_layout(request_of_one):
    advice = advise_layout(request_of_one, max_gpus=1, most_sequences=16)
    assert advice.request.gpus == 1
    assert any("no layout to choose" in note for note in advice.notes)


def test_throughput_takes_replicas(request_of_one):
    rate = latency_limits(output_tokens_per_second=15_000.0)
    advice = advise_layout(request_of_one, rate, max_gpus=8, most_sequences=64)
    assert advice.optimum.feasible
    assert advice.optimum.quantities["output_tokens_per_second"] >= 15_000.0
    assert advice.optimum.values["data_parallel"] > 1.0


def test_energy_and_gpu_time_have_a_price(request_of_one):
    prices = Prices(per_gpu_second=1e-3, per_joule=1e-8)
    problem = Problem(
        minimise="cost_per_output_token", variables=VARIABLES, limits=FITS
    )
    found = solve(problem, request_of_one, prices=prices)
    assert found.objective == pytest.approx(
        1e-3 * found.quantities["gpu_seconds_per_output_token"]
        + 1e-8 * found.quantities["joules_per_output_token"]
    )


@pytest.fixture(scope="module")
def hardware(request_of_one):
    limits = latency_limits(tpot_seconds=0.009)
    problem, _ = layout_problem(request_of_one, limits, max_gpus=2, most_sequences=MOST)
    return problem, advise_hardware(problem, request_of_one)


@pytest.mark.parametrize("name", ["hbm_bytes_per_s", "idle_watts", "bf16_j_per_flop"])
def test_the_worth_of_a_number_is_that_of_searching_again(
    request_of_one, hardware, name
):
    problem, advice = hardware
    (worth,) = [worth for worth in advice.worths if worth.name == name]
    step = 0.01
    up, down = (
        reoptimised(problem, request_of_one, advice.optimum, name, 1.0 + way * step)
        for way in (1.0, -1.0)
    )
    slope = (up - down) / (2.0 * step * advice.optimum.relaxed_objective)
    assert worth.elasticity == pytest.approx(slope, rel=0.01, abs=1e-4)


def test_what_would_pay_comes_first(hardware):
    _, advice = hardware
    gains = [worth.gain for worth in advice.worths]
    assert gains == sorted(gains, reverse=True)
    named = {worth.name: worth for worth in advice.worths}
    assert named["idle_watts"].better == "less"
    assert named["hbm_bytes_per_s"].better == "more"
    assert np.isfinite(gains).all()


def test_hardware_advice_needs_limits_that_can_be_met(request_of_one):
    limits = latency_limits(tpot_seconds=1e-6)
    problem, _ = layout_problem(request_of_one, limits, max_gpus=1, most_sequences=4)
    with pytest.raises(ValueError, match="hardware: expected limits that a deployment"):
        advise_hardware(problem, request_of_one)
    with pytest.raises(ValueError, match="coefficient: expected of"):
        advise_hardware(problem, request_of_one, coefficients=["watts"])


COMMAND = ["advise", "layout", MODEL, "-g", "h100-sxm", "--max-gpus", "2"]


def test_the_command_prints_json(capsys):
    assert main([*COMMAND, "--tpot", "9ms", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["feasible"]
    assert content["quantities"]["seconds_per_output_token"] <= 0.009
    assert content["multipliers"]["seconds_per_output_token"] > 0.0
    assert content["evaluations"] < 0.01 * content["configurations"]


def test_the_command_explains_itself(capsys):
    assert main([*COMMAND, "--tpot", "9ms"]) == 0
    out = capsys.readouterr().out
    for words in ("TPOT binds", "MHz", "configurations evaluated", "best"):
        assert words in out


def test_no_answer_is_one_line_and_exit_code_2(capsys):
    assert main([*COMMAND, "--tpot", "1us", "--json"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert "misses TPOT" in captured.err
    assert not json.loads(captured.out)["feasible"]
    assert main([*COMMAND, "--tpot", "-1ms"]) == 2
    assert "tpot: expected a limit above 0" in capsys.readouterr().err


def test_the_hardware_command_prints_a_table_and_json(capsys):
    command = ["advise", "hardware", MODEL, "-g", "h100-sxm", "--max-gpus", "1"]
    assert main([*command, "--tpot", "9ms"]) == 0
    assert "hbm_bytes_per_s" in capsys.readouterr().out
    assert main([*command, "--tpot", "9ms", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["coefficients"][0]["gain_at_10_percent_better"] > 0.0


def test_deployments_take_sequences_per_replica(request_of_one):
    values = {"sequences": 3.0, "data_parallel": 4.0}
    assert deployed(request_of_one.deployment, values).batch == 12.0
