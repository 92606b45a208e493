"""Fitted coefficients of one chip and stack, kept in a TOML file.

`[identity]` names chip, stack, date, tables and rows; `[chip]` and `[stack]` hold
`name = { value, unit, sd }` with `sd` the standard deviation of the logarithm;
`[scatter]` the log residuals that no coefficient explains; `[covariance]` the matrix
of the logarithms of `names` (`"chip.…"`, `"stack.…"`), row by row; `[provenance]` the
rest, as the calibration wishes.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.profile_files import CHIPS, DATA, STACKS, Kind
from jaxlens.profile_values import near, number, parse, quantity, table, text, unit_of

TABLES = ("identity", "chip", "stack", "scatter", "covariance", "provenance")


@dataclasses.dataclass(frozen=True)
class FittedValue:
    """A coefficient that measurements have moved."""

    value: float
    sd: float  # of the logarithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedProfile:
    """What a calibration found for one chip under one stack."""

    chip: str
    stack: str
    created: str  # ISO date
    fitted_on: tuple[str, ...]  # tables
    rows: int
    chip_values: Mapping[str, FittedValue]
    stack_values: Mapping[str, FittedValue]
    scatter: Mapping[str, float] = dataclasses.field(default_factory=dict)
    covariance_names: tuple[str, ...] = ()
    covariance: tuple[float, ...] = ()  # row by row
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def covariance_matrix(self) -> np.ndarray:
        """Returns the covariance of the logarithms as a square matrix."""
        size = len(self.covariance_names)
        return np.asarray(self.covariance, dtype=float).reshape(size, size)


def shipped_profile(chip: str, stack: str) -> Path:
    """Returns where the package keeps the fitted profile of a pair, if it has one."""
    return DATA / "profiles" / f"{chip}.{stack}.toml"


def read_fitted_profile(path: Path) -> FittedProfile:
    """Returns the fitted profile in a file, checked."""
    return _from_tables(parse(path, argument="profile"), where=path.name)


def _from_tables(data: Mapping[str, Any], *, where: str) -> FittedProfile:
    if data.keys() - set(TABLES):
        raise ValueError(
            f"{where}: expected the tables {sorted(TABLES)}, "
            f"got unknown {sorted(data.keys() - set(TABLES))}."
        )
    identity = table(data, "identity", where=where)
    keys = {"chip", "stack", "created", "fitted_on", "rows"}
    if identity.keys() != keys:
        raise ValueError(
            f"{where} [identity]: expected the keys {sorted(keys)}, "
            f"got {sorted(identity)}."
        )
    names = {
        key: text(identity[key], where=f"{where} [identity] {key}")
        for key in ("chip", "stack", "created")
    }
    rows, fitted_on = identity["rows"], identity["fitted_on"]
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise ValueError(f"{where} [identity] rows: expected a count, got {rows!r}.")
    if not isinstance(fitted_on, list):
        raise ValueError(
            f"{where} [identity] fitted_on: expected a list, got {fitted_on!r}."
        )
    here = f"{where} [identity] fitted_on"
    covariance_names, covariance = _covariance(data, where)
    return FittedProfile(
        **names,
        rows=rows,
        fitted_on=tuple(text(item, where=here) for item in fitted_on),
        chip_values=_fitted_values(CHIPS, data, "chip", where),
        stack_values=_fitted_values(STACKS, data, "stack", where),
        scatter=_scatter(data, where),
        covariance_names=covariance_names,
        covariance=covariance,
        provenance=dict(table(data, "provenance", where=where)),
    )


def _fitted_values(
    kind: Kind, data: Mapping[str, Any], section: str, where: str
) -> dict[str, FittedValue]:
    fitted = {}
    for name, raw in table(data, section, where=where).items():
        here = f"{where} [{section}] {name}"
        if name not in kind.fields:
            raise ValueError(
                f"{here}: expected a known field, got {name!r}"
                f"{near(name, kind.fields)}; fit the profile again."
            )
        value, _ = quantity(name, raw, fact=False, where=here)
        if set(raw) != {"value", "unit", "sd"}:
            raise ValueError(
                f"{here}: expected the keys ['sd', 'unit', 'value'], got {sorted(raw)}."
            )
        sd = number(raw["sd"], where=f"{here} sd")
        if sd < 0.0:
            raise ValueError(f"{here} sd: expected >= 0, got {sd:g}.")
        fitted[name] = FittedValue(value, sd)
    return fitted


def _scatter(data: Mapping[str, Any], where: str) -> dict[str, float]:
    scatter = {}
    for name, raw in table(data, "scatter", where=where).items():
        scatter[name] = number(raw, where=f"{where} [scatter] {name}")
        if scatter[name] < 0.0:
            raise ValueError(f"{where} [scatter] {name}: expected >= 0, got {raw:g}.")
    return scatter


def _covariance(
    data: Mapping[str, Any], where: str
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    raw = table(data, "covariance", where=where)
    if not raw:
        return (), ()
    where = f"{where} [covariance]"
    if set(raw) != {"names", "matrix"} or not all(
        isinstance(column, list) for column in raw.values()
    ):
        raise ValueError(f"{where}: expected lists `names` and `matrix`, got {raw!r}.")
    fields = {f"chip.{name}" for name in CHIPS.fields}
    fields |= {f"stack.{name}" for name in STACKS.fields}
    for name in raw["names"]:
        if name not in fields:
            raise ValueError(
                f"{where} names: expected 'chip.…' or 'stack.…' fields, got {name!r}"
                f"{near(str(name), fields)}."
            )
    matrix = tuple(number(item, where=f"{where} matrix") for item in raw["matrix"])
    size = len(raw["names"])
    if len(matrix) != size * size or len(set(raw["names"])) != size:
        raise ValueError(
            f"{where}: expected {size} different names and {size * size} numbers, "
            f"got {len(set(raw['names']))} and {len(matrix)}."
        )
    square = np.asarray(matrix).reshape(size, size)
    if not np.allclose(square, square.T, rtol=1e-6, atol=1e-12):
        raise ValueError(f"{where} matrix: expected a symmetric one, got another.")
    return tuple(raw["names"]), matrix


def save_profile(path: str | Path, fitted: FittedProfile) -> None:
    """Writes a fitted profile so that readers see the old file or the new one.

    What is written is checked first; a failure leaves the old file untouched.
    """
    path = Path(path).expanduser()
    tables = _to_tables(fitted)
    _from_tables(tables, where=path.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(toml_text(tables))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"profile: expected a place to write, got {str(path)!r} "
            f"({error.strerror}); check the folder."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _to_tables(fitted: FittedProfile) -> dict[str, Any]:
    def entries(values: Mapping[str, FittedValue]) -> dict[str, Any]:
        return {
            name: {
                "value": float(item.value),
                "unit": unit_of(name),
                "sd": float(item.sd),
            }
            for name, item in values.items()
        }

    tables: dict[str, Any] = {
        "identity": {
            "chip": fitted.chip,
            "stack": fitted.stack,
            "created": fitted.created,
            "fitted_on": list(fitted.fitted_on),
            "rows": int(fitted.rows),
        },
        "chip": entries(fitted.chip_values),
        "stack": entries(fitted.stack_values),
        "scatter": {name: float(item) for name, item in fitted.scatter.items()},
    }
    if fitted.covariance_names:
        tables["covariance"] = {
            "names": list(fitted.covariance_names),
            "matrix": [float(item) for item in fitted.covariance],
        }
    tables["provenance"] = dict(fitted.provenance)
    return tables


def toml_text(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns tables as TOML, one line per entry."""
    lines = []
    for name, entries in tables.items():
        lines.append(f"[{_key(name)}]")
        lines += [f"{_key(key)} = {_toml(value)}" for key, value in entries.items()]
        lines.append("")
    return "\n".join(lines)


def _key(name: str) -> str:
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isascii() and bare.isalnum() else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating) and math.isfinite(value):
        return repr(float(value))
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, Sequence):
        return f"[{', '.join(_toml(item) for item in value)}]"
    raise ValueError(
        f"profile: expected texts, finite numbers, lists and tables, got {value!r}."
    )
