"""Which configurations to measure: clusters of gradients, budgets, and the command."""

import csv
import json

import numpy as np
import pytest

from jaxlens.calibration.coresets import (
    coreset,
    coreset_within,
    evidence_of,
    gradients,
    read_candidates,
    run_seconds,
)
from jaxlens.cli import coreset as cli

CLUSTERS = np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [5.0, 5.0], [5.1, 5.0]])
CANDIDATE = {
    "gpu": "h100-sxm",
    "stack": "vllm-0.11",
    "model": "Qwen/Qwen3-8B",
    "weight_dtype": "bf16",
    "tensor_parallel": "1",
    "prompt_tokens": "1000",
    "output_tokens": "200",
    "max_num_seqs": "8",
}


def written(path, *changes):
    rows = [{**CANDIDATE, **change} for change in changes]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_medoid_stands_for_each_cluster_with_its_size():
    found = coreset(CLUSTERS, 2)
    assert found.rows.tolist()[0] == 0
    assert found.weights.tolist() == [3.0, 2.0]
    assert found.fit_weights.tolist() == [1.2, 0.8]
    # Squared distances from the medoids are 0, 0.01, 0.01, 0 and 0.01.
    assert found.spread == pytest.approx(np.sqrt(0.03 / 5))
    assert found.spread < 0.1 * found.spread_of_one


def test_the_same_seed_gives_the_same_choice():
    features = np.random.default_rng(0).normal(size=(60, 4))
    first, second = coreset(features, 12, seed=3), coreset(features, 12, seed=3)
    assert first.rows.tolist() == second.rows.tolist()
    assert first.weights.sum() == 60.0
    assert len(set(first.rows.tolist())) == 12


def test_candidates_that_teach_the_same_are_measured_once():
    found = coreset(np.zeros((4, 3)), 1)
    assert found.weights.tolist() == [4.0]
    assert found.spread == 0.0


@pytest.mark.parametrize(("budget", "runs"), [(1.0, 1), (2.5, 2), (100.0, 5)])
def test_the_budget_decides_how_many_are_measured(budget, runs):
    found = coreset_within(CLUSTERS, np.ones(5), budget)
    assert len(found.rows) == runs
    assert found.seconds == runs


def test_what_a_budget_leaves_goes_to_cheap_candidates():
    seconds = np.array([10.0, 1.0, 1.0, 10.0, 1.0])
    found = coreset_within(CLUSTERS, seconds, 3.0)
    assert found.seconds <= 3.0
    assert 4 in found.rows.tolist()
    assert len(found.rows) >= 2


def test_impossible_requests_say_what_is_possible():
    with pytest.raises(ValueError, match=r"1 to 5 rows to choose, got 6"):
        coreset(CLUSTERS, 6)
    with pytest.raises(ValueError, match=r"at least 7 s, the cheapest run, got 3 s"):
        coreset_within(CLUSTERS, np.full(5, 7.0), 3.0)
    with pytest.raises(ValueError, match="seconds above 0"):
        coreset_within(CLUSTERS, np.zeros(5), 3.0)
    with pytest.raises(ValueError, match="finite gradient row"):
        coreset(np.array([[np.nan]]), 1)


def test_a_candidate_needs_no_results(tmp_path):
    changes = [{"cost_seconds": "60"}, {"max_num_seqs": "64", "cost_seconds": ""}]
    table, seconds = read_candidates(written(tmp_path / "candidates.csv", *changes))
    assert table["concurrency"].tolist() == [8.0, 64.0]
    assert seconds[0] == 60.0
    assert np.isnan(seconds[1])


def test_candidates_without_a_load_are_refused(tmp_path):
    path = written(tmp_path / "candidates.csv", {"max_num_seqs": ""})
    with pytest.raises(ValueError, match="concurrency"):
        read_candidates(path)


def test_unlike_candidates_lie_further_apart_than_like_ones(tmp_path):
    path = written(
        tmp_path / "candidates.csv",
        {},
        {"max_num_seqs": "9"},
        {"max_num_seqs": "512"},
        {"max_num_seqs": "1024"},
    )
    evidence, lifetimes = evidence_of(read_candidates(path)[0])
    rows = gradients(evidence)
    assert np.isfinite(rows).all()
    near, far = (np.linalg.norm(rows[0] - rows[other]) for other in (1, 2))
    assert 0.0 < near < 0.3 * far
    assert (lifetimes > 0.0).all()
    cost = run_seconds(lifetimes, 300.0)
    assert cost == pytest.approx(300.0 + 3.0 * lifetimes)


@pytest.mark.parametrize(
    ("text", "seconds"), [("4h", 14400.0), ("90min", 5400.0), ("600", 600.0)]
)
def test_times_are_read_as_people_write_them(text, seconds):
    assert cli._seconds(text, "--budget") == seconds


def test_the_command_says_what_to_run(tmp_path, capsys):
    table = written(
        tmp_path / "candidates.csv",
        *({"max_num_seqs": str(batch)} for batch in (4, 5, 6, 256)),
    )
    out = tmp_path / "plan.csv"
    cli.command(table, runs=2, out=out, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["runs"] == 2
    assert sum(run["weight"] for run in report["chosen"]) == 4.0
    assert report["chosen"][-1]["row"] == 5
    with out.open() as file:
        assert len(list(csv.DictReader(file))) == 2
    with pytest.raises(ValueError, match="either --budget or --runs"):
        cli.command(table)
    with pytest.raises(ValueError, match="got 'soon'"):
        cli.command(table, budget="soon")
