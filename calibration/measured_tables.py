"""Measured tables: SI columns, provenance, and the rows that were set aside.

A table is read in three steps: cells of a file (`raw_tables`), columns in SI units by a
`Schema` (`schemas`), and rows that make sense (`row_checks`). Rows that make none are
kept apart with the row, the column, the value and the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration.derived_columns import (
    SHOWN,
    ChipWatts,
    Columns,
    check_watts,
    complete,
    fill_energy,
    note_disagreements,
)
from jaxlens.calibration.operation_schemas import ORIGIN
from jaxlens.calibration.raw_tables import RawTable
from jaxlens.calibration.row_checks import (
    BadRow,
    Findings,
    check_duplicates,
    check_known,
    numbers,
    texts,
)
from jaxlens.calibration.run_chips import chip_entry
from jaxlens.calibration.schema_columns import Column, Schema
from jaxlens.calibration.schemas import recognise, schema_of
from jaxlens.models import load_shape
from jaxlens.profile_files import CHIPS, aliases, known_ids, normalised
from jaxlens.requests import PROCESSOR

Known = Callable[[str], bool]
SPARSE = frozenset({"powercap", "run", "sm_share"})  # cells that are empty by design
TARGETS = ("seconds", "output_tokens_per_second", "watts", "joules_per_output_token")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one measured file, in SI units.

    Numbers are float64 with NaN where unknown; words are strings, empty where unknown;
    flags are 1.0 and 0.0.
    """

    kind: str
    source: str
    sha256: str
    columns: Mapping[str, np.ndarray]
    row_numbers: np.ndarray  # of the kept rows, as in the file
    skipped: tuple[BadRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows kept."""
        return len(self.row_numbers)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise ValueError(
                f"{self.source}: expected a column of a {self.kind} table, got "
                f"{name!r}; there are {', '.join(self.columns)}."
            )
        return self.columns[name]

    def has(self, name: str) -> bool:
        """Whether the column is there and known in at least one row."""
        values = self.columns.get(name)
        if values is None:
            return False
        known = values != "" if values.dtype.kind == "U" else ~np.isnan(values)
        return bool(known.any())

    def subset(self, mask: np.ndarray) -> "Table":
        """Returns the rows that `mask` (or an array of positions) picks."""
        columns = {name: values[mask] for name, values in self.columns.items()}
        return replace(self, columns=columns, row_numbers=self.row_numbers[mask])

    @property
    def provenance(self) -> dict[str, Any]:
        """What a fitted profile records about this table."""
        return {
            "file": Path(self.source).name,
            "kind": self.kind,
            "sha256": self.sha256,
            "rows": self.rows,
            "skipped": len(self.skipped),
        }


def build_table(
    raw: RawTable,
    *,
    kind: str | None = None,
    gpu: str | None = None,
    stack: str | None = None,
    strict: bool = False,
    known_model: Known | None = None,
    known_gpu: Known | None = None,
    chip_watts: ChipWatts | None = None,
) -> Table:
    """Returns `raw` in SI units with its bad rows set aside."""
    where = raw.source
    schema = recognise(raw.columns, where=where) if kind is None else None
    schema = schema or schema_of(str(kind), where=where)
    if not len(raw.row_numbers) and not raw.unreadable:
        raise ValueError(f"{where}: expected at least one row, got an empty table.")
    notes = list(raw.notes)
    cells = _filled(dict(raw.columns), schema, {"gpu": gpu, "stack": stack}, raw, notes)
    findings = Findings(row_numbers=raw.row_numbers)
    columns = _parsed(cells, schema, findings, notes, where)
    chips = [_chip_id(name) for name in columns["gpu"].tolist()]
    columns["gpu"] = np.array(chips, dtype=np.str_)
    watts_of = chip_watts or partial(_chip_watts, where)
    known_gpu = known_gpu or (lambda name: chip_entry(where, name) is not None)
    check_known(columns["gpu"], "gpu", known_gpu, findings)
    if "model" in columns and schema.model_is_huggingface_id:
        check_known(columns["model"], "model", known_model or _model_is_known, findings)
    with np.errstate(all="ignore"):  # rows that are already known to be bad
        complete(schema.kind, columns, findings)
        check_watts(schema.kind, columns, watts_of, findings)
        repeats = check_duplicates(cells, findings) if len(raw.row_numbers) else 0
        if schema.kind in {"serving", "powercap"}:
            note_disagreements(columns, findings, notes)
            fill_energy(columns)
    return _finished(raw, schema, columns, findings, notes, repeats, strict)


def _filled(
    cells: dict[str, Any],
    schema: Schema,
    given: Mapping[str, str | None],
    raw: RawTable,
    notes: list[str],
) -> dict[str, Any]:
    """Returns `cells` with the given chip and stack where none is named."""
    for name, value in given.items():
        column = next((c for c in schema.columns if c.name == name), None)
        if column is None or value is None:
            continue
        spelled = _spelling(column, cells)
        if spelled is None:
            cells[name] = [value] * len(raw.row_numbers)
            continue
        words = ["" if c is None else str(c).strip() for c in cells[spelled[0]]]
        if any(word and word != value for word in words):
            notes.append(f"{name}: {value!r} is used only in rows that name none.")
        cells[spelled[0]] = [word or value for word in words]
    return cells


def _spelling(column: Column, cells: Mapping[str, Any]) -> tuple[str, float] | None:
    spellings = column.spellings or ((column.name, 1.0),)
    return next((pair for pair in spellings if pair[0] in cells), None)


def _parsed(
    cells: Mapping[str, Any],
    schema: Schema,
    findings: Findings,
    notes: list[str],
    where: str,
) -> Columns:
    """Returns the columns that are there, of those in the schema, in SI units."""
    columns: Columns = {}
    rows = len(findings.row_numbers)
    missing = []
    for column in schema.columns:
        spelled = _spelling(column, cells)
        if spelled is None and column.required:
            missing.append(column.spellings[0][0] if column.spellings else column.name)
        elif spelled is None and column.default is None:
            continue
        elif column.is_text:
            words = cells[spelled[0]] if spelled else [None] * rows
            columns[column.name] = texts(column, words, findings)
        else:
            values, factor = ([None] * rows, 1.0)
            if spelled is not None:
                values, factor = cells[spelled[0]], spelled[1]
            columns[column.name] = numbers(column, values, factor, findings)
    if missing:
        cure = (
            " (--gpu and --stack fill those two)"
            if {"gpu", "stack"} & {*missing}
            else ""
        )
        raise ValueError(
            f"{where}: expected the columns of a {schema.kind} table, got none called "
            f"{', '.join(missing)}{cure}."
        )
    known = {s for c in schema.columns for s, _ in c.spellings} | schema.names
    extra = [name for name in cells if name not in known]
    if extra and not cells.keys() >= ORIGIN:
        notes.append(f"ignored columns: {', '.join(extra)}.")
    return columns


def _finished(
    raw: RawTable,
    schema: Schema,
    columns: Columns,
    findings: Findings,
    notes: list[str],
    repeats: int,
    strict: bool,
) -> Table:
    skipped = sorted(
        (*raw.unreadable, *findings.by_position.values()), key=lambda bad: bad.row
    )
    good = findings.good
    total = len(good) + len(raw.unreadable)
    if skipped and (strict or not good.any()):
        listed = "; ".join(str(bad) for bad in skipped[:SHOWN])
        more = f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        raise ValueError(
            f"{raw.source}: expected usable rows, got {len(skipped)} bad of {total}: "
            f"{listed}{more}."
        )
    kept = {name: values[good] for name, values in columns.items()}
    notes += _remarks(schema, kept, repeats)
    return Table(
        kind=schema.kind,
        source=raw.source,
        sha256=raw.sha256,
        columns=kept,
        row_numbers=raw.row_numbers[good],
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def _remarks(schema: Schema, columns: Columns, repeats: int) -> list[str]:
    """Returns what a reader should know before fitting to these rows."""
    rows = len(columns["gpu"])
    notes = []
    if rows == 1 and repeats:
        notes.append(f"all rows are the same: one kept, {repeats} repeats set aside.")
    elif rows == 1:
        notes.append("one row: it can be compared with a prediction, not fitted to.")
    for name in ("gpu", "stack"):
        values = sorted(set(columns.get(name, np.empty(0, np.str_)).tolist()))
        if len(values) > 1:
            notes.append(f"{len(values)} values of {name}: {', '.join(values)}.")
    for name, values in columns.items():
        if values.dtype.kind == "U" or schema.kind in SPARSE:
            continue
        unknown = int(np.isnan(values).sum())
        if unknown and name in schema.names:
            notes.append(f"{name}: unknown in {unknown} of {rows} rows.")
        if rows > 1 and name in TARGETS and not unknown and np.ptp(values) == 0.0:
            notes.append(f"{name}: the same in all {rows} rows, so nothing to fit to.")
    return notes


@cache
def _chip_id(name: str) -> str:
    """Returns the id of the chip that goes by `name`, or `name` where none does.

    >>> _chip_id("NVIDIA A100-SXM4-40GB"), _chip_id("h100_sxm")
    ('a100-sxm-40gb', 'h100-sxm')
    """
    plain = normalised(name)
    identifier = aliases(CHIPS).get(plain, plain)
    return identifier if identifier in known_ids(CHIPS) else name


@cache
def _model_is_known(name: str) -> bool:
    try:
        load_shape(name)
    except (ValueError, OSError):
        return False
    return True


def _chip_watts(where: str, name: str) -> tuple[float, float] | None:
    """Returns idle and TDP watts; None where nobody knows them, as of processors."""
    entry = chip_entry(where, name)
    if entry is None or entry.identity["vendor"] == PROCESSOR:
        return None
    return entry.values["idle_watts"].value, entry.values["tdp_watts"].value
