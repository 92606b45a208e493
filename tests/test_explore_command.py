import json

import pytest

from jaxlens.cli import main

QUESTION = ["explore", "Qwen/Qwen3-8B", "--gpu", "h100-sxm", "--max-gpus", "2"]


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


def test_the_command_takes_a_file_knobs_bounds_prices_and_load(capsys, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "model: Qwen/Qwen3-8B\ngpu: [h100-sxm, l40s]\ntensor_parallel: 1..2\n"
        "pipeline_parallel: 1\nclock: 1.0GHz:1.9GHz:4\n"
    )
    given = ["explore", "--space", str(path), "--set", "sequences=8..64*2"]
    given += ["--set", "power_cap=300W,none", "--where", "tp * dp <= 2", "--rate", "2"]
    given += ["--ttft-p99", "2s", "--objective", "cost", "--kwh-price", "0.2"]
    given += ["--gpu-price", "h100-sxm=2.5,l40s=1", "--carbon", "400", "--pue", "1.2"]
    assert main([*given, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["kinds"] == ["h100-sxm", "l40s"]
    best = content["best"][0]
    assert best["tied_with_best"] is True
    assert best["dollars_per_million_output_tokens"] > 0.0
    assert best["grams_co2_per_million_output_tokens"] > 0.0
    assert best["seconds_to_first_token_p99"] <= 2.0
    assert content["why"]["runner_up"]["kind"] in content["kinds"]
    assert main(given) == 0
    out = capsys.readouterr().out
    for words in ("$/M", "gCO2/M", "runner-up", "at 2 requests per second"):
        assert words in out


def test_what_is_recommended_can_be_predicted_again(capsys, tmp_path):
    recommended, page = tmp_path / "best.yaml", tmp_path / "report.html"
    files = ["--recommend", str(recommended), "--report", str(page)]
    assert main([*QUESTION, *files, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["recommendation"] == str(recommended)
    assert "<html" in page.read_text()
    assert main(["predict", "--from", str(recommended), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    joules = content["winner"]["joules_per_output_token"]
    assert again["joules_per_output_token"] == pytest.approx(joules, rel=1e-4)


def test_pools_stand_beside_the_best_without(capsys):
    asked = [*QUESTION, "--rate", "3", "--tpot", "30ms", "--pools"]
    assert main([*asked, "--json"]) == 0
    pools = json.loads(capsys.readouterr().out)["pools"]
    pair = pools["pairs"][0]
    assert pools["compared"] > 0
    assert pair["gpus"] == 2
    assert pair["seconds_per_output_token"] <= 0.03
    assert pair["prefill"]["gpu"] == pair["decode"]["gpu"] == "h100-sxm"


def test_a_layout_that_the_engine_refuses_says_why(capsys):
    assert main([*QUESTION[:-1], "4", "--set", "tp=3"]) == 2
    assert "a divisor of 32 attention heads" in capsys.readouterr().err


def test_prices_go_by_any_name_of_a_chip(capsys):
    narrow = ["--set", "tp=1", "--objective", "cost"]
    costs = []
    for price in ("2", "h100=2", "h100-sxm=2"):
        assert main([*QUESTION, *narrow, "--gpu-price", price, "--json"]) == 0
        best = json.loads(capsys.readouterr().out)["best"][0]
        costs.append(best["dollars_per_million_output_tokens"])
    assert costs[0] == costs[1] == costs[2]


def test_full_output_is_left_as_parquet(capsys, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `sweep`")
    folder = tmp_path / "all"
    narrow = ["--set", "tp=1", "--set", "sequences=8,16", "--full", str(folder)]
    assert main([*QUESTION, *narrow, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    table = parquet.read_table(next(folder.glob("*.parquet")))
    assert table.num_rows == content["deployments"]
    assert "slack_memory" in table.column_names


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--pools"], "pools: expected --arrivals"),
        (["--decode-gpu", "l40s"], "expected --pools beside them"),
        (["--recommend", "best.txt"], "ends in .yaml"),
        (["--report", "nowhere/page.html"], "expected a folder that exists"),
        (["--set", "tensr_parallel=2"], "near: tensor_parallel"),
        (["--set", "tp"], "expected KNOB=VALUES"),
        (["--set", "tp=1", "--set", "tp=2"], "set tp: expected each knob once"),
        (["--set", "clock=1.4"], "plain numbers are hertz"),
        (["--set", "tp=8..1"], "low <= high"),
        (["--set", "gpu=l40s"], "gpu: expected it once"),
        (["--where", "tp *"], "expected a bound such as"),
        (["--where", "wats_per_gpu <= 3"], "near: watts_per_gpu"),
        (["--space", "none.yaml"], "expected a readable YAML file"),
        (["--objective", "money"], "got 'money'"),
        (["--objective", "ttft"], "expected a rate of arrivals"),
        (["--gpu-price", "cheap"], "gpu price: expected a number"),
        (["--gpu-price", "l40s=1"], "prices: expected one for h100-sxm"),
        (["--carbon", "-3"], "grams co2 per kwh: expected a number from 0"),
        (["--burstiness", "2"], "expected --arrivals beside it"),
        (["--rack-power", "10kW"], "number of nodes of a rack"),
        (
            ["--set", "prompt=1..1000000", "--set", "output=1..1000000",
             "--set", "chunk_tokens=1000..9000", "--full", "everything"],
            "full output: expected at most",
        ),
    ],
)  # fmt: skip
def test_wrong_questions_are_one_line_with_the_cure(
    capsys, given, words, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert main([*QUESTION, *given]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert words in captured.err
    assert not list(tmp_path.iterdir())


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
