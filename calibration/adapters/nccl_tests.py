"""Logs of nccl-tests (`all_reduce_perf` ...) as collective tables.

Source: NVIDIA, nccl-tests, README and doc/PERFORMANCE.md, 2025,
https://github.com/NVIDIA/nccl-tests. Sizes are those of the whole buffer of one rank
(for all-gather and reduce-scatter the large side); bus bandwidth is
busbw = size / time x 2 (n - 1) / n for all-reduce and x (n - 1) / n for the others.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration.measured_tables import Table, build_table
from jaxlens.calibration.raw_tables import RawTable, decoded, digest, read_bytes
from jaxlens.calibration.row_checks import BadRow

OPERATIONS: Mapping[str, str] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "alltoall",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "sendrecv": "sendrecv",
    "gather": "gather",
    "scatter": "scatter",
    "hypercube": "hypercube",
}
PROGRAM = re.compile(r"\b(" + "|".join(OPERATIONS) + r")_perf\b")
RANK = re.compile(r"#\s+Rank\s+(\d+)\b.*?\bdevice\s+\d+\s+\[[^\]]+\]\s+(.+?)\s*$")
GPUS = re.compile(r"#.*\bnGpus\s+(\d+)")
VERSION = re.compile(r"NCCL version (\d+\.\d+[\w.]*)|nccl-library=(\d+)")
# size count type [redop] root, then time algbw busbw #wrong out of place and in place.
ROW = re.compile(
    r"(?:^|[\s:>])(\d+)\s+(\d+)\s+([a-z]\w*)\s+(?:(\w+)\s+)?(-?\d+)"
    r"\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s*$"
)


def matches(data: bytes) -> bool:
    """Returns whether `data` looks like a log of nccl-tests."""
    return b"algbw" in data and b"busbw" in data


def read(
    path: str | Path,
    *,
    operation: str | None = None,
    gpus: int | None = None,
    gpu: str | None = None,
    in_place: bool = False,
    **checks: Any,
) -> Table:
    """Returns the collective table in the log at `path`, numbered by its lines.

    The operation comes from the program's name (in the command or header of the log),
    the number of GPUs and the chip from its list of ranks; `operation`, `gpus` and
    `gpu` stand in where the log lacks them. Sizes of 0 bytes are left out: they only
    measure launches. Other `checks` are those of `read_table`.
    """
    data = read_bytes(path)
    lines = decoded(data, where=path).splitlines()
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    header = _Header(operation=operation, gpus=gpus, gpu=gpu)
    for number, line in enumerate(lines, start=1):
        match = ROW.search(line)
        if match is None or "#" in line[: match.start(1)]:
            header.read(line)
            continue
        row, wrong = _row(match, in_place)
        if wrong not in {"0", "N/A"}:
            reason = "the benchmark counted wrong results"
            bad.append(BadRow(row=number, column="#wrong", value=wrong, reason=reason))
        elif row["bytes"] != "0":
            rows.append({**row, **header.record(path)})
            numbers.append(number)
    if not rows and not bad:
        raise ValueError(f"{path}: expected rows of nccl-tests, got none.")
    names = ("op_name", "dtype", "num_gpus", "bytes", "latency_us", "busbw_GBps")
    raw = RawTable(
        source=str(path),
        sha256=digest(data),
        columns={
            **{name: [row[name] for row in rows] for name in (*names, "gpu")},
            "backend": ["nccl"] * len(rows),
            "version": [row["version"] for row in rows],
        },
        row_numbers=np.array(numbers, dtype=np.int64),
        unreadable=tuple(bad),
    )
    return build_table(raw, kind="collectives", gpu=gpu, **checks)


def _row(match: re.Match[str], in_place: bool) -> tuple[dict[str, str], str]:
    size, _, dtype, _, _, *measured = match.groups()
    time, _, bus, wrong = measured[4:] if in_place else measured[:4]
    row = {"bytes": size, "dtype": dtype, "latency_us": time, "busbw_GBps": bus}
    return row, wrong


def _dotted(code: int) -> str:
    """Returns NCCL's version code, 10000 major + 100 minor + patch, with dots."""
    return f"{code // 10000}.{code // 100 % 100}.{code % 100}"


class _Header:
    """What the lines above the rows have said so far."""

    def __init__(
        self, *, operation: str | None, gpus: int | None, gpu: str | None
    ) -> None:
        self.operation = operation
        self.gpus = gpus
        self.gpu = gpu
        self.version = ""
        self.given = (operation is not None, gpus is not None)
        self.ranks: set[int] = set()
        self.local: int | None = None

    def read(self, line: str) -> None:
        """Takes note of what `line` says."""
        if not self.given[0] and (program := PROGRAM.search(line)):
            self.operation = OPERATIONS[program.group(1)]
        if version := VERSION.search(line):
            self.version = version.group(1) or _dotted(int(version.group(2)))
        if local := GPUS.search(line):
            self.local, self.ranks = int(local.group(1)), set()
        if rank := RANK.search(line):
            self.ranks.add(int(rank.group(1)))
            self.gpu = self.gpu or rank.group(2)

    def record(self, path: str | Path) -> dict[str, Any]:
        """Returns the cells that all rows below share."""
        if self.operation is None:
            raise ValueError(
                f"{path}: expected the name of a program (all_reduce_perf ...) in "
                "the log, got none; give the operation."
            )
        gpus = self.gpus if self.given[1] else len(self.ranks) or self.local
        return {
            "op_name": self.operation,
            "num_gpus": gpus,
            "gpu": self.gpu or "",
            "version": self.version,
        }
