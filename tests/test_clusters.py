import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxlens.clusters import connect, own_part, stream
from jaxlens.streams import stream as stream_here
from jaxlens.surveys import load
from tests.streamed import KEEP, trade, trades

HERE = Path(__file__).parents[1]
BLOCK = 1024
PROCESS = """
import sys
from jaxlens.clusters import connect, stream
from jaxlens.surveys import save
from tests.streamed import KEEP, trade, trades, troubled
coordinator, process, folder, function = sys.argv[1:]
connect(coordinator, 2, int(process), timeout_seconds=60)
chosen = {"trade": trade, "troubled": troubled}[function]
try:
    survey = stream(chosen, 1.5, trades(), KEEP, block=1024, checkpoint=folder + "/parts")
    save(survey, f"{folder}/{process}.survey")
except ValueError as error:
    print(error)
"""


def two_processes(folder, function="trade"):
    """Returns what two processes print that share a stream by loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(rank), str(folder), function],
            cwd=HERE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in running]
    for process, (_, errors) in zip(running, ended, strict=True):
        assert process.returncode == 0, errors
    return [said for said, _ in ended]


def test_two_processes_find_what_one_does(tmp_path):
    two_processes(tmp_path)
    alone = stream_here(trade, 1.5, trades(), KEEP, block=BLOCK)
    for rank in range(2):
        found = load(tmp_path / f"{rank}.survey")
        assert (found.evaluated, found.feasible) == (trades().size, alone.feasible)
        assert not found.interrupted
        assert found.infeasible_by_one_reason == alone.infeasible_by_one_reason
        np.testing.assert_array_equal(found.front.index, alone.front.index)
        np.testing.assert_array_equal(found.nearest.index, alone.nearest.index)
        for name in ("cost", "rate"):
            np.testing.assert_array_equal(found.top[name].index, alone.top[name].index)
        _, counts = found.histogram("rate")
        np.testing.assert_array_equal(counts, alone.histogram("rate")[1])
    parts = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert parts == ["0-of-2.survey", "1-of-2.survey"]


def test_a_failure_of_one_process_is_told_to_all(tmp_path):
    said = two_processes(tmp_path, "troubled")
    other, own = (one.splitlines()[-1] for one in said)  # what connects may talk before
    assert own.startswith("stream: expected numbers, got NaN for cost")
    assert other.startswith("process 1: ValueError: stream: expected numbers")


def test_one_process_needs_no_others(tmp_path):
    options = {"block": BLOCK, "checkpoint": tmp_path}
    found = stream(trade, 1.5, trades(3), KEEP, **options)
    alone = stream_here(trade, 1.5, trades(3), KEEP, block=BLOCK)
    np.testing.assert_array_equal(found.front.index, alone.front.index)
    assert (tmp_path / "0-of-1.survey").exists()


@pytest.mark.parametrize("processes", [1, 3, 7])
def test_parts_cover_a_range_once(processes):
    parts = [own_part(5, 10**18 - 3, rank, processes) for rank in range(processes)]
    at = 5
    for first, count in parts:
        assert first == at
        at += count
    assert at == 5 + 10**18 - 3
    counts = [count for _, count in parts]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("10.0.0.1:4321", None, None), "rank together"),
        (("10.0.0.1:4321", 2, 2), "rank from 0 to 1"),
        (("10.0.0.1", 2, 1), "address with its port"),
    ],
)
def test_what_is_no_cluster_says_so(given, message):
    with pytest.raises(ValueError, match=message):
        connect(*given)


def test_an_unknown_detection_is_refused():
    with pytest.raises(ValueError, match="detection by one of slurm"):
        connect(detection="magic")
