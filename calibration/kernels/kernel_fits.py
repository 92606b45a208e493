"""Fitted coefficients of kernel formulas, and the files that hold them.

One TOML file per chip holds its groups, `pooled.toml` the pools across chips. Each group
states its labels, the rows it was fitted on, its held-out error and its coefficients; units
stand once per family.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import jaxlens
from jaxlens.calibration.kernels.chip_facts import Facts
from jaxlens.calibration.kernels.families import FAMILIES, POWER_FAMILIES
from jaxlens.calibration.kernels.formulas import Family, Labels
from jaxlens.calibration.kernels.groups import SEPARATOR

SHIPPED = Path(jaxlens.__file__).parent / "data" / "kernels"
POOLED = "pooled"
DIGITS = 6
EXTRAS = ("held_out_mape", "measured_spread", "nearest")  # of groups with priors
TARGETS: Mapping[str, Mapping[str, Family]] = {
    "seconds": FAMILIES,
    "watts": POWER_FAMILIES,
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """The coefficients of one group of rows, and how well they do."""

    labels: Mapping[str, str]
    values: Mapping[str, float]
    rows: int  # scored ones, fitted and kept back
    held_out_median_ape: float | None  # on shapes kept back; none for too few
    held_out_mape: float | None = None
    measured_spread: float | None = None  # of its rows, relative, where they state one
    nearest: str | None = None  # fitted group or pool that was the prior

    @property
    def name(self) -> str:
        """The labels, joined."""
        return SEPARATOR.join(self.labels.values())


Level = dict[str, Group]  # by name
Levels = dict[Labels, Level]


@dataclass(frozen=True, kw_only=True)
class KernelFits:
    """All groups and pools, by target (seconds or watts), kind of table and level."""

    levels: Mapping[str, Mapping[str, Levels]]
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Facts] = field(default_factory=dict)  # of chips of their own
    pooled_from: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def report(self) -> dict[str, Any]:
        """Held-out errors of every family with groups, and of every group, for JSON."""
        return {
            target: {
                kind: _scores(family, of[kind])
                for kind, family in TARGETS[target].items()
                if family.levels[-1] in of.get(kind, {})
            }
            for target, of in self.levels.items()
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Writes one file per chip and one of pools; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for chip in [*self.chips, POOLED]:
            path = folder / f"{file_stem(chip)}.toml"
            _replace(path, "\n".join(_lines(self, chip)) + "\n")
            written.append(path)
        return written

    @property
    def chips(self) -> list[str]:
        """The chips that have groups of their own."""
        found = {
            group.labels["gpu"]
            for of in self.levels.values()
            for levels in of.values()
            for labels, level in levels.items()
            if "gpu" in labels
            for group in level.values()
        }
        return sorted(found)


def file_stem(chip: str) -> str:
    """Returns the name of the file of a chip: its id, without what paths do not take.

    >>> file_stem("h100-sxm"), file_stem("cpu: AMD EPYC, 1 threads")
    ('h100-sxm', 'cpu-AMD-EPYC-1-threads')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", chip).strip("-")


def _scores(family: Family, levels: Levels) -> dict[str, Any]:
    groups = levels.get(family.levels[-1], {})
    known = {
        name: group.held_out_median_ape
        for name, group in groups.items()
        if group.held_out_median_ape is not None
    }
    ranked = sorted(known, key=lambda name: -known[name])
    return {
        "groups": len(groups),
        "median_over_groups": float(np.median(list(known.values()))) if known else None,
        "worst_group": ranked[0] if ranked else None,
        "worst": known[ranked[0]] if ranked else None,
        "by_group": {
            name: {
                "rows": groups[name].rows,
                "median_ape": known[name],
                **{
                    key: value
                    for key in EXTRAS
                    if (value := getattr(groups[name], key)) is not None
                },
            }
            for name in ranked
        },
    }


def _lines(fits: KernelFits, chip: str) -> Iterable[str]:
    yield f"# Coefficients of kernel formulas on {chip}, fitted on measured op tables."
    yield "# held_out_median_ape: on shapes that were kept back from the fit."
    if chip in fits.facts:
        yield "# facts: of a chip that the catalogue may lack, in SI units."
        yield ""
        yield f"[facts.{json.dumps(chip)}]"
        yield from (f"{key} = {_number(v)}" for key, v in fits.facts[chip].items())
    kinds = {
        (target, kind): list(_groups(fits.levels[target][kind], chip))
        for target in fits.levels
        for kind in fits.levels[target]
    }
    for kind in sorted({kind for (_, kind), found in kinds.items() if found}):
        record = (fits.pooled_from if chip == POOLED else fits.provenance).get(kind)
        if record:
            yield ""
            yield f"[tables.{kind}]"
            yield from (f"{key} = {json.dumps(value)}" for key, value in record.items())
    for (target, kind), found in kinds.items():
        if not found:
            continue
        coefficients = TARGETS[target][kind].coefficients
        yield ""
        yield f"[units.{target}.{kind}]"
        yield from (f"{c.name} = {json.dumps(c.unit)}" for c in coefficients)
        for group in found:
            yield ""
            yield f"[[groups.{target}.{kind}]]"
            yield f"labels = {_inline(group.labels)}"
            yield f"rows = {group.rows}"
            if group.held_out_median_ape is not None:
                yield f"held_out_median_ape = {group.held_out_median_ape:.4f}"
            for key in EXTRAS:
                value = getattr(group, key)
                if value is not None:
                    shown = (
                        json.dumps(value) if isinstance(value, str) else f"{value:.4f}"
                    )
                    yield f"{key} = {shown}"
            yield f"coefficients = {_inline(group.values)}"


def _groups(levels: Levels, chip: str) -> Iterable[Group]:
    finest = max(levels, key=len)
    for labels, level in levels.items():
        if "gpu" not in labels or labels == finest:
            for group in level.values():
                if group.labels.get("gpu", POOLED) == chip:
                    yield group


def _inline(values: Mapping[str, str | float]) -> str:
    parts = [
        f"{key} = {json.dumps(value) if isinstance(value, str) else _number(value)}"
        for key, value in values.items()
    ]
    return "{ " + ", ".join(parts) + " }"


def _number(value: float) -> str:
    text = f"{float(value):.{DIGITS}g}"
    return text if any(mark in text for mark in ".en") else f"{text}.0"


def _replace(path: Path, text: str) -> None:
    """Writes a file in one step: a reader sees the old one or the new one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def load_kernel_fits(
    chips: Iterable[str] | None = None, folder: str | Path | None = None
) -> KernelFits:
    """Returns the fits of `chips` (all where not given) and the pools.

    Args:
        chips: Ids of chips; those without a file have pools only.
        folder: Where the files are; those of the package where not given.
    """
    folder = SHIPPED if folder is None else Path(folder)
    names = sorted(
        path.stem for path in folder.glob("*.toml") if not path.stem.endswith(".chip")
    )
    if POOLED not in names:
        raise ValueError(
            f"{folder}: expected {POOLED}.toml among fitted kernels, got "
            f"{', '.join(names) or 'nothing'}; fit them on op tables first."
        )
    wanted = names if chips is None else {*map(file_stem, chips), POOLED}
    levels: dict[str, dict[str, Levels]] = {}
    provenance: dict[str, Any] = {}
    pooled_from: dict[str, Any] = {}
    facts: dict[str, Facts] = {}
    for name in names:
        if name in wanted:
            document = _document(folder / f"{name}.toml")
            of = pooled_from if name == POOLED else provenance
            of.update(document.get("tables", {}))
            facts.update(document.get("facts", {}))
            _collect(document, levels)
    return KernelFits(
        levels=levels,
        provenance={**pooled_from, **provenance},
        facts=facts,
        pooled_from=pooled_from,
    )


@cache
def _document(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _collect(document: Mapping[str, Any], levels: dict[str, dict[str, Levels]]) -> None:
    for target, kinds in document.get("groups", {}).items():
        for kind, entries in kinds.items():
            for entry in entries:
                group = Group(
                    labels=entry["labels"],
                    values=entry["coefficients"],
                    rows=entry["rows"],
                    held_out_median_ape=entry.get("held_out_median_ape"),
                    **{key: entry.get(key) for key in EXTRAS},
                )
                found = levels.setdefault(target, {}).setdefault(kind, {})
                found.setdefault(tuple(group.labels), {})[group.name] = group
