"""Overlap splits found by search, against a price for every setting."""

import json
from dataclasses import replace

import numpy as np
import pytest

import jaxlens.cli
from jaxlens.cli import main
from jaxlens.deployments import Deployment
from jaxlens.optimize.overlap_advice import advise, recall, rule_positions
from jaxlens.optimize.overlap_search import descend, lanes, search
from jaxlens.optimize.overlap_spaces import (
    exhaustive_front,
    largest_batch,
    question,
    split_space,
    splits,
)
from jaxlens.optimize.staging import Split, memory_slack_bytes
from jaxlens.requests import prepare

MODEL = "meta-llama/Llama-3.1-70B"
EVERY_BATCH = tuple(range(1, 65))
# EnergyLens, arXiv 2605.14249: 4 stages, communication on 1, 4 or 16 SMs
STUDY = {"stages": (1, 4), "communication_sms": (1, 4, 16)}


@pytest.fixture(scope="module")
def request_70b():
    return prepare(MODEL, "a100-sxm-80gb", deployment=Deployment(overlap=True))


@pytest.fixture(scope="module")
def prefill(request_70b):
    return question(request_70b, "prefill", 1024)


def members(positions):
    return {tuple(row) for row in positions}


def test_search_finds_all_of_the_front_and_nothing_else(request_70b, prefill):
    space = split_space(request_70b, prefill, batch=EVERY_BATCH)
    assert space.size == 3 * 64 * 16 * 107
    found = search(prefill, space)
    true, columns = exhaustive_front(prefill, space)
    assert members(found.positions) == members(true)
    assert found.columns["seconds"] == pytest.approx(columns["seconds"])
    assert found.evaluations <= 0.01 * space.size
    # Rules of thumb find much less of it.
    rules = rule_positions(space)
    assert recall(rules["max overlap"], true) < 0.5


@pytest.mark.parametrize("tokens", [256, 8192])
def test_search_finds_the_front_of_the_published_settings(request_70b, tokens):
    asked = question(request_70b, "prefill", tokens)
    space = split_space(request_70b, asked, **STUDY)
    true, _ = exhaustive_front(asked, space)
    assert members(search(asked, space).positions) == members(true)


def test_search_finds_the_front_of_decode(request_70b):
    asked = question(request_70b, "decode", 1024)
    space = split_space(request_70b, asked, batch=EVERY_BATCH)
    found = search(asked, space)
    true, _ = exhaustive_front(asked, space)
    assert members(found.positions) == members(true)
    assert found.evaluations <= 0.01 * space.size
    values = splits(space, found.positions)
    assert (values["stages"] <= values["batch"]).all()


def test_every_evaluation_is_counted(request_70b, prefill):
    space = split_space(request_70b, prefill, **STUDY)
    found = search(prefill, space)
    own = lanes(space)
    assert found.relaxed_evaluations == 20 * own.weight.size
    assert found.rounded_evaluations >= len(found.positions)
    assert found.evaluations == found.relaxed_evaluations + found.rounded_evaluations


def test_relaxed_optima_stay_in_the_box(request_70b, prefill):
    space = split_space(request_70b, prefill)
    own = lanes(space)
    relaxed = np.log(descend(prefill, own, space.sequences_are_rows))
    assert (relaxed >= own.low - 1e-9).all()
    assert (relaxed <= own.high + 1e-9).all()


def test_the_largest_batch_fits_and_the_next_does_not(prefill):
    for degree in (2, 4):
        most = largest_batch(prefill, degree)

        def slack(batch, degree=degree):
            split = Split(
                tensor_parallel=float(degree),
                batch=float(batch),
                stages=1.0,
                communication_sms=1.0,
            )
            return float(memory_slack_bytes(prefill, split))

        assert slack(most) >= 0.0 > slack(most + 1)


def test_the_recommended_setting_is_the_least_energy_in_reach(request_70b, prefill):
    space = split_space(request_70b, prefill, **STUDY)
    advice = advise(prefill, space, slowdown=1.5)
    limit = 1.5 * advice.front[0].seconds
    within = [s.joules_per_token for s in advice.front if s.seconds <= limit]
    assert advice.recommended.joules_per_token == min(within)
    assert {rule.name for rule in advice.rules} == {
        "no overlap",
        "half the SMs",
        "max overlap",
    }
    for rule in advice.rules:
        # No rule is both faster and cheaper.
        assert max(rule.extra_seconds, rule.extra_joules) > -1e-9
        assert rule.setting.batch == advice.recommended.batch


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tensor_parallel": (1, 2)}, "one GPU has no collective to overlap"),
        ({"tensor_parallel": (3,)}, "tp: expected a divisor of 64 attention heads"),
        ({"stages": (0, 1)}, "stages: expected whole numbers from 1"),
        ({"communication_sms": (108,)}, "communication SMs: expected"),
        ({"batch": (10**5,)}, "memory: expected"),
    ],
)
def test_bad_spaces_say_what_is_wrong(request_70b, prefill, given, words):
    with pytest.raises(ValueError, match=words):
        split_space(request_70b, prefill, **given)


def test_one_gpu_is_refused_with_the_reason(request_70b):
    alone = replace(request_70b, deployment=Deployment(overlap=True))
    with pytest.raises(ValueError, match="no collective to overlap"):
        split_space(alone, question(alone, "prefill", 512), tensor_parallel=(1,))


def test_the_command_answers_in_json(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    monkeypatch.setattr(jaxlens.cli, "keep_compilations", lambda: None)
    monkeypatch.setattr(jaxlens.cli.overlap, "stay_on_cpu", lambda: None)
    picture = tmp_path / "front.png"
    words = f"overlap {MODEL} -g a100-sxm-80gb --tp 4,8 --batch 1,2 --stages 1-4"
    code = main([*words.split(), "--json", "--plot", str(picture)])
    content = json.loads(capsys.readouterr().out)
    assert code == 0
    assert picture.stat().st_size > 10_000
    assert {"front", "recommended", "intuition", "evaluations", "seconds"} <= set(
        content
    )
    assert content["recommended"] in content["front"]
    assert content["exhaustive_evaluations"] == 2 * 2 * 4 * 107
    assert any("communication power" in note for note in content["notes"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--tp 1", "no collective to overlap"),
        ("--tp 2,x", "tp: expected whole numbers"),
        ("--comm-sms 4-200", "communication SMs: expected"),
        ("--per layer", "per: expected one of program, kind, op"),
        ("--slowdown 0.9", "slowdown: expected a number from 1"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, words, expected):
    monkeypatch.setattr(jaxlens.cli, "keep_compilations", lambda: None)
    monkeypatch.setattr(jaxlens.cli.overlap, "stay_on_cpu", lambda: None)
    assert main(["overlap", MODEL, "-g", "a100-sxm-80gb", *words.split()]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
