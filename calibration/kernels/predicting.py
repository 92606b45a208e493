"""Predicted seconds and joules of the rows of an op table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration.kernels.chip_facts import Chips, facts_of
from jaxlens.calibration.kernels.evaluation import log_predictions
from jaxlens.calibration.kernels.families import FAMILIES, POWER_FAMILIES, rows_of
from jaxlens.calibration.kernels.formulas import Columns, Family
from jaxlens.calibration.kernels.groups import SEPARATOR, group_names, members
from jaxlens.calibration.kernels.kernel_fits import (
    Group,
    KernelFits,
    Levels,
    load_kernel_fits,
)
from jaxlens.calibration.measured_tables import Table
from jaxlens.hardware import Chip


def predict_table(
    table: Table,
    fits: KernelFits | None = None,
    chips: Mapping[str, Chip | str | Path] | None = None,
) -> dict[str, Any]:
    """Returns predictions for every row of an op table.

    Args:
        table: Kind gemm, attention_prefill, attention_decode, moe, collectives or
            alltoall.
        fits: Coefficients; those of the package where not given.
        chips: Chips or chip files by the id that the table uses, beside those of the
            catalogue and those whose facts `fits` holds.

    Returns:
        `seconds` (for alltoall the sum of `dispatch_seconds` and `combine_seconds`, which
        are there as well); `joules` and `watts`, or None where no power was ever fitted;
        `own_group`, whether a row's own group was fitted; `notes` on stand-ins.
    """
    columns = rows_of(table)
    if fits is None:
        fits = load_kernel_fits(np.unique(columns["gpu"]).tolist())
    family = FAMILIES[table.kind]
    levels = fits.levels.get("seconds", {}).get(table.kind, {})
    values, own, notes = _coefficients(family, columns, levels, table.source)
    facts = {**fits.facts, **facts_of(chips)}
    features = family.features(columns, facts)
    seconds = np.exp(log_predictions(family, values, features))
    found: dict[str, Any] = {"seconds": seconds, "own_group": own, "notes": notes}
    found |= _energy(table.kind, columns, seconds, fits, facts)
    if table.kind == "alltoall":
        dispatch, combine = np.split(seconds, 2)
        found |= {"dispatch_seconds": dispatch, "combine_seconds": combine}
        found |= {"seconds": dispatch + combine, "own_group": np.split(own, 2)[0]}
    return found


def _energy(
    kind: str, columns: Columns, seconds: np.ndarray, fits: KernelFits, facts: Chips
) -> dict[str, np.ndarray | None]:
    levels = fits.levels.get("watts", {}).get(kind)
    if not levels:
        return {"watts": None, "joules": None}
    family = POWER_FAMILIES[kind]
    running = {**columns, "seconds": seconds}
    values, _, _ = _coefficients(family, running, levels, kind)
    watts = np.exp(log_predictions(family, values, family.features(running, facts)))
    return {"watts": watts, "joules": watts * seconds}


def _coefficients(
    family: Family, columns: Columns, levels: Levels, where: str
) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Returns coefficients of every row, whether they are its own, and notes."""
    if not levels:
        raise ValueError(f"{where}: expected fitted {family.kind} kernels, got none.")
    groups = members(group_names(columns, family.levels[-1], family.kind))
    rows = len(columns["gpu"])
    values = {c.name: np.empty(rows) for c in family.coefficients}
    own, notes = np.zeros(rows, bool), []
    for name, positions in groups.items():
        group, stands_in = stand_in(family, name, levels)
        for key in values:
            values[key][positions] = group.values[key]
        own[positions] = not stands_in
        if stands_in:
            notes.append(f"{name}: not fitted; priced as {group.name}.")
    return values, own, notes


def stand_in(family: Family, name: str, levels: Levels) -> tuple[Group, bool]:
    """Returns the group called `name`, or else the one that is nearest to it.

    First groups of the same chip that agree in what has to match (the number format), the
    more labels the better, then the more rows; then pools, from fine to coarse.
    """
    leaf = family.levels[-1]
    groups = levels.get(leaf, {})
    if name in groups:
        return groups[name], False
    labels = dict(zip(leaf, name.split(SEPARATOR), strict=True))
    same = ("gpu", *family.must_match)
    near = [g for g in groups.values() if all(g.labels[k] == labels[k] for k in same)]
    if near:
        return max(near, key=lambda group: _likeness(group, labels)), True
    for level in reversed(family.levels[:-1]):
        wanted = {**labels, "kind": family.kind}
        pooled = SEPARATOR.join(wanted[label] for label in level)
        if pooled in levels.get(level, {}):
            return levels[level][pooled], True
    coarse = levels.get(family.levels[0]) or groups
    return max(coarse.values(), key=lambda group: group.rows), True


def _likeness(group: Group, labels: Mapping[str, str]) -> tuple[int, int]:
    return sum(group.labels[key] == labels[key] for key in labels), group.rows
