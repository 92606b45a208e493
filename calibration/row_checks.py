"""What is wrong with the rows of a measured table: one finding per bad row."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxlens.calibration.schema_columns import Column, Rule

Cells = Sequence[object] | np.ndarray
LARGEST = 1e18  # beyond this no measured quantity lies, in SI units
POWER_FLOOR = 0.5  # of idle power: less is a wrong unit, not a quiet chip
POWER_CEILING = 1.2  # of the TDP: more is a wrong unit, not a busy chip


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """Why one row was set aside."""

    row: int  # line of a CSV file or log; else position among the records, from 1
    column: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}, {self.column} = {self.value}: {self.reason}"


@dataclass(kw_only=True)
class Findings:
    """The first problem of every bad row, by position in the table."""

    row_numbers: np.ndarray
    by_position: dict[int, BadRow] = field(default_factory=dict)

    def add(self, position: int, column: str, value: object, reason: str) -> None:
        """Keeps the problem unless the row already has one."""
        if position not in self.by_position:
            self.by_position[position] = BadRow(
                row=int(self.row_numbers[position]),
                column=column,
                value=_short(value),
                reason=reason,
            )

    def add_where(
        self, mask: np.ndarray, column: str, values: Cells, reason: str
    ) -> None:
        """Keeps one problem for every row in which `mask` holds."""
        for position in np.flatnonzero(mask):
            self.add(int(position), column, values[int(position)], reason)

    @property
    def good(self) -> np.ndarray:
        """True for every row without a problem."""
        keep = np.ones(len(self.row_numbers), dtype=bool)
        keep[list(self.by_position)] = False
        return keep


def _short(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def texts(column: Column, cells: Cells, findings: Findings) -> np.ndarray:
    """Returns the cells of a text column as strings, empty where unknown."""
    words = ["" if cell is None else str(cell).strip() for cell in cells]
    if column.default is not None:
        words = [word or str(column.default) for word in words]
    if column.choices is not None:
        allowed = {"", *column.choices}
        for position, word in enumerate(words):
            if word not in allowed:
                reason = f"expected one of {', '.join(column.choices)}"
                findings.add(position, column.name, word, reason)
    if column.required:
        for position, word in enumerate(words):
            if not word:
                findings.add(position, column.name, "(empty)", "required, but empty")
    return np.array(words, dtype=np.str_)


def numbers(
    column: Column, cells: Cells, factor: float, findings: Findings
) -> np.ndarray:
    """Returns the cells of a number or flag column in SI units, NaN where unknown."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf":
        values = cells.astype(np.float64)
    else:
        parse = _flag if column.rule == "flag" else _number
        values = np.empty(len(cells))
        for position, cell in enumerate(cells):
            values[position], reason = parse(cell)
            if reason:
                findings.add(position, column.name, cell, reason)
    values = values * factor
    if column.default is not None:
        values = np.where(np.isnan(values), float(column.default), values)
    if column.required:
        findings.add_where(
            np.isnan(values),
            column.name,
            ["(empty)"] * len(values),
            "required, but empty",
        )
    for mask, reason in _violations(column.rule, values):
        findings.add_where(mask, column.name, cells, reason)
    return values


def _number(cell: object) -> tuple[float, str]:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan, ""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return math.nan, "not a number"
    try:
        value = float(cell)
    except (ValueError, OverflowError):
        return (
            math.nan,
            "not a number; write it without unit, in the unit of the column",
        )
    if not math.isfinite(value):
        return math.nan, "not finite; leave the cell empty where the value is unknown"
    return value, ""


def _flag(cell: object) -> tuple[float, str]:
    word = "" if cell is None else str(cell).strip().lower()
    if word in {"true", "1", "1.0", "yes"}:
        return 1.0, ""
    if word in {"false", "0", "0.0", "no"}:
        return 0.0, ""
    return math.nan, "" if not word else "expected true or false"


def _violations(rule: Rule, values: np.ndarray) -> list[tuple[np.ndarray, str]]:
    found = [(np.abs(values) > LARGEST, "not finite or implausibly large")]
    if rule in {"positive", "count"}:
        found.append((values <= 0.0, "expected more than 0"))
    if rule == "nonnegative":
        found.append((values < 0.0, "expected 0 or more"))
    if rule == "count":
        fraction = np.isfinite(values) & (values != np.round(values))
        found.append((fraction, "expected a whole number"))
    return found


def check_known(
    names: np.ndarray, column: str, known: Callable[[str], bool], findings: Findings
) -> None:
    """Finds the rows whose name in `column` is not known; asks once per name."""
    for name in dict.fromkeys(names.tolist()):
        if name and not known(name):
            cure = "" if column != "gpu" else "; RUN.chip.toml beside would describe it"
            findings.add_where(names == name, column, names, f"unknown {column}{cure}")


def check_duplicates(columns: Mapping[str, Cells], findings: Findings) -> int:
    """Finds rows that repeat an earlier one in every cell; returns how many."""
    codes = np.stack([_codes(cells) for cells in columns.values()], axis=1)
    first: dict[bytes, int] = {}
    repeats = 0
    for position in range(len(codes)):
        earlier = first.setdefault(codes[position].tobytes(), position)
        if earlier != position:
            line = int(findings.row_numbers[earlier])
            findings.add(
                position, "(all)", "...", f"the same in every cell as row {line}"
            )
            repeats += 1
    return repeats


def _codes(cells: Cells) -> np.ndarray:
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "f":
        return cells.astype(np.float64).view(np.int64)
    code: dict[object, int] = {}
    keys = (cell if isinstance(cell, str) else repr(cell) for cell in cells)
    return np.array([code.setdefault(key, len(code)) for key in keys], dtype=np.int64)


def watts_units(gpus: np.ndarray | float) -> tuple[tuple[float | np.ndarray, str], ...]:
    """Returns usual mistakes in a power column, and the factor that repairs each."""
    return (
        (1e-3, "looks like mW instead of W"),
        (1e3, "looks like kW instead of W"),
        (gpus, "looks like the watts of one GPU instead of all"),
    )


JOULES_UNITS = (
    (3.6e6, "looks like kWh instead of J"),
    (3.6e3, "looks like Wh instead of J"),
    (1e-3, "looks like mJ instead of J"),
    (1e3, "looks like kJ instead of J"),
)


def check_power(
    column: str,
    values: np.ndarray,
    watts_per_gpu: np.ndarray,
    units: Sequence[tuple[float | np.ndarray, str]],
    limits: tuple[np.ndarray, np.ndarray],
    findings: Findings,
) -> None:
    """Finds rows whose implied power per GPU lies outside [idle / 2, 1.2 TDP].

    `limits` are idle and TDP watts of each row's chip, NaN where they are not known.
    """
    low, high = POWER_FLOOR * limits[0], POWER_CEILING * limits[1]
    outside = (watts_per_gpu < low) | (watts_per_gpu > high)
    for position in np.flatnonzero(outside):
        watts, bottom, top = watts_per_gpu[position], low[position], high[position]
        reason = (
            f"implies {watts:.4g} W per GPU, expected {bottom:.4g} to {top:.4g} W "
            "(half of idle to 1.2 TDP)"
        )
        for factor, unit in units:
            scale = float(np.broadcast_to(factor, outside.shape)[position])
            if scale != 1.0 and bottom <= watts * scale <= top:
                reason = f"{unit}: {reason}"
                break
        findings.add(int(position), column, float(values[position]), reason)
