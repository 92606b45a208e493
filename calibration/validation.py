"""Errors of predictions against measured tables, of every kind that can be read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration import scores
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.predicted_tables import (
    Predictions,
    predict_serving,
    predict_table,
)
from jaxlens.calibration.run_schemas import LOCKED
from jaxlens.calibration.tables import read_table
from jaxlens.intervals import NORMAL_80

__all__ = [
    "TARGETS",
    "Comparison",
    "compared",
    "decile_labels",
    "has_column",
    "labels",
    "predict_serving",
    "predict_table",
    "predicted_and_measured",
    "read_tables",
    "report",
    "validate",
]

SIZES = ("prompt_tokens", "output_tokens", "concurrency")  # without which no prediction

# What is judged of a kind of table: name in the report -> column that was measured.
TARGETS: Mapping[str, Mapping[str, str]] = {
    "serving": {
        "energy": "joules_per_output_token",
        "latency": "latency_seconds",
    },
    "forward": {"time": "seconds", "energy": "joules"},
    "gemm": {"time": "seconds", "energy": "joules"},
    "attention_prefill": {"time": "seconds", "energy": "joules"},
    "attention_decode": {"time": "seconds", "energy": "joules"},
    "moe": {"time": "seconds", "energy": "joules"},
    "collectives": {"time": "seconds"},
    "alltoall": {
        "dispatch_time": "dispatch_seconds",
        "combine_time": "combine_seconds",
    },
    **{
        kind: {"time": "seconds", "energy": "joules"}
        for kind in ("copy", "elementwise")
    },
    **{
        kind: {"time": "limited_seconds", "energy": "joules"}
        for kind in ("sm_share", *(schema.kind for schema in LOCKED))
    },
    "overlap": {
        "product_slowdown": "product_slowdown",
        "copy_slowdown": "copy_slowdown",
    },
    "run": {
        "time": "seconds",
        "energy": "joules",
        "product_slowdown": "product_slowdown",
        "copy_slowdown": "copy_slowdown",
        "power": "loaded_idle_watts",
    },
    "loaded_idle": {"power": "loaded_idle_watts"},
    "clocks_voltage": {"voltage": "volts"},
    "clocks_idle": {"power": "idle_watts"},
    "powercap": {"energy": "joules_per_output_token"},
}
MOST_LISTED = 20  # rows that are set aside, of each table
NOISE_FLOOR = (
    "noise floor: three pairs of repeated ML.ENERGY v3 runs differ by 5-19 % in J/token"
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A quantity of the rows where both its prediction and its measurement are known."""

    column: str  # that was measured, with its unit
    predicted: np.ndarray
    measured: np.ndarray
    known: np.ndarray  # which of all rows these are
    deviation: np.ndarray | None = None  # of the logarithm, where intervals are known


def validate(
    tables: Iterable[str | Path],
    profile: str | Path | None = None,
    by: Sequence[str] = (),
    *,
    kind: str | None = None,
    gpu: str | None = None,
    stack: str | None = None,
    strict: bool = False,
    **power: Any,
) -> dict[str, Any]:
    """Returns errors as fractions: overall, and by the values of the columns `by`.

    Args:
        tables: Files that `jaxlens.calibration.tables.read_table` reads.
        profile: A fitted profile; by default the shipped one of each row's pair.
        by: Columns to group by; `clean` is one where a table has both kinds of rows.
        kind: Kind of table, where columns do not tell.
        gpu: Chip of tables without that column.
        stack: Stack of tables without that column.
        strict: Whether a bad row is an error instead of being set aside.
        power: `power` and `tensor_parallel` of a benchmark's result, as in `read_table`.
    """
    read = read_tables(tables, kind=kind, gpu=gpu, stack=stack, strict=strict, **power)
    return report(read, [predict_table(table, profile) for table in read], by)


def read_tables(tables: Iterable[str | Path], **given: Any) -> list[Table]:
    """Returns tables of one kind; `given` as `validate` and `read_table` take it."""
    read = [read_table(path, **given) for path in tables]
    if not read:
        raise ValueError("validate: expected at least one table, got none.")
    kinds = dict.fromkeys(table.kind for table in read)
    if len(kinds) > 1:
        raise ValueError(
            f"validate: expected tables of one kind, got "
            f"{', '.join(f'{Path(t.source).name} ({t.kind})' for t in read)}; "
            f"validate each kind in a command of its own."
        )
    return read


def predicted_and_measured(
    tables: Sequence[Table], profile: str | Path | None = None
) -> dict[str, Comparison]:
    """Returns what is predicted and what was measured of tables of one kind, by target."""
    return compared(tables, [predict_table(table, profile) for table in tables])


def compared(
    tables: Sequence[Table], predicted: Sequence[Predictions]
) -> dict[str, Comparison]:
    """Returns `predicted` beside what was measured, by target; those without rows not."""
    result = {}
    for target, column in TARGETS[tables[0].kind].items():
        measured = np.concatenate([_measured(table, column) for table in tables])
        said = np.concatenate(
            [_said(p, column, len(t)) for p, t in zip(predicted, tables, strict=True)]
        )
        known = np.isfinite(measured) & np.isfinite(said) & (measured > 0.0)
        spread = [p.get("deviations", {}).get(target) for p in predicted]
        if known.any():
            result[target] = Comparison(
                column=column,
                predicted=said[known],
                measured=measured[known],
                known=known,
                deviation=(
                    None
                    if any(part is None for part in spread)
                    else np.concatenate(spread)[known]
                ),
            )
    return result


def labels(tables: Sequence[Table], name: str) -> np.ndarray:
    """Returns the value of the column `name` in every row, as a word."""
    return np.concatenate([_labels(table, name) for table in tables])


def has_column(tables: Sequence[Table], name: str) -> bool:
    """Returns whether every table has the column `name`."""
    return all(table.has(name) for table in tables)


def decile_labels(values: np.ndarray) -> np.ndarray:
    """Returns the range of the tenth of all values that each belongs to.

    Equal values share a tenth, so that there are fewer of them where values repeat.
    Ends are rounded to three digits.

    >>> decile_labels(np.array([1.0, 1.0, 8.0, 32.0])).tolist()
    ['1', '1', '8', '32']
    """
    known = np.isfinite(values)
    result = np.full(len(values), "unknown", dtype="<U24")
    if not known.any():
        return result
    edges = np.unique(np.quantile(values[known], np.linspace(0.1, 0.9, 9)))
    tenth = np.searchsorted(edges, values, side="left")
    for position in np.unique(tenth[known]):
        chosen = known & (tenth == position)
        low, high = (_short(end(values[chosen])) for end in (np.min, np.max))
        result[chosen] = low if low == high else f"{low}–{high}"
    return result


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1e3 else f"{value:.0f}"


def report(
    tables: Sequence[Table], predicted: Sequence[Predictions], by: Sequence[str]
) -> dict[str, Any]:
    """Returns the errors of `predicted` against `tables` of one kind."""
    kind = tables[0].kind
    by = _splits(tables, by)
    columns = {name: labels(tables, name) for name in by}
    broken = sum(int(np.sum(_impossible(said))) for said in predicted)
    result: dict[str, Any] = {
        "kind": kind,
        "rows": sum(len(table) for table in tables) - broken,
        "skipped": sum(len(table.skipped) for table in tables) + broken,
    }
    groups: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in by}
    for target, found in compared(tables, predicted).items():
        result[target] = scores.summary(found.predicted, found.measured)
        every = np.ones(len(found.measured), bool)
        result[target] |= _held(found, every)
        result.setdefault("spearman", result[target].pop("spearman"))
        for name, values in columns.items():
            split = scores.grouped(found.predicted, found.measured, values[found.known])
            for label, summary in split.items():
                summary |= _held(found, values[found.known] == label)
                group = groups[name].setdefault(label, {})
                group["rows"] = max(group.get("rows", 0), summary.pop("rows"))
                group[target] = summary
    result["by"] = groups
    result["notes"] = _notes(tables, predicted)
    return result


def _held(found: Comparison, chosen: np.ndarray) -> dict[str, float]:
    """Share of rows within their 80 % intervals, and the median width of those.

    A width is (upper - lower) / predicted.
    """
    if found.deviation is None or not chosen.any():
        return {}
    half = NORMAL_80 * found.deviation[chosen]
    missed = np.abs(np.log(found.predicted[chosen] / found.measured[chosen]))
    return {
        "coverage": float(np.mean(missed <= half)),
        "median_width": float(np.median(2.0 * np.sinh(half))),
    }


def _splits(tables: Sequence[Table], by: Sequence[str]) -> tuple[str, ...]:
    """The columns to group by: also `clean`, where some rows are and others are not."""
    flags = [np.asarray(t["clean"], float) for t in tables if t.has("clean")]
    mixed = len(flags) == len(tables) and len(set(np.concatenate(flags).tolist())) > 1
    return tuple(dict.fromkeys((*by, "clean") if mixed else by))


def _notes(tables: Sequence[Table], predicted: Sequence[Predictions]) -> list[str]:
    notes = [note for table in tables for note in table.notes]
    notes += [note for said in predicted for note in said.get("notes", ())]
    for table, said in zip(tables, predicted, strict=True):
        broken = _impossible(said)
        silent = _unpredicted(table, said)
        if broken.any():
            silent &= ~broken
            notes += [
                f"set aside: {Path(table.source).name} row {number}: seconds = {seconds:g}: "
                "less than its FLOPs take at the peak of its chip"
                for number, seconds in zip(
                    np.asarray(table.row_numbers)[broken][:MOST_LISTED],
                    np.asarray(table["seconds"])[broken],
                    strict=False,
                )
            ]
        if silent.any():
            notes.append(
                f"{Path(table.source).name}: {int(silent.sum())} of {len(table)} rows "
                f"cannot be predicted; {_cure(table, silent)}."
            )
    notes += [
        f"set aside: {bad}" for table in tables for bad in table.skipped[:MOST_LISTED]
    ]
    repeated = [NOISE_FLOOR] if tables[0].kind == "serving" else []
    return [*dict.fromkeys(notes), *repeated]


def _impossible(said: Predictions) -> np.ndarray:
    """Rows that no chip can have run, where a prediction says which."""
    return np.asarray(said.get("impossible", False), bool)


def _unpredicted(table: Table, said: Predictions) -> np.ndarray:
    """Rows of which a target was measured that no prediction exists for."""
    silent = np.zeros(len(table), bool)
    for column in TARGETS[table.kind].values():
        known = np.isfinite(_measured(table, column))
        silent |= known & ~np.isfinite(_said(said, column, len(table)))
    return silent


def _cure(table: Table, silent: np.ndarray) -> str:
    missing = [
        name
        for name in SIZES
        if table.kind == "serving" and np.isnan(_measured(table, name)[silent]).any()
    ]
    if missing:
        return f"fill {', '.join(missing)}, an estimate will do"
    if table.kind == "powercap":
        return "their caps do not bind: the other rows are compared with them"
    return "no fitted coefficients cover them"


def _measured(table: Table, column: str) -> np.ndarray:
    if not table.has(column):
        return np.full(len(table), np.nan)
    return np.asarray(table[column], float)


def _said(predicted: Predictions, column: str, rows: int) -> np.ndarray:
    values = predicted.get(column)
    return np.full(rows, np.nan) if values is None else np.asarray(values, float)


def _labels(table: Table, name: str) -> np.ndarray:
    if not table.has(name):
        known = ", ".join(sorted(filter(table.has, table.columns)))
        raise ValueError(f"validate: expected --by one of {known}, got {name!r}.")
    return np.array([_label(name, value) for value in table[name].tolist()])


def _label(name: str, value: str | float) -> str:
    if value == "" or value != value:
        return "unknown"
    if name == "clean":
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
