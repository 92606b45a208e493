"""Numbers and texts of TOML files, checked against the field that they are for."""

import dataclasses
import difflib
import functools
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Unit of a field, by the end of its name; anything else has no dimension.
SUFFIX_UNITS = (
    ("_bytes_per_s", "B/s"),
    ("_flop_per_s", "FLOP/s"),
    ("_j_per_byte", "J/B"),
    ("_j_per_flop", "J/FLOP"),
    ("_seconds_per_logit", "s"),
    ("_watts", "W"),
    ("_seconds", "s"),
    ("_flop", "FLOP"),
    ("_hz", "Hz"),
    ("_bytes", "B"),
)
SHARES = frozenset(
    {
        "cap_share",
        "experts_wait",
        "gap_power",
        "hbm_saturation",
        "host_exposed",
        "l2_saving",
        "launch_clocked",
        "memory_share",
        "overlap_contention",
        "softness",
        "voltage_bend",
    }
)
MAY_BE_ZERO = frozenset(
    {
        "attention_half_columns",
        "attention_half_width",
        "experts_wait",
        "gap_power",
        "host_exposed",
        "l2_saving",
        "launch_clocked",
        "overlap_contention",
        "padding_power",
        "voltage_bend",
        "voltage_rise",
    }
)


@dataclasses.dataclass(frozen=True)
class Value:
    """One number of a file, in SI."""

    value: float
    unit: str
    source: str
    spread: float | None  # of the logarithm; None for facts


def unit_of(name: str) -> str:
    """Returns the SI unit that the field called `name` is in."""
    return next((unit for end, unit in SUFFIX_UNITS if name.endswith(end)), "1")


def near(name: str, known: Iterable[str]) -> str:
    """Returns a hint at the known names that resemble `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; near: {', '.join(close)}" if close else ""


def parse(path: Path, *, argument: str) -> Mapping[str, Any]:
    """Returns the tables of a TOML file; read again only when the file changes."""
    try:
        status = path.stat()
        return _parse(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ValueError(
            f"{argument}: expected a readable TOML file, got {str(path)!r} "
            f"({error.strerror}); check the path."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: expected TOML, got {error}.") from None


@functools.lru_cache(maxsize=256)
def _parse(path: Path, modified: int, size: int) -> Mapping[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def table(data: Mapping[str, Any], name: str, *, where: str) -> Mapping[str, Any]:
    """Returns the table called `name`, empty if there is none."""
    found = data.get(name, {})
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}: expected a table [{name}], got {found!r}.")
    return found


def number(raw: Any, *, where: str) -> float:
    """Returns `raw` as a finite float."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError(f"{where}: expected a number, got {raw!r}.")
    try:
        value = float(raw)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {raw!r}.")
    return value


def text(raw: Any, *, where: str) -> str:
    """Returns `raw` as a text that is not empty."""
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError(f"{where}: expected a text, got {raw!r}.")
    return raw


def quantity(name: str, raw: Any, *, fact: bool, where: str) -> tuple[float, str]:
    """Returns value and unit of the table `raw` that gives the field `name`."""
    unit = unit_of(name)
    if not isinstance(raw, Mapping):
        raise ValueError(
            f"{where}: expected `{{ value = …, unit = {unit!r}, … }}`, got {raw!r}."
        )
    for key in ("value", "unit"):
        if key not in raw:
            raise ValueError(
                f"{where}: expected `{key}`, got {sorted(raw)}; the unit is {unit!r}."
            )
    if raw["unit"] != unit:
        raise ValueError(
            f"{where}: expected unit {unit!r}, got {raw['unit']!r}; convert to SI."
        )
    value = number(raw["value"], where=where)
    ends = ("_watts", "_seconds", "_seconds_per_logit")
    zero = not fact and (name in MAY_BE_ZERO or name.endswith(ends))
    if value < 0.0 or (value == 0.0 and not zero):
        raise ValueError(
            f"{where}: expected a number {'>=' if zero else '>'} 0, got {value:g}."
        )
    if name in SHARES and value > 1.0:
        raise ValueError(f"{where}: expected a share from 0 to 1, got {value:g}.")
    return value, unit
