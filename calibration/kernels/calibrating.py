"""Fits of all kernel formulas on op tables, each judged on shapes that were kept back.

Coefficients are pooled from coarse to fine: a number format, a kernel in that format, that
kernel on one chip. Formulas are written in shares of datasheet facts, so that a pool says
something about every chip; each level is a prior for the next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
from jaxlens.calibration.kernels.formulas import Columns, Family, Labels, values_of
from jaxlens.calibration.kernels.groups import SEPARATOR, folds, group_names, members
from jaxlens.calibration.kernels.kernel_fits import Group, KernelFits, Level, Levels
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
    # optax mixes integer counts with floats, which strict promotion forbids.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
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


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The rows of one family, ready to fit."""

    features: Mapping[str, np.ndarray]
    log_target: np.ndarray
    scored: np.ndarray
    weights: np.ndarray
    kept_back: np.ndarray


def _fit_family(
    family: Family,
    columns: Columns,
    target: np.ndarray,
    options: Options,
    progress: Progress | None,
) -> Levels:
    scored = family.scored(columns)
    data = _Data(
        features=family.features(columns),
        log_target=np.log(target),
        scored=scored,
        weights=np.where(scored, 1.0, options.unscored_weight),
        kept_back=folds(columns, family.shape, options.folds, options.seed) == 0,
    )
    by_level = [
        members(group_names(columns, labels, family.kind)) for labels in family.levels
    ]
    count = _counter(family.kind, sum(map(len, [*by_level, by_level[-1]])), progress)
    parents = None  # scores of the coarser pool, for every row
    levels: Levels = {}
    for labels, groups in zip(family.levels, by_level, strict=True):
        levels[labels], parents = _fit_level(
            family, data, labels, groups, parents, options, count
        )
    return levels


def _fit_level(
    family: Family,
    data: _Data,
    labels: Labels,
    groups: Mapping[str, np.ndarray],
    parents: np.ndarray | None,
    options: Options,
    count: Callable[[int], None],
) -> tuple[Level, np.ndarray]:
    """Returns the groups of one level, and their scores on the rows that were learnt.

    Shipped coefficients of the finest level see all rows; their held-out errors are those
    of coefficients that did not.
    """
    learnt = {name: rows[~data.kept_back[rows]] for name, rows in groups.items()}
    problems = _problems(family, groups, learnt, parents, options)
    starts = np.stack([problem.prior for problem in problems])
    steps = options.steps if parents is None else options.group_steps
    search = Search(
        steps=steps, polish=options.polish, learning_rate=options.learning_rate
    )
    inputs = (data.features, data.log_target, data.weights)
    scores = fit_problems(family, *inputs, problems, starts, options, search, count)
    of_rows = np.empty((len(data.log_target), scores.shape[1]))
    for rows, own in zip(groups.values(), scores, strict=True):
        of_rows[rows] = own
    values = values_of(family.coefficients, of_rows)
    errors = log_predictions(family, values, data.features) - data.log_target
    judged = data.kept_back & data.scored
    if labels == family.levels[-1]:
        problems = _problems(family, groups, groups, parents, options)
        search = Search(steps=0, polish=options.polish, learning_rate=0.0)
        scores = fit_problems(family, *inputs, problems, scores, options, search, count)
    level = {}
    for (name, rows), own in zip(groups.items(), scores, strict=True):
        level[name] = Group(
            labels=dict(zip(labels, name.split(SEPARATOR), strict=True)),
            values=_values(family, own),
            rows=int(data.scored[rows].sum()),
            held_out_median_ape=_median(errors, rows[judged[rows]], learnt[name]),
        )
    return level, of_rows


def _counter(kind: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(kind, done, total)

    return count


def _problems(
    family: Family,
    groups: Mapping[str, np.ndarray],
    learnt: Mapping[str, np.ndarray],
    parents: np.ndarray | None,
    options: Options,
) -> list[Problem]:
    """Returns one problem per group; one of which nothing is learnt keeps its prior."""
    spread = 1.0 if parents is None else options.group_spread
    none = np.zeros(len(family.coefficients))
    return [
        Problem(
            rows=learnt[name],
            prior=none if parents is None else parents[rows[0]],
            spread=spread,
        )
        for name, rows in groups.items()
    ]


def _median(errors: np.ndarray, judged: np.ndarray, learnt: np.ndarray) -> float | None:
    if not len(judged) or not len(learnt):
        return None
    return float(np.median(np.abs(np.expm1(errors[judged]))))


def _values(family: Family, scores: np.ndarray) -> dict[str, float]:
    values = values_of(family.coefficients, scores)
    return {name: float(value) for name, value in values.items()}
