"""Rows of a run on disk: only ever added to, complete after every row, readable by kind.

`RUN.parquet` holds every row of every kind, failures included; `RUN.<kind>.parquet` the good
rows of one kind with its columns alone, as `calibration.tables.read_table` reads them. Files
are replaced at once, so that an interrupted run leaves whole ones.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlens.measure.refusals import Unavailable

Row = dict[str, Any]
GOOD = "ok"
# What has to agree before a row of an earlier run counts as measured already.
IDENTITY = (
    "case",
    "gpu",
    "gpu_uuid",
    "driver",
    "version",
    "cuda",
    "run",
    "clock_setting",
)


class Records:
    """The rows of one file and of its per-kind tables."""

    def __init__(self, path: Path) -> None:
        if path.suffix != ".parquet":
            raise ValueError(f"--out: expected a name ending in .parquet, got {path}.")
        self.path = path
        self.rows: list[Row] = _read(path) if path.exists() else []
        self._done = {_identity(row) for row in self.rows if row["status"] == GOOD}

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a good row with the same case, device and software is there."""
        return _identity(row) in self._done

    def add(self, row: Row) -> None:
        """Keeps one row, on disk when this returns, in place of one that measured the same."""
        known = {name: value for name, value in row.items() if value is not None}
        if known["status"] == GOOD and self.has(known):  # has become more exact
            again = _identity(known)
            self.rows = [row for row in self.rows if _identity(row) != again]
        self.rows.append(known)
        _write(self.path, self.rows)
        if known["status"] == GOOD:
            self._done.add(_identity(known))
            self._write_kind(str(known["kind"]))

    def kind_path(self, kind: str) -> Path:
        """Returns where the table of one kind lies."""
        return self.path.with_name(f"{self.path.stem}.{kind}.parquet")

    def kinds(self) -> list[str]:
        """Returns the kinds that have good rows."""
        good = (row["kind"] for row in self.rows if row["status"] == GOOD)
        return list(dict.fromkeys(map(str, good)))

    def _write_kind(self, kind: str) -> None:
        rows = [
            {name: value for name, value in row.items() if name != "kind"}
            for row in self.rows
            if row["kind"] == kind and row["status"] == GOOD
        ]
        _write(self.kind_path(kind), rows)


def _identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_spelled(row.get(name)) for name in IDENTITY)


def _spelled(value: Any) -> str:
    """Returns a cell as text; files keep whole numbers as floats."""
    return f"{value:g}" if isinstance(value, int | float) else str(value or "")


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet  # an extra; slow to import
    except ImportError as error:
        raise Unavailable(
            "--out: expected pyarrow to write Parquet, got none; pip install pyarrow."
        ) from error
    return parquet


def _read(path: Path) -> list[Row]:
    parquet = _parquet()
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:
        raise ValueError(
            f"{path}: expected a table of an earlier run, got: {error}; "
            "choose another --out."
        ) from error
    if rows and not {"case", "status", "kind"} <= rows[0].keys():
        raise ValueError(
            f"{path}: expected a table of an earlier run, got other columns; "
            "choose another --out."
        )
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def _write(path: Path, rows: Sequence[Row]) -> None:
    parquet = _parquet()
    import pyarrow as arrow

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        known = [cell for cell in cells if cell is not None]
        if all(isinstance(cell, bool) for cell in known):
            kind = arrow.bool_()
        elif any(isinstance(cell, str) for cell in known):
            kind = arrow.string()
        else:
            kind = arrow.float64()
        columns[name] = arrow.array(cells, type=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        parquet.write_table(arrow.table(columns), partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
