import os
import socket
import subprocess
import sys

import pytest

from jaxlens.calibration.tables import read_table
from jaxlens.measure.benches import Bench
from jaxlens.measure.cases import case
from jaxlens.measure.collectives import BUS_FACTORS, Ranks, ranks
from jaxlens.measure.devices import Cpu
from jaxlens.measure.gauges import CpuGauge
from jaxlens.measure.records import Records
from jaxlens.measure.runs import attempted
from jaxlens.measure.windows import Rules

PROGRAM = """
import sys
from pathlib import Path
from jaxlens.measure import sessions, suites
from jaxlens.measure.requests import Request
whole = suites.collectives
sessions.plan = lambda request, device, rules, ranks: [
    one for one in whole(ranks, device) if one.number("bytes") == 65536
]
outcome = sessions.measure(
    Request(device="cpu", out=Path(sys.argv[1]), window_seconds=0.02, budget_seconds=60.0),
    report=lambda text: None,
)
assert not outcome.tally.problems, outcome.tally.problems
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_two_ranks_measure_together_and_the_first_one_writes(tmp_path):
    out, port = tmp_path / "links.parquet", free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(out)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    rows = Records(out).rows
    assert {row["operation"] for row in rows} == {
        "all_reduce",
        "all_gather",
        "alltoall",
    }
    table = read_table(
        out.with_name("links.collectives.parquet"),
        known_gpu=lambda name: True,
        strict=True,
    )
    assert table.kind == "collectives"
    assert set(table["gpus"]) == {2.0} and set(table["bytes"]) == {65536.0}
    assert (table["bus_bytes_per_s"] > 0.0).all()


def test_torchrun_says_who_measures():
    assert ranks({}) == Ranks(rank=0, count=1)
    assert ranks({"RANK": "3", "WORLD_SIZE": "8"}) == Ranks(rank=3, count=8)
    assert ranks({}).leads and not Ranks(rank=3, count=8).leads


def test_bus_factors_are_the_textbook_ones():
    assert BUS_FACTORS["all_reduce"](8) == pytest.approx(1.75)
    assert BUS_FACTORS["all_gather"](4) == pytest.approx(0.75)


def test_one_rank_is_told_how_to_start_more():
    rules = Rules(window_seconds=0.02)
    bench = Bench(device=Cpu(), gauge=CpuGauge(), rules=rules)
    sizes = {"operation": "all_reduce", "dtype": "float", "gpus": 1, "bytes": 1024}
    assert "torchrun" in attempted(case("collectives", sizes), bench)["status"]
