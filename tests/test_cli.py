import functools
import json
import os
import subprocess
import sys
import types

import pytest

import jaxlens.cli
from jaxlens.cli import main
from jaxlens.cli.jax_settings import cache_folder
from jaxlens.cli.quantities import quantity
from jaxlens.cli.tables import scaled
from jaxlens.sensitivities import elasticities

LLAMA = "meta-llama/Llama-3.1-8B"
ONE = ["predict", LLAMA, "--gpu", "h100-sxm", "--batch", "8"]
KEYS = {
    "seconds_prefill",
    "seconds_per_output_token",
    "output_tokens_per_second",
    "joules_to_first_token",
    "joules_per_output_token",
    "joules_prefill_per_output_token",
    "joules_decode_per_output_token",
    "joules_per_request",
    "watts_per_gpu",
    "gpus",
    "memory_slack_bytes",
    "breakdown",
    "provenance",
}


@pytest.fixture(autouse=True)
def _leave_the_configuration(monkeypatch):
    monkeypatch.setattr(jaxlens.cli, "keep_compilations", lambda: None)
    for command in (jaxlens.cli.predict, jaxlens.cli.sensitivity):
        monkeypatch.setattr(command, "stay_on_cpu", lambda: None)


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_predict_prints_flat_numbers_in_si(run):
    code, out, err = run(*ONE, "--json")
    numbers = json.loads(out)
    assert (code, err) == (0, "")
    assert numbers.keys() >= KEYS
    assert numbers["gpus"] == 1
    nested = {key for key, value in numbers.items() if isinstance(value, dict)}
    assert nested == {"breakdown", "provenance"}
    parts = [numbers[f"joules_{p}_per_output_token"] for p in ("prefill", "decode")]
    assert sum(parts) == pytest.approx(numbers["joules_per_output_token"])
    causes = numbers["breakdown"]["joules_per_output_token_by_cause"]
    assert sum(causes.values()) == pytest.approx(numbers["joules_per_output_token"])
    origin = numbers["provenance"]
    assert (origin["chip"], origin["stack"]) == ("h100-sxm", "vllm-0.11")
    assert "chip.tdp_watts" in origin["coefficients"]["datasheet"]


def test_predict_prints_tables_for_people(run):
    code, out, _ = run(*ONE)
    assert code == 0
    for words in ("energy per output token", "compute", "feed-forward: up", "interval"):
        assert words in out
    assert "\x1b" not in out
    assert "wall" not in out


def test_energy_at_the_wall_is_asked_for_and_labelled(run):
    _, out, _ = run(*ONE, "--host-watts", "100", "--pue", "1.3", "--json")
    numbers = json.loads(out)
    wall = numbers["wall_plug_joules_per_output_token"]
    assert wall > 1.3 * numbers["joules_per_output_token"]
    assert numbers["breakdown"]["joules_per_output_token_by_cause"]["host"] > 0.0


def test_clocks_and_caps_take_the_units_that_people_use(run):
    answers = []
    for clock in ("1410MHz", "1.41 GHz", "1410000000"):
        _, out, _ = run(*ONE, "--clock", clock, "--power-cap", "0.5kW", "--json")
        answers.append(json.loads(out)["joules_per_output_token"])
    assert answers[0] == answers[1] == answers[2]


def test_a_file_gives_options_and_the_command_line_wins(run, tmp_path):
    path = tmp_path / "deployment.yaml"
    path.write_text(
        f"model: {LLAMA}\ngpu: h100-sxm\ntp: 2\nbatch: 8\npower-cap: 400W\n"
    )
    _, out, _ = run("predict", "--from", str(path), "--tp", "1", "--json")
    _, same, _ = run(*ONE, "--power-cap", "400W", "--json")
    assert json.loads(out) == json.loads(same)


def test_what_does_not_fit_is_refused_unless_asked(run):
    code, out, err = run(*ONE[:-1], "100000", "--json")
    assert (code, out) == (2, "")
    assert "the largest batch that fits is" in err
    code, out, _ = run(*ONE[:-1], "100000", "--json", "--allow-oversubscribed")
    assert code == 0
    assert json.loads(out)["memory_slack_bytes"] < 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict"], "Missing argument"),
        (["predict", LLAMA], "gpu: expected an id"),
        (["predict", "meta-lama/Llama-3.1-8B", "--gpu", "h100"], LLAMA),
        (["predict", LLAMA, "--gpu", "h1000"], "near: h100-sxm"),
        ([*ONE, "--tp", "3"], "choose 1, 2, 4, 8"),
        ([*ONE, "--tp", "two"], "expected a number, got 'two'"),
        ([*ONE, "--ep", "2"], "without experts"),
        ([*ONE, "--prompt", "1e30"], "10,000,000, got 1e+30"),
        ([*ONE, "--output", "nan"], "got nan"),
        ([*ONE, "--batch", "-1"], "got -1"),
        ([*ONE, "--clock", "1410"], "plain numbers are hertz"),
        ([*ONE, "--clock", "fast"], "such as 1410MHz, got 'fast'"),
        ([*ONE, "--profile", "none.toml"], "expected a readable TOML file"),
        ([*ONE, "--pue", "0.5"], "pue: expected a number from 1 to 5"),
        ([*ONE, "--nonsense"], "No such option"),
        (["predict", "--from", "none.yaml"], "expected a readable YAML file"),
        (["sensitivity", LLAMA, "-g", "h100", "--what", "joy"], "got 'joy'"),
        (["models", "no such model"], "pattern: expected part of a known id"),
        (["nonsense"], "No such command"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("jaxlens: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("modle: x", "got 'modle'; near: model"),
        ("[1, 2", "expected YAML"),
        ("- 1", "expected lines like `tp: 4`"),
        ("tp: [1, 2]", "one file describes one deployment"),
        ("model: m\nbatch: many", "expected a number, got 'many'"),
    ],
)
def test_a_wrong_file_of_options_says_where(run, tmp_path, content, words):
    path = tmp_path / "deployment.yaml"
    path.write_text(content)
    code, _, err = run("predict", "--from", str(path))
    assert code == 2
    assert words in err


def test_models_lists_sizes(run):
    _, out, _ = run("models", "llama-3.1-8b", "--json")
    (row,) = json.loads(out)
    # 32 layers x 2 x 8 KV heads x 128 wide x 2 bytes
    assert row["kv_bytes_per_token"] == 131072.0
    assert row["parameters"] == pytest.approx(8.03e9, rel=1e-3)
    code, out, _ = run("models", "Qwen/*")
    assert code == 0
    assert "Qwen/Qwen3-32B" in out


def test_gpus_lists_facts_and_origins(run):
    _, out, _ = run("gpus", "--json")
    h100 = next(row for row in json.loads(out) if row["id"] == "h100-sxm")
    assert h100["tdp_watts"] == 700.0
    assert h100["origins"]["tdp_watts"]["origin"] == "datasheet"
    code, out, _ = run("gpus")
    assert code == 0
    assert "mi300x" in out


def test_sensitivity_ranks_inputs(run, monkeypatch):
    once = functools.cache(lambda *_: elasticities(*given[0]))
    given = []

    def computed_once(*arguments):
        given.append(arguments)
        return once()

    monkeypatch.setattr("jaxlens.cli.sensitivity.elasticities", computed_once)
    arguments = ("sensitivity", LLAMA, "--gpu", "h100-sxm")
    _, out, _ = run(*arguments, "--what", "seconds_per_output_token", "--json")
    rows = json.loads(out)["inputs"]
    by_name = {row["name"]: row for row in rows}
    # One sequence streams the weights: more bandwidth is less time.
    assert by_name["chip.hbm_bytes_per_s"]["elasticity"] < -0.3
    sizes = [abs(row["elasticity"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    code, out, _ = run(*arguments, "--what", "seconds_per_output_token", "--top", "3")
    assert code == 0
    assert "more with --top" in out


def test_validate_prints_errors_by_group(run, monkeypatch):
    errors = {"mape": 0.12, "median_ape": 0.1, "bias": -0.05}
    group = {"rows": 3, "energy": errors, "latency": {**errors, "bias": float("nan")}}
    found = {**group, "skipped": 1, "spearman": 0.9, "by": {"gpu": {"h100-sxm": group}}}
    asked = []

    def validate(tables, profile=None, by=()):
        asked.append((tables, profile, by))
        return found

    module = types.SimpleNamespace(validate=validate)
    monkeypatch.setitem(sys.modules, "jaxlens.calibration.validation", module)
    code, out, _ = run("validate", "runs.csv", "--by", "model, gpu", "--json")
    assert code == 0
    assert json.loads(out)["energy"] == errors
    assert json.loads(out)["latency"]["bias"] is None
    code, out, _ = run("validate", "runs.csv")
    assert code == 0
    for words in ("h100-sxm", "12.0 %", "-5.0 %", "set aside 1"):
        assert words in out
    assert [by for *_, by in asked] == [("model", "gpu"), ()]


@pytest.mark.parametrize(
    "command", ["predict", "explore", "sensitivity", "models", "gpus", "validate"]
)
def test_help_teaches_by_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"jaxlens {command}" in out.partition("Examples")[2]
    assert main([]) == 0


def test_quantities_have_their_own_units():
    assert quantity("400 Gb/s", "bytes/s", where="network") == 5e10
    assert quantity("400GB/s", "bytes/s", where="network") == 4e11
    assert quantity("50ms", "seconds", where="tpot") == pytest.approx(0.05)
    with pytest.raises(ValueError, match="cap: expected watts"):
        quantity("50ms", "watts", where="cap")


def test_scaled_numbers_read_well():
    shown = [scaled(value, "J") for value in (0.0, 0.9996, 999.6, 1.43, 188.3, 2e-5)]
    assert shown == ["0 J", "1.00 J", "1.00 kJ", "1.43 J", "188 J", "20.0 µJ"]


def run_cold(tmp_path, *arguments):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("JAX")
    }
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, list((tmp_path / "jaxlens" / "compilations").iterdir())


def test_one_answer_compiles_nothing(tmp_path):
    out, compiled = run_cold(tmp_path, "-m", "jaxlens.cli", *ONE, "--json")
    assert json.loads(out).keys() >= KEYS
    assert not compiled


def test_what_is_compiled_is_kept(tmp_path):
    lines = (
        "import jax",
        "from jaxlens.cli.jax_settings import keep_compilations",
        "keep_compilations()",
        "jax.jit(lambda x: x + 1.0)(1.0)",
    )
    _, compiled = run_cold(tmp_path, "-c", "; ".join(lines))
    assert compiled


def test_the_cache_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "jaxlens"
