import json
import os
import socket
import subprocess
import sys

import pytest

from jaxlens.cli.hosts import joined

QUESTION = ["meta-llama/Llama-3.1-8B-Instruct", "--gpu", "h100-sxm", "--json"]
QUESTION += ["--max-gpus", "2", "--set", "sequences=1..64*2", "--tpot", "30ms"]


def explored(*more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxlens.cli", "explore", *QUESTION, *more]
    return subprocess.Popen(
        command,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_answer_what_one_does():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    pair = [explored("--hosts", f"{rank}/2@{address}") for rank in range(2)]
    ended = [process.communicate(timeout=300) for process in pair]
    for process, (_, errors) in zip(pair, ended, strict=True):
        assert process.returncode == 0, errors
    assert ended[1][0] == ""  # the first one answers
    together = json.loads(ended[0][0])
    alone = json.loads(explored().communicate(timeout=300)[0])
    assert together["deployments"] == alone["deployments"]
    assert together["infeasible_by_reason"] == alone["infeasible_by_reason"]
    for mine, theirs in zip(together["best"], alone["best"], strict=True):
        for name in ("batch", "clock_hz", "tensor_parallel"):
            assert mine[name] == theirs[name]


@pytest.mark.parametrize("hosts", ["two", "0/2", "0/2@nowhere", "a/2@host:1"])
def test_hosts_are_checked(hosts: str):
    with (
        pytest.raises(ValueError, match="hosts: expected auto, or RANK"),
        joined(hosts),
    ):
        pass


def test_a_rank_beyond_the_processes_is_refused():
    with (
        pytest.raises(ValueError, match="rank from 0 to 1, got 2"),
        joined("2/2@127.0.0.1:4321"),
    ):
        pass


def test_one_process_answers_for_itself():
    with joined(None) as leads:
        assert leads
