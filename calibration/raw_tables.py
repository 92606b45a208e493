"""Files as named columns of cells, before any meaning is given to them."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration.row_checks import BadRow, Cells


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """The cells of one file by column, with the row numbers that a user would count."""

    source: str
    sha256: str
    columns: Mapping[str, Cells]
    row_numbers: np.ndarray
    unreadable: tuple[BadRow, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def with_columns(self, columns: Mapping[str, Cells]) -> "RawTable":
        """Returns the same rows with other columns."""
        return replace(self, columns=columns)


def read_bytes(path: str | Path) -> bytes:
    """Returns the content of the file at `path`."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a readable file, got: {error}.") from error


def digest(data: bytes) -> str:
    """Returns the SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def decoded(data: bytes, *, where: str | Path) -> str:
    """Returns `data` as text."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected UTF-8 text, got {error}.") from error


def read_columns(path: str | Path) -> RawTable:
    """Returns the cells of the CSV or Parquet file at `path`."""
    data = read_bytes(path)
    if data[:4] == b"PAR1":
        return _parquet(data, str(path))
    return _csv(data, str(path))


def from_records(
    records: Sequence[Mapping[str, Any]], *, source: str, data: bytes
) -> RawTable:
    """Returns `records` as a table, numbered from 1; missing keys are unknown cells."""
    names = dict.fromkeys(name for record in records for name in record)
    return RawTable(
        source=source,
        sha256=digest(data),
        columns={name: [record.get(name) for record in records] for name in names},
        row_numbers=np.arange(1, len(records) + 1),
    )


def read_json(data: bytes, *, where: str | Path) -> list[Any]:
    """Returns the JSON documents in `data`: one, or one per line."""
    text = decoded(data, where=where)
    try:
        return [_parsed(text)]
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            if len(lines) < 2:
                raise
            return [_parsed(line) for line in lines]
        except (ValueError, RecursionError):
            message = f"{where}: expected JSON, got text that is none: {error}."
            raise ValueError(message) from error


def _parsed(text: str) -> Any:
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> float:
    """Returns an integer, or infinity for one that no float can hold."""
    return int(digits) if len(digits) < 300 else float(digits)


def _csv(data: bytes, source: str) -> RawTable:
    text = decoded(data, where=source)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, source)
        rows, lines, unreadable = [], [], []
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                reason = f"expected {len(header)} cells, got {len(row)}"
                shown = ",".join(row)[:40]
                line = reader.line_num
                unreadable.append(
                    BadRow(row=line, column="(all)", value=shown, reason=reason)
                )
                continue
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{source}: expected CSV, got: {error}.") from error
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    return RawTable(
        source=source,
        sha256=digest(data),
        columns={name: cells[i] for i, name in enumerate(header) if name},
        row_numbers=np.array(lines, dtype=np.int64),
        unreadable=tuple(unreadable),
    )


def _check_header(header: Sequence[str], source: str) -> None:
    if not any(header):
        raise ValueError(
            f"{source}: expected a table with a header, got an empty file."
        )
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise ValueError(
            f"{source}: expected cells separated by commas, got {header[0][:60]!r}; "
            "save the table with commas."
        )
    named = [name for name in header if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ValueError(
            f"{source}: expected every column once, got {', '.join(twice)} twice; "
            "rename or drop one."
        )


def _parquet(data: bytes, source: str) -> RawTable:
    try:
        import pyarrow as arrow  # slow to import, and CSV needs none of it
        import pyarrow.parquet as parquet
    except ImportError as error:
        message = f"{source}: expected pyarrow to read Parquet; pip install pyarrow."
        raise ValueError(message) from error
    try:
        table = parquet.read_table(arrow.BufferReader(data))
        columns = {
            name: _cells(table.column(name), arrow) for name in table.schema.names
        }
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source}: expected Parquet, got: {error}.") from error
    return RawTable(
        source=source,
        sha256=digest(data),
        columns=columns,
        row_numbers=np.arange(1, table.num_rows + 1),
    )


def _cells(column: Any, arrow: Any) -> Cells:
    kind = column.type
    if arrow.types.is_integer(kind) or arrow.types.is_floating(kind):
        numbers = column.cast(arrow.float64(), safe=False)
        return numbers.to_numpy(zero_copy_only=False)
    return column.to_pylist()
