"""One shard of a sweep's full output: a Parquet file that is there as a whole or not at all.

It is written beside its place, brought to disk and then renamed. Its footer names the sweep,
its place and a checksum of its values.

Source: Apache Parquet, file format, 2025, https://parquet.apache.org/docs/file-format.
"""

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.shards.manifests import NAME, Column, Plan, Shard

INDEX = "index"
INDEX_COLUMN = Column(name=INDEX, type="int64", unit="1")
FILE = re.compile(r"shard-(\d{8,})\.parquet")
TEMPORARY = re.compile(r"\.shard-\d{8,}\.parquet\.(.+)\.(\d+)")
KEYS = ("jaxlens_sweep", "jaxlens_shard", "jaxlens_checksum")

Columns = dict[str, np.ndarray]


def shard_path(folder: Path, index: int) -> Path:
    """Returns where a shard belongs."""
    return folder / f"shard-{index:08d}.parquet"


def stored(values: Columns) -> Columns:
    """Returns columns with floats in single precision, as they were evaluated."""
    return {
        name: np.ascontiguousarray(
            column, np.float32 if np.issubdtype(column.dtype, np.floating) else None
        )
        for name, column in values.items()
    }


def write_shard(folder: Path, plan: Plan, index: int, values: Columns) -> None:
    """Puts one shard in its place, as a whole, on disk before it gets its name."""
    arrow, parquet = pyarrow_modules()
    first, rows = plan.range(index)
    columns = {INDEX: np.arange(first, first + rows), **stored(values)}
    units = {column.name: column.unit for column in plan.columns}
    table = arrow.table(columns)
    schema = arrow.schema(
        [field.with_metadata({"unit": units[field.name]}) for field in table.schema],
        dict(
            zip(KEYS, (plan.fingerprint, str(index), _checksum(columns)), strict=True)
        ),
    )
    place = shard_path(folder, index)
    temporary = folder / f".{place.name}.{socket.gethostname()}.{os.getpid()}"
    with room(folder, plan):
        try:
            with temporary.open("wb") as file:
                parquet.write_table(
                    table.cast(schema),
                    file,
                    compression="zstd",
                    compression_level=1,
                    column_encoding={INDEX: "DELTA_BINARY_PACKED"},
                    use_dictionary=[name for name in columns if name != INDEX],
                    write_page_checksum=True,
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place)
            _sync(folder)
        finally:
            temporary.unlink(missing_ok=True)


def shard_state(folder: Path, plan: Plan, index: int) -> Shard:
    """Returns the state of a shard, from its footer."""
    path, (first, rows) = shard_path(folder, index), plan.range(index)
    place = Shard(index=index, first=first, rows=rows, path=path, complete=False)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return place
    arrow, parquet = pyarrow_modules()
    try:
        footer = parquet.read_metadata(path)
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(_broken(path, error)) from None
    given = footer.metadata or {}
    sweep, number, checksum = (given.get(key.encode(), b"").decode() for key in KEYS)
    if (sweep, number, footer.num_rows) != (plan.fingerprint, str(index), rows):
        raise ValueError(
            f"{path}: expected shard {index} of the sweep in {NAME}, got a file of "
            f"another sweep or place; nothing was touched: move it away."
        )
    return replace(place, complete=True, file_bytes=size, checksum=checksum)


def read_shard(shard: Shard, plan: Plan, names: list[str]) -> Columns:
    """Returns columns of a shard; where all are read, they are compared with its checksum."""
    arrow, parquet = pyarrow_modules()
    try:
        with parquet.ParquetFile(
            shard.path, page_checksum_verification=True
        ) as opened:  # a file of its own: folder and name say nothing
            table = opened.read(columns=names)
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(_broken(shard.path, error)) from None
    found = {name: table.column(name).to_numpy() for name in names}
    every = [column.name for column in plan.columns]
    if names == every and _checksum(found) != shard.checksum:
        raise ValueError(_broken(shard.path, "values that its checksum does not fit"))
    return found


@contextmanager
def room(folder: Path, plan: Plan) -> Iterator[None]:
    """Says what is safe, and how to go on, where the disk gives up."""
    try:
        yield
    except OSError as error:
        there = sum(1 for _ in folder.glob("shard-*.parquet")) if folder.exists() else 0
        raise ValueError(
            f"{folder}: expected to write {plan.shards} shards, got {error.strerror!r} "
            f"with {there} of them there, which are safe; put that right and run the same "
            f"again: it goes on from there."
        ) from error


def sweep_up(folder: Path) -> None:
    """Removes what a killed process of this machine left beside its place."""
    for path in folder.glob(".shard-*"):
        match = TEMPORARY.fullmatch(path.name)
        if match and match[1] == socket.gethostname() and not _alive(int(match[2])):
            path.unlink(missing_ok=True)


def pyarrow_modules() -> tuple[Any, Any]:
    """Returns PyArrow and its Parquet module, which only the full output needs."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            'full output: expected pyarrow to be installed; `pip install "jaxlens[sweep]"`.'
        ) from None
    return pyarrow, pyarrow.parquet


def _broken(path: Path, found: object) -> str:
    words = " ".join(str(found).split())
    return (
        f"{path}: expected a whole shard, got a damaged one ({words}); delete it and run "
        f"the sweep again: only this shard is evaluated."
    )


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    """Has the disk keep the new name, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _checksum(columns: Columns) -> str:
    digest = hashlib.sha256()
    for name, values in columns.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
