"""The manifest of a sweep's full output: what was asked, and which rows are where.

One file, written once, says what was asked and fixes the size of a shard. Which shards there
are is read from the folder, so that processes which know nothing of each other fill it
together, and what one of them did not finish is missing and not wrong.
"""

import json
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxlens.fingerprints import fingerprint
from jaxlens.spaces import Space

NAME = "_manifest.json"  # readers of Parquet folders pass over what starts with _
FORMAT = "jaxlens sweep 1"
CLOSE = 1e-4  # relative; other processors round differently
SUFFIX_UNITS = (
    ("_bytes", "B"),
    ("_watts", "W"),
    ("_hz", "Hz"),
    ("_seconds", "s"),
    ("_joules", "J"),
)
PREFIX_UNITS = (
    ("seconds_", "s"),
    ("joules_", "J"),
    ("watts_", "W"),
    ("output_tokens_per_second", "1/s"),
    ("requests_per_second", "1/s"),
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the output."""

    name: str
    type: str  # of NumPy
    unit: str


@dataclass(frozen=True, kw_only=True)
class AxisEntry:
    """One axis of the space: changed values change the fingerprint."""

    name: str
    count: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked: the content of the manifest file."""

    function: str
    shared: str  # fingerprint
    space: str  # fingerprint
    axes: tuple[AxisEntry, ...]
    rows: int
    shard_rows: int
    columns: tuple[Column, ...]
    first_row: Mapping[str, float]  # a model that has changed gives another one
    version: str  # of jaxlens
    profiles: tuple[str, ...] = ()
    created: str = ""

    @property
    def fingerprint(self) -> str:
        """What every shard of this sweep carries."""
        return fingerprint(
            {
                "function": self.function,
                "shared": self.shared,
                "space": self.space,
                "rows": self.rows,
                "shard_rows": self.shard_rows,
                "columns": [asdict(column) for column in self.columns],
                "version": self.version,
            }
        )

    @property
    def shards(self) -> int:
        """How many shards make the whole output."""
        return math.ceil(self.rows / self.shard_rows)

    def range(self, shard: int) -> tuple[int, int]:
        """Returns the index of the first row of a shard, and its rows."""
        first = shard * self.shard_rows
        return first, min(self.shard_rows, self.rows - first)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One part of the output, as the folder has it."""

    index: int
    first: int  # row
    rows: int
    path: Path
    complete: bool
    file_bytes: int = 0
    checksum: str = ""  # of the values, whatever the compression


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The plan, and the shards that the folder has."""

    folder: Path
    plan: Plan
    shards: tuple[Shard, ...]

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return all(shard.complete for shard in self.shards)

    @property
    def missing(self) -> tuple[int, ...]:
        """Shards that are not there."""
        return tuple(shard.index for shard in self.shards if not shard.complete)

    @property
    def rows(self) -> int:
        """Rows that are there."""
        return sum(shard.rows for shard in self.shards if shard.complete)

    @property
    def file_bytes(self) -> int:
        """Bytes on disk."""
        return sum(shard.file_bytes for shard in self.shards)


def axis_entries(space: Space) -> tuple[AxisEntry, ...]:
    """Returns names, counts and fingerprints of the axes of a space."""
    return tuple(
        AxisEntry(name=axis.name, count=int(axis.count), fingerprint=fingerprint(axis))
        for axis in space.axes
    )


def unit_of(column: str) -> str:
    """Returns the SI unit that the name of a column stands for, "1" without one.

    >>> unit_of("joules_per_output_token"), unit_of("clock_hz"), unit_of("batch")
    ('J', 'Hz', '1')
    """
    ends = (unit for end, unit in SUFFIX_UNITS if column.endswith(end))
    starts = (unit for start, unit in PREFIX_UNITS if column.startswith(start))
    return next(ends, None) or next(starts, "1")


def write_plan(folder: Path, plan: Plan) -> None:
    """Writes the manifest file, whole or not at all."""
    content = {"format": FORMAT, "fingerprint": plan.fingerprint, **asdict(plan)}
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    temporary = folder / f".{NAME}.{socket.gethostname()}.{os.getpid()}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / NAME)
    finally:
        temporary.unlink(missing_ok=True)


def read_plan(folder: Path) -> Plan:
    """Returns the plan in a folder, checked."""
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{folder}: expected the output of a sweep, with {NAME}, got none "
            f"({error.strerror}); check the path."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(_damaged(path, f"JSON ({error})")) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(f"{path}: expected format {FORMAT!r}, got {found!r}.")
    try:
        plan = _plan(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(_damaged(path, f"its entries ({error})")) from None
    if plan.fingerprint != content.get("fingerprint"):
        raise ValueError(_damaged(path, "entries that fit its fingerprint"))
    return plan


def _plan(content: dict[str, Any]) -> Plan:
    rows, shard_rows = int(content["rows"]), int(content["shard_rows"])
    if rows < 1 or shard_rows < 1:
        raise ValueError(f"rows {rows}, shard_rows {shard_rows}")
    return Plan(
        function=str(content["function"]),
        shared=str(content["shared"]),
        space=str(content["space"]),
        axes=tuple(AxisEntry(**entry) for entry in content["axes"]),
        rows=rows,
        shard_rows=shard_rows,
        columns=tuple(Column(**entry) for entry in content["columns"]),
        first_row={str(k): float(v) for k, v in content["first_row"].items()},
        version=str(content["version"]),
        profiles=tuple(str(name) for name in content["profiles"]),
        created=str(content["created"]),
    )


def _damaged(path: Path, expected: str) -> str:
    return (
        f"{path}: expected {expected}, got a damaged file; the shards are untouched: "
        f"restore it, or write to another folder."
    )


def check_same(folder: Path, old: Plan, new: Plan) -> None:
    """Raises `ValueError` that says what differs, unless two plans ask the same."""
    changed = []
    if old.function != new.function:
        changed.append(f"function {old.function} became {new.function}")
    changed += _axis_changes(old.axes, new.axes)
    if not changed and old.space != new.space:
        changed.append("the constraints of the space changed")
    if old.shared != new.shared:
        changed.append(
            "the numbers that all rows share (model, profile, limits) differ"
        )
    if old.version != new.version:
        changed.append(f"jaxlens {old.version} became {new.version}")
    if old.shard_rows != new.shard_rows:
        changed.append(f"shards of {old.shard_rows} rows became {new.shard_rows}")
    if not changed:
        changed += _row_changes(old, new)
    if changed:
        raise ValueError(
            f"{folder / NAME}: expected the sweep that it was written for, got another: "
            f"{'; '.join(changed)}. Nothing was touched: write to another folder."
        )


def _axis_changes(old: tuple[AxisEntry, ...], new: tuple[AxisEntry, ...]) -> list[str]:
    names = [axis.name for axis in old], [axis.name for axis in new]
    if names[0] != names[1]:
        return [f"axes {', '.join(names[0])} became {', '.join(names[1])}"]
    changes = []
    for before, after in zip(old, new, strict=True):
        if before.count != after.count:
            changes.append(
                f"axis {before.name} of {before.count} values became {after.count}"
            )
        elif before.fingerprint != after.fingerprint:
            changes.append(f"axis {before.name} has other values")
    return changes


def _row_changes(old: Plan, new: Plan) -> list[str]:
    """What the same question is answered otherwise; nothing if `new` was not evaluated."""
    if not new.first_row:
        return []
    if old.columns != new.columns:
        names = {c.name for c in old.columns} ^ {c.name for c in new.columns}
        return [
            f"the model gives other columns ({', '.join(sorted(names)) or 'types'})"
        ]
    moved = [
        name
        for name, value in old.first_row.items()
        if not math.isclose(value, new.first_row[name], rel_tol=CLOSE)
    ]
    return [f"the model gives other numbers for {', '.join(moved)}"] if moved else []
