import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

import jaxlens.cli
from jaxlens import Deployment, Workload, profiles
from jaxlens.answers import answer
from jaxlens.cli import main
from jaxlens.recommendations import (
    exact_estimate,
    option_values,
    read,
    reproduction,
    write,
)
from jaxlens.recommendations.reproductions import said, shape_fingerprint
from jaxlens.requests import prepare

MODEL = "meta-llama/Llama-3.1-8B"
LAYOUT = Deployment(
    batch=48.0, tensor_parallel=2.0, clock_hz=1.41e9, power_cap_watts=450.0
)
LENGTHS = Workload(prompt_tokens=700.0, output_tokens=300.0, output_tokens_cv=0.3)


@pytest.fixture(scope="module")
def request_():
    return prepare(MODEL, "h100-sxm", deployment=LAYOUT, workload=LENGTHS)


@pytest.fixture(scope="module")
def written(request_, tmp_path_factory):
    path = tmp_path_factory.mktemp("recommendation") / "best.yaml"
    return write(
        request_,
        exact_estimate(request_),
        path,
        model=MODEL,
        limits={"tpot_seconds": 0.05, "ttft_seconds": 1e15},
        why=["memory binds: a larger batch does not fit"],
        runner_up={"gpu": "h200-sxm", "joules_per_output_token": 0.2},
    )


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setattr(jaxlens.cli, "keep_compilations", lambda: None)
    monkeypatch.setattr(jaxlens.cli.predict, "stay_on_cpu", lambda: None)

    def call(*arguments):
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def content(path):
    return yaml.safe_load(path.read_text())


def again(found):
    return answer(found.request, exact_estimate(found.request))


def test_a_file_that_is_read_back_asks_and_predicts_the_same(written, request_):
    found = read(written)
    assert found.request.deployment == request_.deployment
    assert found.request.workload == request_.workload
    numbers = again(found)
    result = reproduction(found, found.request, numbers)
    assert result.same
    assert not (result.inputs or result.coefficients or result.model_changed)
    assert said(result) == ["reproduces the recommendation: every number is the same"]
    for name, value in found.predicted.items():
        assert numbers[name] == value  # to the last bit on the machine that wrote it


def test_the_file_holds_what_is_needed_to_run_and_to_check(written, request_):
    found = content(written)
    assert found["limits"] == {"tpot_seconds": 0.05}
    assert found["why"] == ["memory binds: a larger batch does not fit"]
    assert found["runner_up"]["gpu"] == "h200-sxm"
    low, high = found["predicted"]["joules_per_output_token_interval"]
    assert low < found["predicted"]["joules_per_output_token"] < high
    commands = found["commands"]
    assert set(commands["serve"]) == {"vllm", "sglang", "tensorrt_llm"}
    assert "--max-concurrency 48" in commands["benchmark"]["vllm"]
    assert commands["gpus"] == [
        "sudo nvidia-smi -i 0,1 -lgc 1410,1410",
        "sudo nvidia-smi -i 0,1 -pl 450",
    ]
    assert commands["gpus_back"][0] == "sudo nvidia-smi -i 0,1 -rgc"
    assert found["provenance"]["chip"] == "h100-sxm"
    chip = request_.profile.chip
    assert found["coefficients"]["chip.idle_watts"] == float(chip.idle_watts)
    # Fixed lengths have shorter mean contexts than spread ones: the benchmark is quicker.
    token = "seconds_per_output_token"
    assert found["predicted_in_benchmark"][token] < found["predicted"][token]


def test_the_command_line_reproduces_it(run, written):
    code, out, err = run("predict", "--from", str(written), "--json")
    assert (code, err) == (0, "")
    numbers = json.loads(out)
    assert numbers["recommendation"]["same"]
    predicted = content(written)["predicted"]
    assert {name: numbers[name] for name in predicted} == predicted
    _, out, _ = run("predict", "--from", str(written))
    assert "reproduces the recommendation: every number is the same" in out


def test_a_variation_says_what_it_varies(run, written):
    code, out, _ = run("predict", "--from", str(written), "--batch", "16", "--json")
    found = json.loads(out)["recommendation"]
    assert code == 0 and not found["same"]
    assert found["inputs_changed"] == {"batch": {"recommended": 48.0, "now": 16.0}}
    assert found["moved"]["joules_per_output_token"]["now"] > 0.0
    _, out, _ = run("predict", "--from", str(written), "--batch", "16")
    assert "inputs differ: batch 48 -> 16" in " ".join(out.split())


def test_a_profile_that_has_changed_is_named(written, request_):
    found = read(written)
    chip = dataclasses.replace(
        request_.profile.chip, idle_watts=2.0 * request_.profile.chip.idle_watts
    )
    profile = profiles.Profile(chip=chip, stack=request_.profile.stack)
    now = dataclasses.replace(found.request, profile=profile)
    result = reproduction(found, now, answer(now, exact_estimate(now)))
    assert not result.same
    assert list(result.coefficients) == ["chip.idle_watts"]
    old, new = result.moved["joules_per_output_token"]
    assert new > old
    assert "seconds_prefill" not in result.moved or result.moved["seconds_prefill"]
    assert any("profile has changed: chip.idle_watts" in line for line in said(result))


def test_a_model_of_costs_that_has_changed_is_not_hidden(written):
    found = read(written)
    numbers = again(found)
    numbers["watts_per_gpu"] *= 1.0 + 1e-6
    result = reproduction(found, found.request, numbers)
    assert list(result.moved) == ["watts_per_gpu"]
    assert "the model of costs has" in said(result)[-1]


def test_last_digits_of_other_processors_are_no_change(written):
    found = read(written)
    numbers = again(found)
    numbers["watts_per_gpu"] *= 1.0 + 1e-13
    assert reproduction(found, found.request, numbers).same


def test_options_and_file_are_two_spellings_of_one_request(run, written):
    options = option_values(written)
    assert (options["tp"], options["clock"], options["output_cv"]) == (2.0, 1.41e9, 0.3)
    words = ["predict", options.pop("model")]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] * value
        else:
            words += [flag, str(value)]
    _, out, _ = run(*words, "--json")
    token = "joules_per_output_token"
    assert json.loads(out)[token] == pytest.approx(content(written)["predicted"][token])


def test_files_of_the_user_are_found_again(tmp_path, request_, monkeypatch):
    from jaxlens.models import known_models

    config = tmp_path / "here" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(dict(known_models()[MODEL].config)))
    monkeypatch.chdir(config.parent)
    asked = prepare("config.json", "h100-sxm", deployment=LAYOUT, workload=LENGTHS)
    path = write(asked, None, tmp_path / "here" / "best.yaml", model="config.json")
    monkeypatch.chdir("/")
    assert shape_fingerprint(read(path).request) == shape_fingerprint(asked)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = read(tmp_path / "there" / "best.yaml")
    assert moved.request.shape.name == "there"  # a model is named after its folder
    assert shape_fingerprint(moved.request) == shape_fingerprint(request_)


def test_the_document_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    document = Path(__file__).parents[1] / "docs" / "recommendations.md"
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(?:python|text)\n(.*?)```", document.read_text(), re.S)
    exec(compile(blocks[0], str(document), "exec"), {})
    assert capsys.readouterr().out == blocks[1]


def test_sources_that_ask_something_else_are_refused(tmp_path, request_):
    path = tmp_path / "best.yaml"
    with pytest.raises(ValueError, match=r"got other .*gpu"):
        write(request_, None, path, model=MODEL, gpu="h200-sxm")
    with pytest.raises(ValueError, match="weights"):
        write(request_, None, path, model=MODEL, weights="fp8")
    with pytest.raises(ValueError, match="coefficients"):
        write(request_, None, path, model=MODEL, network_bytes_per_s=1e9)
    assert not path.exists()
    with pytest.raises(ValueError, match="expected a place to write"):
        write(request_, None, tmp_path / "nowhere" / "best.yaml", model=MODEL)


def test_formats_network_and_flags_survive(tmp_path):
    layout = Deployment(
        batch=32.0,
        tensor_parallel=4.0,
        overlap=True,
        stages=3.0,
        sequence_parallel=True,
        chunk_tokens=4096.0,
    )
    asked = prepare(
        MODEL,
        "l40s",
        weights="fp8",
        kv="fp8",
        deployment=layout,
        network_bytes_per_s=5e10,
    )
    path = write(
        asked,
        None,
        tmp_path / "best.yaml",
        model=MODEL,
        weights="fp8",
        kv="fp8",
        network_bytes_per_s=5e10,
    )
    found = read(path)
    assert found.request.deployment == asked.deployment
    assert reproduction(found, found.request, again(found)).same
    assert option_values(path)["stages"] == 3.0


def test_names_cannot_break_out_of_the_file(tmp_path, request_, monkeypatch):
    name = 'a"\nrequest: {}\n# x: &y'
    asked = "jaxlens.recommendations.recommendation.prepare"
    monkeypatch.setattr(asked, lambda *_, **__: request_)
    path = write(request_, None, tmp_path / "best.yaml", model=name, why=[name])
    assert content(path)["request"]["model"] == name
    assert content(path)["why"] == [name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c | {"format": "jaxlens recommendation 9"}, "expected format"),
        (
            lambda c: {k: v for k, v in c.items() if k != "predicted"},
            "missing .*predicted",
        ),
        (lambda c: c | {"prise": 1}, "unknown .*prise"),
        (lambda c: c | {"why": "because"}, "why: expected a list, got str"),
        (
            lambda c: c | {"coefficients": {"chip.sms": "many"}},
            "chip.sms: expected a finite",
        ),
        (lambda c: c | {"provenance": {}}, "expected a text version"),
    ],
)
def test_a_damaged_file_says_where(tmp_path, written, change, words):
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump(change(content(written))))
    with pytest.raises(ValueError, match=words):
        read(path)


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        (None, "gpu", "h1000", "near: h100-sxm"),
        (None, "model", None, "model: expected a text, got None"),
        (None, "network_bytes_per_s", "fast", "expected a finite number, got 'fast'"),
        ("deployment", "batch", "many", "batch: expected a finite number, got 'many'"),
        ("deployment", "batch", float("nan"), "expected a finite number, got nan"),
        ("deployment", "tensor_paralel", 2.0, "near: tensor_parallel"),
        ("deployment", "overlap", 1.0, "overlap: expected a yes or no"),
        ("deployment", "tensor_parallel", 3.0, "choose 1, 2, 4, 8"),
        ("workload", "prompt_tokens", 1e30, "prompt: expected a number from 1"),
    ],
)
def test_a_wrong_request_says_where(
    tmp_path, run, written, section, name, value, words
):
    changed = content(written)
    owner = changed["request"] if section is None else changed["request"][section]
    owner[name] = value
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(ValueError, match=words):
        read(path)
    code, out, err = run("predict", "--from", str(path))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["[1, 2", "- 1", "", "format: other", "\x00"])
def test_other_files_are_no_recommendation(tmp_path, text):
    path = tmp_path / "best.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"best\.yaml: expected"):
        read(path)
    with pytest.raises(ValueError, match="expected a readable file"):
        read(tmp_path / "none.yaml")
