"""Chips and stacks as they stand in TOML files, read and checked once.

A file has `[identity]`, and tables of `name = { value, unit, source }` in SI: `[facts]`
(datasheets; chips only) and `[coefficients]`, which also state a `spread`, the standard
deviation of the logarithm that the value may be off by. `inherits = "id"` in
`[identity]` takes every value that the file does not state from another entry, as weaker
evidence: its spread is `INHERITED_SPREAD` times as wide.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxlens.hardware import Chip, Stack
from jaxlens.profile_values import (
    Value,
    near,
    number,
    parse,
    quantity,
    table,
    text,
    unit_of,
)

DATA = Path(__file__).parent / "data"

Source = str | Path | Mapping[str, Any]


INHERITED_SPREAD = 3.0  # another engine or version is weaker evidence
WIDEST_SPREAD = 0.7  # of the logarithm: a factor of two either way


@dataclasses.dataclass(frozen=True)
class Curve:
    """Measured breakpoints of a quantity against SM clock."""

    clock_hz: tuple[float, ...]
    values: tuple[float, ...]
    unit: str
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """What a file describes, and what it must hold."""

    argument: str  # what users call it: `gpu`, `stack`
    folder: str
    fields: tuple[str, ...]
    sections: tuple[str, ...]
    identity: tuple[str, ...]  # required texts
    lists: tuple[str, ...]  # optional lists of texts
    choices: Mapping[str, frozenset[str]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file, checked."""

    identity: Mapping[str, Any]
    values: Mapping[str, Value]
    curves: Mapping[str, Curve]
    shipped: bool  # comes with the package, not from a user

    @property
    def id(self) -> str:
        """The name that profiles and tables use."""
        return self.identity["id"]


def field_names(cls: type) -> tuple[str, ...]:
    """Returns the names of the fields of a dataclass."""
    return tuple(field.name for field in dataclasses.fields(cls))


CHIPS = Kind(
    argument="gpu",
    folder="chips",
    fields=field_names(Chip),
    sections=("facts", "coefficients"),
    identity=("id", "name", "vendor", "architecture"),
    lists=("aliases", "formats"),
    choices={"formats": frozenset({"bf16", "fp8", "fp4"})},
)
STACKS = Kind(
    argument="stack",
    folder="stacks",
    fields=field_names(Stack),
    sections=("coefficients",),
    identity=("id", "name", "engine", "version", "fusion"),
    lists=("aliases",),
    choices={"fusion": frozenset({"fused", "eager"})},
)


def _values(kind: Kind, data: Mapping[str, Any], where: str) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for section in kind.sections:
        fact = section == "facts"
        expected = {"value", "unit", "source"} | (set() if fact else {"spread"})
        for name, raw in table(data, section, where=where).items():
            here = f"{where} [{section}] {name}"
            if name not in kind.fields:
                raise ValueError(
                    f"{here}: expected a known field, got {name!r}"
                    f"{near(name, kind.fields)}; remove it."
                )
            if name in values:
                raise ValueError(f"{here}: expected one value, got two; remove one.")
            value, unit = quantity(name, raw, fact=fact, where=here)
            if set(raw) != expected:
                raise ValueError(
                    f"{here}: expected the keys {sorted(expected)}, got {sorted(raw)}."
                )
            spread = None if fact else number(raw["spread"], where=f"{here} spread")
            if spread is not None and spread <= 0.0:
                raise ValueError(f"{here} spread: expected > 0, got {spread:g}.")
            source = text(raw["source"], where=f"{here} source")
            values[name] = Value(value, unit, source, spread)
    return values


def _identity(kind: Kind, data: Mapping[str, Any], where: str) -> dict[str, Any]:
    identity = dict(table(data, "identity", where=where))
    where = f"{where} [identity]"
    allowed = {*kind.identity, *kind.lists, "inherits"}
    missing = [key for key in kind.identity if key not in identity]
    unknown = sorted(identity.keys() - allowed)
    if missing or unknown:
        raise ValueError(
            f"{where}: expected the keys {sorted(allowed)}, "
            f"got missing {missing} and unknown {unknown}."
        )
    for key, raw in identity.items():
        items = raw if key in kind.lists and isinstance(raw, list) else [raw]
        if key in kind.lists and not isinstance(raw, list):
            raise ValueError(f"{where} {key}: expected a list, got {raw!r}.")
        for item in items:
            text(item, where=f"{where} {key}")
            choices = kind.choices.get(key, {item})
            if item not in choices:
                raise ValueError(
                    f"{where} {key}: expected of {sorted(choices)}, got {item!r}."
                )
    return {**{key: [] for key in kind.lists}, **identity}


def _curves(data: Mapping[str, Any], where: str) -> dict[str, Curve]:
    curves = {}
    for name, raw in table(data, "curves", where=where).items():
        here = f"{where} [curves.{name}]"
        keys = ["clock_hz", "source", "unit", "values"]
        if not isinstance(raw, Mapping) or sorted(raw) != keys:
            raise ValueError(f"{here}: expected the keys {keys}, got {raw!r}.")
        columns = []
        for key in ("clock_hz", "values"):
            if not isinstance(raw[key], list):
                raise ValueError(f"{here} {key}: expected a list, got {raw[key]!r}.")
            columns.append(
                tuple(number(item, where=f"{here} {key}") for item in raw[key])
            )
        clocks = columns[0]
        if len(clocks) != len(columns[1]) or list(clocks) != sorted(set(clocks)):
            raise ValueError(
                f"{here}: expected ascending clocks with one value each, got "
                f"{len(clocks)} clocks and {len(columns[1])} values."
            )
        unit = text(raw["unit"], where=f"{here} unit")
        source = text(raw["source"], where=f"{here} source")
        curves[name] = Curve(columns[0], columns[1], unit, source)
    return curves


def _check(kind: Kind, values: Mapping[str, Value], where: str) -> None:
    missing = [name for name in kind.fields if name not in values]
    if missing:
        listed = ", ".join(f"{name} ({unit_of(name)})" for name in missing)
        raise ValueError(
            f"{where}: expected every field, got none for {listed}; add them to "
            f"[{'] or ['.join(kind.sections)}], or set `inherits` in [identity]."
        )
    if kind is CHIPS:
        low, boost, high = (
            values[name].value for name in ("min_hz", "boost_hz", "max_hz")
        )
        if not low <= boost <= high:
            raise ValueError(
                f"{where}: expected min_hz <= boost_hz <= max_hz, "
                f"got {low:g}, {boost:g}, {high:g}."
            )


def _entry(
    kind: Kind,
    data: Mapping[str, Any],
    *,
    where: str,
    shipped: bool,
    children: tuple[str, ...] = (),
) -> Entry:
    known = {"identity", "curves", *kind.sections}
    if data.keys() - known:
        raise ValueError(
            f"{where}: expected the tables {sorted(known)}, "
            f"got unknown {sorted(data.keys() - known)}."
        )
    identity = _identity(kind, data, where)
    values = _values(kind, data, where)
    curves = _curves(data, where)
    if "inherits" in identity:
        parent_id = identity["inherits"]
        children = (*children, identity["id"])
        if parent_id in children:
            raise ValueError(
                f"{where} [identity] inherits: expected another {kind.argument}, "
                f"got a circle {' -> '.join((*children, parent_id))}."
            )
        parent = read_entry(kind, parent_id, children=children)
        inherited = {
            name: _inherited(value, parent.id) for name, value in parent.values.items()
        }
        values = {**inherited, **values}
    _check(kind, values, where)
    return Entry(
        MappingProxyType(identity),
        MappingProxyType(values),
        MappingProxyType(curves),
        shipped,
    )


def _inherited(value: Value, parent: str) -> Value:
    spread = value.spread
    if spread is not None:
        spread = min(INHERITED_SPREAD * spread, max(WIDEST_SPREAD, spread))
    return dataclasses.replace(
        value, spread=spread, source=f"as {parent}: {value.source}"
    )


def normalised(name: str) -> str:
    """Returns `name` in lower case with hyphens and without the vendor."""
    name = re.sub(r"[\s_]+", "-", name.strip().casefold())
    return name.removeprefix("nvidia-").removeprefix("amd-")


@functools.cache
def known_ids(kind: Kind) -> tuple[str, ...]:
    """Returns the ids of the entries that come with the package."""
    return tuple(sorted(path.stem for path in (DATA / kind.folder).glob("*.toml")))


@functools.cache
def aliases(kind: Kind) -> Mapping[str, str]:
    """Returns every shipped alias, normalised, with the id that it stands for."""
    found = {}
    for identifier in known_ids(kind):
        for alias in _shipped(kind, identifier).identity["aliases"]:
            found[normalised(alias)] = identifier
    return MappingProxyType(found)


@functools.cache
def _shipped(kind: Kind, identifier: str, children: tuple[str, ...] = ()) -> Entry:
    path = DATA / kind.folder / f"{identifier}.toml"
    data = parse(path, argument=kind.argument)
    return _entry(kind, data, where=path.name, shipped=True, children=children)


def read_entry(kind: Kind, source: Source, children: tuple[str, ...] = ()) -> Entry:
    """Returns the entry at `source`: an id, an alias, a TOML file or its tables.

    Raises:
        ValueError: Nothing is known by that name, or the file does not hold what it
            must; the message says where, what and what to do.
    """
    if isinstance(source, Mapping):
        where = f"{kind.argument} tables"
        return _entry(kind, source, where=where, shipped=False, children=children)
    if isinstance(source, Path) or source.endswith(".toml"):
        path = Path(source).expanduser()
        data = parse(path, argument=kind.argument)
        return _entry(kind, data, where=path.name, shipped=False, children=children)
    name = normalised(text(source, where=kind.argument))
    if name in known_ids(kind):
        return _shipped(kind, name, children)
    if name in aliases(kind):
        return _shipped(kind, aliases(kind)[name], children)
    close = difflib.get_close_matches(
        name, [*known_ids(kind), *aliases(kind)], n=4, cutoff=0.5
    )
    ids = dict.fromkeys(aliases(kind).get(match, match) for match in close)
    raise ValueError(
        f"{kind.argument}: expected a known {kind.argument} or a path to a .toml file, "
        f"got {source!r}; {'near' if ids else 'known'}: "
        f"{', '.join(ids or known_ids(kind))}."
    )
