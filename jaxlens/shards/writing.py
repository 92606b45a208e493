"""The full output of a sweep, as shards in Parquet that survive a kill.

A shard is a range of indices of the space: `index` and the columns of the function, in the
order of the space. What a call finds done it leaves alone, so that calls that were killed,
and processes on several hosts, fill one folder together.
"""

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlens import batch
from jaxlens.fingerprints import fingerprint
from jaxlens.shards.files import (
    FILE,
    INDEX,
    INDEX_COLUMN,
    pyarrow_modules,
    read_shard,
    room,
    shard_state,
    stored,
    sweep_up,
    write_shard,
)
from jaxlens.shards.manifests import (
    NAME,
    Column,
    Manifest,
    Plan,
    axis_entries,
    check_same,
    read_plan,
    unit_of,
    write_plan,
)
from jaxlens.spaces import Space

SHARD_ROWS = 2**20
SMALLEST_ROW_BYTES = 12  # the index and one number


def write_all(
    function: batch.Function,
    shared: Any,
    space: Space,
    folder: str | os.PathLike[str],
    *,
    shard_rows: int | None = None,
    part: tuple[int, int] | None = None,
    progress: Callable[[int], None] | None = None,
    profiles: Iterable[str] = (),
    units: Mapping[str, str] | None = None,
    most_bytes: float | None = None,
) -> Manifest:
    """Returns the manifest of `folder` after writing all rows that it does not have yet.

    What is there already is kept: a call that was killed goes on where it stopped.

    Args:
        function: As in `batch.evaluate`.
        shared: What all configurations have in common.
        space: The configurations; one row each, in the order of its indices.
        folder: Made if it is not there.
        shard_rows: Rows of a shard. Fixed by the first call that writes to the folder.
        part: This process and how many there are: of n, process i writes shards i, i + n …
            By default what `jax.distributed` knows, else all.
        progress: Called with rows as they are done, those of earlier calls included.
        profiles: Ids of the profiles that `shared` holds, for the record.
        units: Units of columns whose names do not say them.
        most_bytes: Largest size of the rows to be written, uncompressed; by default what
            the disk has free.

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    pyarrow_modules()
    target, (process, processes) = Path(folder).expanduser(), _part(part)
    old = read_plan(target) if (target / NAME).exists() else None
    if old is None:
        check_room(space.size, SMALLEST_ROW_BYTES, target, most_bytes)
    asked = _plan(function, shared, space, shard_rows, profiles, old)
    if old is not None:
        check_same(target, old, asked)
    _refuse_strangers(target, old)
    mine = range(process, asked.shards, processes)
    todo = [i for i in mine if old is None or not shard_state(target, old, i).complete]
    if progress is not None:
        progress(sum(asked.range(i)[1] for i in mine) - _rows(asked, todo))
    if old is None or todo:
        asked = _evaluated(asked, function, shared, space, units or {})
        if old is not None:
            check_same(target, old, asked)
        check_room(_rows(asked, todo), _row_bytes(asked), target, most_bytes)
        with room(target, asked):
            target.mkdir(parents=True, exist_ok=True)
            if old is None:
                write_plan(target, asked)
        plan = old or asked
        _write_shards(function, shared, space, target, plan, todo, progress)
    return look(target)


def look(folder: str | os.PathLike[str], *, verify: bool = False) -> Manifest:
    """Returns what a folder holds: the plan, and the state of every shard.

    Args:
        folder: Output of `write_all`.
        verify: Read every value and compare it with the checksums.

    Raises:
        ValueError: a file is damaged or belongs to another sweep.
    """
    pyarrow_modules()
    target = Path(folder).expanduser()
    plan = read_plan(target)
    _refuse_strangers(target, plan)
    shards = tuple(shard_state(target, plan, index) for index in range(plan.shards))
    if verify:
        for shard in shards:
            if shard.complete:
                read_shard(shard, plan, [column.name for column in plan.columns])
    return Manifest(folder=target, plan=plan, shards=shards)


def read_all(
    folder: str | os.PathLike[str],
    columns: Iterable[str] | None = None,
    *,
    partial: bool = False,
) -> batch.Columns:
    """Returns the rows of a folder as columns, in the order of the space, all in memory.

    Args:
        folder: Output of `write_all`.
        columns: Names to read; by default all, `index` included.
        partial: Return what is there even if shards are missing.

    Raises:
        ValueError: shards are missing or damaged; the message names them.
    """
    found = look(folder)
    known = {column.name: column.type for column in found.plan.columns}
    names = list(known if columns is None else columns)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"columns: expected some of {', '.join(known)}, got {', '.join(unknown)}."
        )
    if not (partial or found.complete):
        raise ValueError(
            f"{found.folder}: expected {len(found.shards)} shards, got "
            f"{len(found.shards) - len(found.missing)}; missing {_few(found.missing)}: "
            f"run the sweep again to fill the gap, or read with partial=True."
        )
    result = {name: np.empty(found.rows, known[name]) for name in names}
    done = 0
    for shard in found.shards:
        if shard.complete:
            part = read_shard(shard, found.plan, names)
            for name in names:
                result[name][done : done + shard.rows] = part[name]
            done += shard.rows
    return result


def check_room(
    rows: int, row_bytes: int, folder: Path, most_bytes: float | None = None
) -> None:
    """Raises `ValueError` with the size of `rows` rows unless there is room for them."""
    needed = rows * row_bytes
    if most_bytes is None:
        here = next(
            path for path in (folder, *folder.absolute().parents) if path.exists()
        )
        free, what = float(shutil.disk_usage(here).free), "free on the disk"
    else:
        free, what = float(most_bytes), "allowed"
    if needed > free:
        raise ValueError(
            f"full output: expected at most {free:.3g} bytes ({what}), got {rows:,} rows "
            f"of at least {row_bytes} bytes = {needed:.3g} bytes before compression; take "
            f"fewer or coarser axes, keep only the best and the Pareto front, or allow "
            f"more with most_bytes."
        )


def _plan(
    function: batch.Function,
    shared: Any,
    space: Space,
    shard_rows: int | None,
    profiles: Iterable[str],
    old: Plan | None,
) -> Plan:
    """What is asked, with the columns of `old` until a row has been evaluated."""
    rows = shard_rows or (old.shard_rows if old else SHARD_ROWS)
    if rows < 1:
        raise ValueError(f"shard rows: expected at least 1, got {rows}.")
    return Plan(
        function=f"{function.__module__}.{function.__qualname__}",
        shared=fingerprint(shared),
        space=fingerprint(space),
        axes=axis_entries(space),
        rows=space.size,
        shard_rows=int(rows),
        columns=old.columns if old else (),
        first_row={},
        version=importlib.metadata.version("jaxlens"),
        profiles=tuple(profiles),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _evaluated(
    plan: Plan,
    function: batch.Function,
    shared: Any,
    space: Space,
    units: Mapping[str, str],
) -> Plan:
    """`plan` with the columns and values of the first row."""
    row = stored(batch.columns(function, shared, space, 0, 1))
    if INDEX in row:
        raise ValueError(f"columns: expected none called {INDEX!r}; rename it.")
    columns = [
        Column(name=name, type=str(v.dtype), unit=units.get(name) or unit_of(name))
        for name, v in row.items()
    ]
    return replace(
        plan,
        columns=(INDEX_COLUMN, *columns),
        first_row={name: float(values[0]) for name, values in row.items()},
    )


def _write_shards(
    function: batch.Function,
    shared: Any,
    space: Space,
    folder: Path,
    plan: Plan,
    todo: list[int],
    progress: Callable[[int], None] | None,
) -> None:
    """Evaluates shards one after the other; one is written while the next is evaluated."""
    sweep_up(folder)
    pending: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for index in todo:
            first, rows = plan.range(index)
            values = batch.columns(function, shared, space, first, rows, progress)
            if pending is not None:
                pending.result()
            pending = writer.submit(write_shard, folder, plan, index, values)
        if pending is not None:
            pending.result()


def _refuse_strangers(folder: Path, plan: Plan | None) -> None:
    """Other Parquet files would be read as rows of the sweep by most readers."""
    for path in sorted(folder.glob("*.parquet")):
        match = FILE.fullmatch(path.name)
        if plan is None or match is None or int(match[1]) >= plan.shards:
            what = f"the shards of {NAME}" if plan else "none yet"
            raise ValueError(
                f"{folder}: expected Parquet files to be {what}, got {path.name}; "
                f"nothing was touched: move it away, or write to another folder."
            )


def _row_bytes(plan: Plan) -> int:
    return sum(np.dtype(column.type).itemsize for column in plan.columns)


def _rows(plan: Plan, shards: Iterable[int]) -> int:
    return sum(plan.range(index)[1] for index in shards)


def _part(part: tuple[int, int] | None) -> tuple[int, int]:
    process, processes = part or (jax.process_index(), jax.process_count())
    if not 0 <= process < processes:
        raise ValueError(
            f"part: expected a process from 0 to below their number, got {process} of "
            f"{processes}."
        )
    return process, processes


def _few(shards: tuple[int, ...], most: int = 8) -> str:
    shown = ", ".join(str(index) for index in shards[:most])
    return shown if len(shards) <= most else f"{shown} and {len(shards) - most} more"
