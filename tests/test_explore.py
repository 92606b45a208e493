import json
from dataclasses import replace

import numpy as np
import pytest

import jaxlens
from jaxlens import Deployment, Workload, exploring
from jaxlens.batch import compilations
from jaxlens.cli import main
from jaxlens.exploring import explore
from jaxlens.sweeps import REASONS, outcome

WORKLOAD = Workload(prompt_tokens=512.0, output_tokens=128.0)
SMALL = {"workload": WORKLOAD, "max_gpus": 4, "tpot_seconds": 0.02}
QUESTION = ["explore", "Qwen/Qwen3-8B", "--gpu", "h100-sxm", "--max-gpus", "2"]


@pytest.fixture(scope="module")
def result():
    return explore("Qwen/Qwen3-8B", ["h100-sxm", "l40s"], **SMALL)


def test_the_demo_compares_at_least_ten_thousand():
    asked = exploring.prepare("meta-llama/Llama-3.1-70B-Instruct", "h100-sxm")
    laid_out = exploring._layouts(asked, 16)
    assert 2 * exploring.deployment_space(laid_out).size >= 10_000


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


def test_models_of_one_structure_and_all_chips_share_a_program(result):
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "cost"}, "objective: expected one of"),
        ({"max_gpus": 0}, "max GPUs: expected a number from 1"),
        ({"ttft_seconds": -1.0}, "ttft: expected seconds above 0"),
        ({"tpot_seconds": float("nan")}, "tpot: expected seconds above 0"),
        ({"workload": Workload(prompt_tokens=-5.0)}, "prompt: expected a number"),
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


def test_the_command_prints_json(capsys, tmp_path):
    picture = tmp_path / "pareto.png"
    assert main([*QUESTION, "--plot", str(picture), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["feasible"] > 0
    assert content["best"][0]["gpu"] == "h100-sxm"
    assert content["winner"]["joules_per_output_token"] == pytest.approx(
        content["best"][0]["joules_per_output_token"], rel=1e-4
    )
    assert content["serve_command"].startswith("vllm serve Qwen/Qwen3-8B")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_a_table(capsys):
    assert main([*QUESTION, "--top", "2"]) == 0
    out = capsys.readouterr().out
    for words in ("J/token", "h100-sxm", "vllm serve", "no queueing"):
        assert words in out


def test_no_answer_is_one_line_and_exit_code_2(capsys):
    assert main([*QUESTION, "--tpot", "1us"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert "Nearest: " in captured.err
    assert "TPOT" in captured.err


@pytest.mark.parametrize("name", ["pareto.txt", "nowhere/pareto.png"])
def test_a_picture_that_cannot_be_kept_is_refused_first(capsys, tmp_path, name):
    assert main([*QUESTION, "--plot", str(tmp_path / name)]) == 2
    assert "plot: expected" in capsys.readouterr().err
