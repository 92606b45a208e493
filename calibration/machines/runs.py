"""The rows that `jaxlens measure` wrote: good ones, with what each says about the machine.

One table holds every kind of row. `kind` says what was timed, `status` whether that worked;
kernels on a part of the SMs or at a locked clock keep their time apart, in `limited_seconds`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlens.calibration.raw_tables import RawTable, read_columns

Row = Mapping[str, Any]
SIGNATURE = frozenset({"case", "kind", "status"})
GOOD = "ok"
LOCKED = "clock_"  # before the kind of rows at a locked clock
TIMES = ("seconds", "limited_seconds")
IDLE = ("clocks_idle", "loaded_idle")
STEPS = "forward"
PAIRS = "overlap"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Good rows of one or more files from one machine."""

    rows: tuple[Row, ...]
    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    failed: int  # rows whose status is another

    @property
    def gpu(self) -> str:
        """What the rows call the chip."""
        return str(self.rows[0]["gpu"])

    @property
    def name(self) -> str:
        """The files that the rows come from."""
        return ", ".join(path.name for path in self.paths)


def is_run(path: str | Path) -> bool:
    """Returns whether the columns of the table at `path` are those of a run."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    if start[:4] != b"PAR1":
        header = start.partition(b"\n")[0].decode("utf-8-sig", errors="replace")
        return {name.strip() for name in header.split(",")} >= SIGNATURE
    try:
        import pyarrow.parquet as parquet  # an extra; slow to import

        return set(parquet.read_schema(path).names) >= SIGNATURE
    except Exception:
        return False  # whoever reads the rows says what is wrong


def read_run(paths: Sequence[str | Path]) -> Run:
    """Returns the good rows of `paths`, which must be of one machine.

    Raises:
        ValueError: Files without a good row, or of several chips.
    """
    rows: list[Row] = []
    failed, digests = 0, []
    for path in paths:
        raw = read_columns(path)
        if not raw.columns.keys() >= SIGNATURE:
            raise ValueError(
                f"{path}: expected a run of `jaxlens measure`, got other columns; "
                "calibrate tables of another kind in a command of its own."
            )
        found = _records(raw)
        good = [row for row in found if row.get("status") == GOOD]
        if not good:
            raise ValueError(
                f"{path}: expected rows with status ok, got none of {len(found)}; "
                "measure again."
            )
        rows += good
        failed += len(found) - len(good)
        digests.append(raw.sha256)
    gpus = dict.fromkeys(str(row.get("gpu", "")) for row in rows)
    if len(gpus) > 1:
        raise ValueError(
            f"calibrate: expected runs on one chip, got {', '.join(gpus)}; "
            "calibrate each in a command of its own."
        )
    return Run(
        rows=tuple(rows),
        paths=tuple(map(Path, paths)),
        sha256=tuple(digests),
        failed=failed,
    )


def _records(raw: RawTable) -> list[dict[str, Any]]:
    count = len(raw.row_numbers)
    columns = {name: list(cells) for name, cells in raw.columns.items()}
    return [
        {
            name: value
            for name, cells in columns.items()
            if _known(value := _plain(cells[i]))
        }
        for i in range(count)
    ]


def _plain(cell: Any) -> Any:
    """Returns a cell as a number where it is one; CSV holds words only."""
    if isinstance(cell, str):
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell.item() if hasattr(cell, "item") else cell


def _known(value: Any) -> bool:
    return value is not None and value != "" and value == value


def operation(row: Row) -> str:
    """Returns what ran, without the conditions under which it did.

    >>> operation({"kind": "clock_gemm"})
    'gemm'
    >>> operation({"kind": "sm_share", "operation_kind": "copy"})
    'copy'
    """
    kind = str(row["kind"]).removeprefix(LOCKED)
    return str(row["operation_kind"]) if kind == "sm_share" else kind


def family(row: Row) -> str:
    """Returns what errors of a row are counted under: its kind, and a narrow format.

    >>> family({"kind": "gemm", "dtype": "fp8"}), family({"kind": "copy"})
    ('gemm fp8', 'copy')
    """
    narrow = row.get("dtype") == "fp8" and row["kind"] not in IDLE
    return f"{row['kind']} fp8" if narrow else str(row["kind"])


def number(row: Row, name: str) -> float:
    """Returns a positive number of a row, NaN where there is none."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if math.isfinite(value) and value > 0.0 else math.nan


def seconds(row: Row) -> float:
    """Returns the measured time, NaN where there is none."""
    known = (number(row, name) for name in TIMES)
    return next((value for value in known if value == value), math.nan)


def joules(row: Row) -> float:
    """Returns the measured energy; that beside an occupier is not the kernel's own."""
    if row.get("sm_limit") == "occupier":
        return math.nan
    return number(row, "joules")


def idle_watts(row: Row) -> float:
    """Returns the power of a row of an idle GPU, NaN for others."""
    name = {"clocks_idle": "idle_watts", "loaded_idle": "loaded_idle_watts"}
    return number(row, name[str(row["kind"])]) if row["kind"] in IDLE else math.nan
