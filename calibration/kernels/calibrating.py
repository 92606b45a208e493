"""Fits of all kernel formulas on op tables, each judged on shapes that were kept back.

Coefficients are pooled from coarse to fine: a number format, a kernel in that format, that
kernel on one chip. Formulas are written in shares of datasheet facts, so that a pool says
something about every chip; each level is a prior for the next.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jaxlens.calibration.kernels.evaluation import log_predictions
from jaxlens.calibration.kernels.families import FAMILIES, POWER_FAMILIES, rows_of
from jaxlens.calibration.kernels.fitting import (
    Options,
    Problem,
    Progress,
    Search,
    fit_problems,
)
from jaxlens.calibration.kernels.formulas import Columns, Family, values_of
from jaxlens.calibration.kernels.groups import folds, group_names, members
from jaxlens.calibration.kernels.kernel_fits import Group, KernelFits, Levels
from jaxlens.calibration.measured_tables import Table


def fit_kernels(
    tables: Sequence[Table],
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> KernelFits:
    """Returns coefficients of every group of rows in `tables`, and of their pools.

    Args:
        tables: At most one of each kind of op table.
        options: How hard to try.
        progress: Called with a family, groups done and groups in all.
    """
    options = options or Options()
    levels: dict[str, dict[str, Levels]] = {}
    provenance = {}
    with jax.enable_x64(True):
        for table in tables:
            columns = rows_of(table)
            provenance[table.kind] = table.provenance
            found = _fit_family(
                FAMILIES[table.kind], columns, columns["seconds"], options, progress
            )
            levels.setdefault("seconds", {})[table.kind] = found
            if table.kind in POWER_FAMILIES and table.has("watts"):
                family = POWER_FAMILIES[table.kind]
                own = family.scored(columns)
                if own.any():
                    columns = {name: values[own] for name, values in columns.items()}
                    found = _fit_family(
                        family, columns, columns["watts"], options, progress
                    )
                    levels.setdefault("watts", {})[table.kind] = found
    return KernelFits(levels=levels, provenance=provenance)


def _fit_family(
    family: Family,
    columns: Columns,
    target: np.ndarray,
    options: Options,
    progress: Progress | None,
) -> Levels:
    features = family.features(columns)
    log_target = np.log(target)
    scored = family.scored(columns)
    weights = np.where(scored, 1.0, options.unscored_weight)
    kept_back = folds(columns, family.shape, options.folds, options.seed) == 0
    by_level = [
        members(group_names(columns, labels, family.kind)) for labels in family.levels
    ]
    total = sum(map(len, by_level)) + len(by_level[-1])
    done = [0]

    def advance(count: int) -> None:
        done[0] += count
        if progress is not None:
            progress(family.kind, done[0], total)

    def solve(problems: list[Problem], starts: np.ndarray, search: Search):
        data = (features, log_target, weights, problems, starts)
        return fit_problems(family, *data, options, search, advance)

    parents = None  # scores of the coarser pool, for every row
    levels: Levels = {}
    for labels, groups in zip(family.levels, by_level, strict=True):
        leaf = labels == family.levels[-1]
        prior = _prior(family, groups, parents)
        spread = 1.0 if parents is None else options.group_spread
        problems = [
            Problem(rows=_learnt(rows, kept_back), prior=start, spread=spread)
            for rows, start in zip(groups.values(), prior, strict=True)
        ]
        steps = options.steps if parents is None else options.group_steps
        search = Search(
            steps=steps, polish=options.polish, learning_rate=options.learning_rate
        )
        scores = solve(problems, prior, search)
        parents = np.empty((len(log_target), scores.shape[1]))
        for rows, own in zip(groups.values(), scores, strict=True):
            parents[rows] = own
        values = values_of(family.coefficients, parents)
        errors = log_predictions(family, values, features) - log_target
        judged = {
            name: _judge(errors, rows, kept_back & scored)
            for name, rows in groups.items()
        }
        if leaf:  # the shipped coefficients see all rows
            everything = [
                Problem(rows=rows, prior=start, spread=spread)
                for rows, start in zip(groups.values(), prior, strict=True)
            ]
            again = Search(steps=0, polish=options.polish, learning_rate=0.0)
            scores = solve(everything, scores, again)
        levels[labels] = {
            name: Group(
                labels=_labels(labels, name),
                values=_values(family, own),
                rows=int(scored[rows].sum()),
                held_out_median_ape=judged[name],
            )
            for (name, rows), own in zip(groups.items(), scores, strict=True)
        }
    return levels


def _prior(
    family: Family, groups: Mapping[str, np.ndarray], parents: np.ndarray | None
) -> np.ndarray:
    if parents is None:
        return np.zeros((len(groups), len(family.coefficients)))
    return np.stack([parents[rows[0]] for rows in groups.values()])


def _learnt(rows: np.ndarray, kept_back: np.ndarray) -> np.ndarray:
    learnt = rows[~kept_back[rows]]
    return learnt if len(learnt) else rows


def _judge(errors: np.ndarray, rows: np.ndarray, judged: np.ndarray) -> float | None:
    own = rows[judged[rows]]
    return float(np.median(np.abs(np.expm1(errors[own])))) if len(own) else None


def _labels(labels: Sequence[str], name: str) -> dict[str, str]:
    return dict(zip(labels, name.split(" | "), strict=True))


def _values(family: Family, scores: np.ndarray) -> dict[str, float]:
    values = values_of(family.coefficients, scores)
    return {name: float(value) for name, value in values.items()}
