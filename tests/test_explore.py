from dataclasses import replace

import numpy as np
import pytest

import jaxlens
import jaxlens.plans
from jaxlens import Deployment, Workload, exploring
from jaxlens.batch import compilations
from jaxlens.declarations import search_space
from jaxlens.economics import tariff
from jaxlens.exploring import explore
from jaxlens.limits import REASONS, Limits
from jaxlens.plans import plans
from jaxlens.queueing import Arrivals
from jaxlens.sweeps import outcome

WORKLOAD = Workload(prompt_tokens=512.0, output_tokens=128.0)
SMALL = {"workload": WORKLOAD, "max_gpus": 4, "tpot_seconds": 0.02}


@pytest.fixture(scope="module")
def result():
    return explore("Qwen/Qwen3-8B", ["h100-sxm", "l40s"], **SMALL)


def test_the_demo_compares_at_least_ten_thousand():
    demo = search_space(
        model="meta-llama/Llama-3.1-70B-Instruct", gpu=["h100-sxm", "b200-sxm"]
    )
    assert sum(plan.size for plan in plans(demo)) >= 10_000


def test_every_deployment_is_kept_with_a_slack_for_every_reason(result):
    for reason in REASONS:
        slack = result.columns[f"slack_{reason}"]
        assert slack.size == result.size
        assert np.isfinite(slack).all()
    ruled_out = result.size - result.feasible.sum()
    assert 0 < ruled_out < result.size
    assert sum(exploring.ruled_out(result).values()) >= ruled_out
    assert sum(exploring.ruled_out_by_one(result).values()) <= ruled_out


def test_the_best_is_the_least_of_all_within_limits(result):
    first, *others = exploring.best(result, 5)
    joules = result.columns["joules_per_output_token"]
    assert joules[first] == pytest.approx(joules[result.feasible].min(), rel=1e-4)
    assert all(joules[other] >= joules[first] * 0.9999 for other in others)
    layouts = {
        tuple(result.columns[name][i] for name in exploring.LAYOUT)
        for i in (first, *others)
    }
    assert len(layouts) == 5


def test_every_layout_has_its_own_best(result):
    for index in exploring.best(result, 3):
        same = result.columns["layout"] == result.columns["layout"][index]
        same &= result.columns["gpu"] == result.columns["gpu"][index]
        assert np.nanmin(result.ranking[same]) == result.ranking[index]


def test_the_sweep_says_what_predict_says(result):
    for index in (*exploring.best(result, 2), 0, result.size - 1):
        asked = exploring.request(result, index)
        found = exploring.estimate(asked)
        for name in (
            "joules_per_output_token",
            "seconds_per_output_token",
            "seconds_prefill",
            "memory_slack_bytes",
        ):
            swept = float(result.columns[name][index])
            assert swept == pytest.approx(getattr(found, name), rel=2e-4)


def test_clocks_can_be_locked(result):
    for index in (0, *exploring.best(result, 3)):
        asked = exploring.request(result, index)
        chip = asked.profile.chip
        steps = (float(asked.deployment.clock_hz) - chip.min_hz) / chip.step_hz
        assert steps == pytest.approx(round(steps), abs=1e-6)


def test_the_front_trades_latency_for_energy(result):
    chosen = exploring.front(result)
    seconds = result.columns["seconds_per_output_token"][chosen]
    joules = result.columns["joules_per_output_token"][chosen]
    assert (np.diff(seconds) > 0).all()
    assert (np.diff(joules) < 0).all()
    assert (seconds <= 0.02).all()
    assert exploring.best(result, 1)[0] in chosen
    beyond = exploring.front(result, within_limits=False)
    assert result.columns["seconds_per_output_token"][beyond].max() > 0.02


def test_a_tight_limit_binds_and_no_limit_does_not(result):
    assert "tpot" in exploring.binds(result, exploring.best(result, 1)[0])
    free = explore("Qwen/Qwen3-8B", ["h100-sxm"], WORKLOAD, max_gpus=1)
    assert "tpot" not in exploring.binds(free, exploring.best(free, 1)[0])


def test_looser_limits_never_cost_energy(result):
    loose = explore(
        "Qwen/Qwen3-8B", ["h100-sxm", "l40s"], **{**SMALL, "tpot_seconds": 0.1}
    )
    least = [
        float(r.columns["joules_per_output_token"][exploring.best(r, 1)[0]])
        for r in (loose, result)
    ]
    assert least[0] <= least[1]


def test_throughput_is_ranked_from_the_top():
    found = explore(
        "Qwen/Qwen3-8B",
        ["h100-sxm"],
        objective="output_tokens_per_second",
        **SMALL,
    )
    rate = found.columns["output_tokens_per_second"]
    first = exploring.best(found, 1)[0]
    assert rate[first] == pytest.approx(rate[found.feasible].max(), rel=1e-4)


def test_small_comparisons_compile_nothing(result):
    before = compilations(outcome)
    explore("Qwen/Qwen3-8B", ["b200-sxm", "a100-sxm-80gb"], WORKLOAD, max_gpus=2)
    explore("Qwen/Qwen3-14B", ["h100-sxm"], WORKLOAD)
    assert compilations(outcome) == before


def test_what_does_not_fit_is_short_of_memory():
    found = explore(
        "meta-llama/Llama-3.1-405B-Instruct", ["l40s"], WORKLOAD, max_gpus=2
    )
    assert not found.feasible.any()
    assert exploring.best(found, 3) == []
    index = exploring.nearest(found)
    assert list(exploring.missed(found, index)) == ["memory"]
    assert exploring.ruled_out(found)["memory"] == found.size


def test_refused_layouts_are_counted_with_their_reason():
    # 8 experts cannot be spread over 16 ranks.
    found = explore("mistralai/Mixtral-8x7B-v0.1", ["h100-sxm"], WORKLOAD, max_gpus=16)
    refused = [layout for layout in found.layouts[0] if layout.problem]
    assert refused
    assert all(":" in layout.problem for layout in refused)
    assert {layout.expert_parallel for layout in refused} == {16}
    count = found.size * len(refused) // len(found.layouts[0])
    assert exploring.ruled_out(found)["layout"] == count


def test_a_deployment_can_be_asked_for_again(result):
    index = exploring.best(result, 1)[0]
    asked = exploring.request(result, index)
    again = jaxlens.predict(
        asked.model,
        asked.profile,
        replace(asked.deployment, batch=float(asked.deployment.batch)),
        asked.workload,
    )
    assert isinstance(asked.deployment, Deployment)
    assert float(again.gpus) == asked.gpus


def test_wide_spaces_have_every_kind_and_knob(result):
    before = compilations(outcome)
    wide = search_space(
        tensor_parallel="1,2",
        sequences="8..64*2",
        clock="1.0GHz:1.9GHz:4",
        power_cap="400W,none",
        prompt_tokens="256:1024:3",
        routing_skew=0.0,
        weights=["checkpoint", "fp8"],
        where="tensor_parallel * data_parallel <= 2",
    )
    found = explore("Qwen/Qwen3-8B", ["h100-sxm"], space=wide, max_gpus=2)
    assert compilations(outcome) == before
    assert found.labels == ("h100-sxm checkpoint", "h100-sxm fp8")
    # tp 1: pp 1, 2 with dp 1, and dp 2; tp 2 alone: 4 layouts; x 4 x 4 x 2 x 3 x 2 kinds
    assert found.size == 4 * 4 * 4 * 2 * 3 * 2
    assert set(np.unique(found.columns["tensor_parallel"])) == {1.0, 2.0}
    for index in (0, found.size // 2, found.size - 1, *exploring.best(found, 1)):
        asked = exploring.request(found, index)
        joules = exploring.estimate(asked).joules_per_output_token
        swept = found.columns["joules_per_output_token"][index]
        assert float(swept) == pytest.approx(joules, rel=2e-4)


def test_knobs_come_back_as_they_were_declared():
    space = search_space(
        tp=2, pp=1, dp=1, batch="48", clock="1410MHz", power_cap="412.3W", output="199"
    )
    found = explore("Qwen/Qwen3-8B", ["h100-sxm"], space=space, max_gpus=2)
    asked = exploring.request(found, 0)
    assert found.size == 1
    assert asked.deployment.power_cap_watts == 412.3
    assert (asked.deployment.batch, asked.deployment.clock_hz) == (48.0, 1.41e9)
    assert (asked.workload.output_tokens, asked.gpus) == (199.0, 2)


def test_bounds_rule_out_and_are_named_when_nothing_is_left():
    space = search_space(
        tp="1,2", clock_share=1.0, where=["tp == 2", "watts_per_gpu * gpus <= 300"]
    )
    found = explore("Qwen/Qwen3-8B", ["h100-sxm"], WORKLOAD, space=space, max_gpus=2)
    kept = found.columns["slack_where"] >= 0.0
    watts = found.columns["watts_per_gpu"] * found.columns["gpus"]
    expected = (found.columns["tensor_parallel"] == 2) & (watts <= 300.0 * (1 + 1e-6))
    np.testing.assert_array_equal(kept, expected)
    before = compilations(outcome)
    tight = search_space(
        tp=2,
        dp=1,
        clock_share=1.0,
        sequences="512,1024",
        where=["watts_per_gpu * gpus <= 250"],
    )
    none = explore("Qwen/Qwen3-8B", ["h100-sxm"], WORKLOAD, space=tight, max_gpus=2)
    index = exploring.nearest(none)
    assert exploring.best(none, 1) == []
    assert exploring.missed_bounds(none, index) == ["watts_per_gpu * gpus <= 250"]
    assert compilations(outcome) == before  # other numbers are no other program


def test_what_a_chip_cannot_do_is_ruled_out():
    space = search_space(tp=1, pp=1, dp=1, clock="1GHz,5GHz", power_cap="50W,400W,none")
    found = explore("Qwen/Qwen3-8B", ["h100-sxm"], WORKLOAD, space=space, max_gpus=1)
    possible = (found.columns["slack_chip"] >= 0.0).reshape(2 + 1, -1, 2)
    np.testing.assert_array_equal(possible.all(axis=1), [[0, 0], [1, 0], [1, 0]])


def test_money_ranks_the_cheaper_gpu_first():
    prices = {
        "h100-sxm": tariff(dollars_per_gpu_hour=4.0),
        "l40s": tariff(dollars_per_gpu_hour=0.1),
    }
    cost = "dollars_per_million_output_tokens"
    found = explore(
        "Qwen/Qwen3-8B", ["h100-sxm", "l40s"], rates=prices, objective=cost, **SMALL
    )
    first = exploring.best(found, 1)[0]
    assert found.labels[found.columns["gpu"][first]] == "l40s"
    rate = found.columns["output_tokens_per_second_per_gpu"][first]
    assert found.columns[cost][first] == pytest.approx(
        0.1 / 3600 / rate * 1e6, rel=1e-4
    )
    with pytest.raises(ValueError, match="expected the price of a GPU-hour"):
        explore("Qwen/Qwen3-8B", ["l40s"], objective=cost, **SMALL)
    with pytest.raises(ValueError, match="prices: expected one for b200-sxm"):
        explore("Qwen/Qwen3-8B", ["b200-sxm"], rates=prices, **SMALL)


def test_power_budgets_exclude_when_hard_and_are_reported_when_soft():
    budget = Limits(gpu_watts=400.0, node_watts=1500.0, rack_watts=1e4, rack_nodes=2.0)
    hard = explore("Qwen/Qwen3-8B", ["h100-sxm"], WORKLOAD, limits=budget)
    watts, gpus = hard.columns["watts_per_gpu"], hard.columns["gpus"]
    node = watts * np.minimum(gpus, 8.0)
    close = np.isclose(watts, 400.0, rtol=1e-5) | np.isclose(node, 1500.0, rtol=1e-5)
    np.testing.assert_array_equal(
        hard.meets("gpu_watts")[~close], (watts <= 400)[~close]
    )
    np.testing.assert_array_equal(
        hard.meets("node_watts")[~close], (node <= 1500)[~close]
    )
    soft = explore(
        "Qwen/Qwen3-8B",
        ["h100-sxm"],
        WORKLOAD,
        limits=budget,
        soft=("gpu_watts", "node_watts", "rack_watts"),
    )
    assert soft.meets("gpu_watts").all()
    excess = np.maximum(watts / 400.0, node / 1500.0)
    excess = np.maximum(excess, watts * np.minimum(gpus, 16.0) / 1e4) - 1.0
    np.testing.assert_allclose(
        soft.columns["power_excess"], np.maximum(excess, 0.0), rtol=1e-3, atol=1e-4
    )


def test_at_load_requests_wait():
    def asked(rate):
        return explore(
            "Qwen/Qwen3-8B",
            ["h100-sxm"],
            WORKLOAD,
            max_gpus=1,
            arrivals=Arrivals(requests_per_second=rate),
            limits=Limits(ttft_p99_seconds=1.0),
        )

    calm, busy = asked(1.0), asked(20.0)
    assert calm.feasible.sum() > busy.feasible.sum() > 0
    assert (
        busy.columns["seconds_to_first_token"] >= busy.columns["seconds_prefill"]
    ).all()
    assert exploring.ruled_out(busy)["rate"] > exploring.ruled_out(calm)["rate"]
    first = exploring.best(busy, 1)[0]
    served = busy.columns["output_tokens_per_second"][first]
    assert served == pytest.approx(20.0 * 128.0, rel=1e-4)
    with pytest.raises(ValueError, match="ttft p99: expected a rate of arrivals"):
        explore("Qwen/Qwen3-8B", ["h100-sxm"], limits=Limits(ttft_p99_seconds=1.0))


def test_a_stream_finds_what_the_whole_holds(result):
    found = explore("Qwen/Qwen3-8B", ["h100-sxm", "l40s"], whole=False, **SMALL)
    assert found.size == result.size
    assert found.feasible_count == result.feasible_count
    assert exploring.ruled_out(found) == exploring.ruled_out(result)
    assert exploring.ruled_out_by_one(found) == exploring.ruled_out_by_one(result)
    assert found.columns["gpu"].size < result.size / 2

    def rows(some, indices):
        return [(some.columns["gpu"][i], some.columns["index"][i]) for i in indices]

    assert rows(found, exploring.best(found, 3)) == rows(
        result, exploring.best(result, 3)
    )
    for name in ("seconds_per_output_token", "seconds_prefill"):
        least = [
            some.columns["joules_per_output_token"][exploring.front(some, name)].min()
            for some in (found, result)
        ]
        assert least[0] == pytest.approx(least[1], rel=1e-5)
    first = exploring.best(found, 1)[0]
    assert exploring.binds(found, first) == exploring.binds(
        result, exploring.best(result, 1)[0]
    )


def test_a_space_beyond_measure_is_refused_with_its_size():
    endless = search_space(prompt="1..1000000", output="1..1000000", tp=1)
    with pytest.raises(ValueError, match=r"got .*e\+1\d; list fewer values of prompt"):
        explore("Qwen/Qwen3-8B", ["h100-sxm"], space=endless)


def test_ties_are_of_deployments_that_the_error_cannot_tell_apart(result):
    rows = exploring.best(result, 8)
    first = rows[0]
    assert exploring.tied(result, first, first)
    h100 = [i for i in rows if result.columns["gpu"][i] == result.columns["gpu"][first]]
    differences = [
        abs(
            np.log(
                result.columns["joules_per_output_token"][i]
                / result.columns["joules_per_output_token"][first]
            )
        )
        for i in h100
    ]
    scatter = result.requests[0].card.scatter["energy"]
    for difference, other in zip(differences, h100, strict=True):
        expected = difference < 1.2816 * scatter * (2.0 * (1.0 - 0.28)) ** 0.5
        assert exploring.tied(result, first, other) == expected
    l40s = next(
        i for i in rows if result.columns["gpu"][i] != result.columns["gpu"][first]
    )
    if not result.requests[1].card.scatter:
        assert exploring.tied(result, first, l40s) is None


def test_a_recommendation_is_explained(result):
    first, second, *_ = exploring.best(result, 2)
    why = exploring.explain(result, first)
    assert why.runner_up == second
    assert why.margin is not None
    assert why.margin >= 0.0
    assert "tpot" in why.binds


def test_the_front_of_more_objectives_holds_that_of_two(result):
    names = ("seconds_per_output_token", "joules_per_output_token")
    two = exploring.trade_off(result, names)
    three = exploring.trade_off(result, (*names, "output_tokens_per_second"))
    joules = result.columns["joules_per_output_token"]
    assert joules[three].min() == joules[two].min()
    assert three.size > two.size


def test_a_broken_profile_names_kind_and_row(monkeypatch):
    real = jaxlens.plans.prepare

    def prepare(*arguments, **options):
        asked = real(*arguments, **options)
        chip = replace(asked.profile.chip, hbm_j_per_byte=float("nan"))
        return replace(asked, profile=replace(asked.profile, chip=chip))

    monkeypatch.setattr(jaxlens.plans, "prepare", prepare)
    with pytest.raises(
        ValueError, match=r"l40s: sweep: expected numbers, got NaN for .*'layout'"
    ):
        explore("Qwen/Qwen3-8B", ["l40s"], WORKLOAD, max_gpus=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "cost"}, "objective: expected one of"),
        ({"max_gpus": 0}, "max GPUs: expected a number from 1"),
        ({"ttft_seconds": -1.0}, "ttft: expected seconds above 0"),
        ({"tpot_seconds": float("nan")}, "tpot: expected seconds above 0"),
        ({"workload": Workload(prompt_tokens=-5.0)}, "prompt: expected a number"),
        ({"limits": Limits(gpu_watts=-1.0)}, "gpu: expected watts above 0"),
        ({"limits": Limits(rack_watts=1e4)}, "expected the number of nodes of a rack"),
        ({"soft": ("cpu_watts",)}, "soft: expected of gpu_watts"),
        ({"space": search_space(tp=32)}, "at most 16 GPUs, got none"),
        (
            {"space": search_space(gpu="l40s")},
            "gpu: expected it in the space or beside",
        ),
        (
            {"arrivals": Arrivals(requests_per_second=-1.0)},
            "expected a number from 0",
        ),
    ],
)
def test_bad_questions_say_what_is_wrong(given, message):
    with pytest.raises(ValueError, match=message):
        explore("Qwen/Qwen3-8B", ["h100-sxm"], **given)


def test_no_gpu_and_an_unknown_one():
    with pytest.raises(ValueError, match="gpu: expected at least one id"):
        explore("Qwen/Qwen3-8B", [])
    with pytest.raises(ValueError, match="h100"):
        explore("Qwen/Qwen3-8B", ["h100-sxn"])


def test_experts_under_load_have_numbers_everywhere():
    traffic = Workload(prompt_tokens=1024.0, output_tokens=256.0)
    arrivals = Arrivals(requests_per_second=5.0)
    found = explore("Qwen/Qwen3-30B-A3B", ["h100-sxm"], traffic, arrivals=arrivals)
    assert found.size > 10_000
    assert found.feasible.any()
