"""Groups fitted from what other groups have shown: those of a chip that was just measured.

Every row of a small group is predicted once by a fit that has not seen its shape; large groups
keep one fold back. Which pool is nearest is chosen anew in every fold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlens.calibration.kernels.chip_facts import Chips
from jaxlens.calibration.kernels.evaluation import log_predictions
from jaxlens.calibration.kernels.fitting import Options, Problem, Search, fit_problems
from jaxlens.calibration.kernels.formulas import Columns, Family, values_of
from jaxlens.calibration.kernels.group_priors import Prior, priors_of
from jaxlens.calibration.kernels.groups import (
    SEPARATOR,
    even_folds,
    folds,
    group_names,
    members,
)
from jaxlens.calibration.kernels.kernel_fits import Group, Level, Levels


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of one group."""

    features: dict[str, np.ndarray]
    log_target: np.ndarray
    scored: np.ndarray
    weights: np.ndarray
    spreads: np.ndarray | None  # measured, relative
    shape: Columns


def fit_with_priors(
    family: Family,
    columns: Columns,
    target: str,
    levels: Levels,
    options: Options,
    facts: Chips,
    count: Callable[[int], None],
) -> Levels:
    """Returns the groups of `columns`, and the pools of `levels` that were their priors.

    Args:
        family: Explains the rows.
        columns: Of the table.
        target: Column that is explained.
        levels: Fitted groups and pools; none are needed.
        options: How hard to try.
        facts: Of chips that the catalogue lacks.
        count: Called with the number of groups that were finished.
    """
    leaf = family.levels[-1]
    level: Level = {}
    for name, rows in members(group_names(columns, leaf, family.kind)).items():
        labels = dict(zip(leaf, name.split(SEPARATOR), strict=True))
        priors = priors_of(family, labels, levels, options.few_spread)
        own = {key: values[rows] for key, values in columns.items()}
        group = _rows_of(family, own, target, options, facts)
        level[name] = _fit_group(family, labels, group, priors, options)
        count(1)
    pools = {of: groups for of, groups in levels.items() if "gpu" not in of}
    pools.pop(leaf, None)
    return {**pools, leaf: level}


def _rows_of(
    family: Family, columns: Columns, target: str, options: Options, facts: Chips
) -> _Rows:
    scored = family.scored(columns)
    weights = np.where(scored, 1.0, options.unscored_weight)
    spreads = columns.get(f"{target}_spread")
    if spreads is not None:  # rows that say themselves that they are noisy count less
        weights = weights / (1.0 + (np.nan_to_num(spreads) / options.few_noise) ** 2)
    return _Rows(
        features=family.features(columns, facts),
        log_target=np.log(columns[target]),
        scored=scored,
        weights=weights,
        spreads=spreads,
        shape=columns,
    )


def _fit_group(
    family: Family,
    labels: dict[str, str],
    rows: _Rows,
    priors: Sequence[Prior],
    options: Options,
) -> Group:
    """Returns a group fitted to all of its rows, with the errors of fits that were not."""
    every = np.arange(len(rows.log_target))
    few = len(every) <= options.few_rows
    fold = (even_folds if few else folds)(
        rows.shape, family.shape, options.folds, options.seed
    )
    held_out = [every[fold == one] for one in range(options.folds if few else 1)]
    learnt = [np.setdiff1d(every, part) for part in held_out]
    fits = _nearest(family, rows, [every, *learnt], priors, options)
    errors = np.full(len(every), np.nan)
    for part, left, (scores, _) in zip(held_out, learnt, fits[1:], strict=True):
        if len(part) and len(left):
            values = values_of(family.coefficients, np.tile(scores, (len(part), 1)))
            inputs = {name: column[part] for name, column in rows.features.items()}
            found = log_predictions(family, values, inputs)
            errors[part] = np.expm1(found - rows.log_target[part])
    scores, prior = fits[0]
    values = values_of(family.coefficients, scores)
    known = np.abs(errors[rows.scored & np.isfinite(errors)])
    return Group(
        labels=labels,
        values={name: float(value) for name, value in values.items()},
        rows=int(rows.scored.sum()),
        held_out_median_ape=float(np.median(known)) if len(known) else None,
        held_out_mape=float(np.mean(known)) if len(known) else None,
        measured_spread=_median(rows.spreads),
        nearest=prior.name,
    )


def _nearest(
    family: Family,
    rows: _Rows,
    learnt: Sequence[np.ndarray],
    priors: Sequence[Prior],
    options: Options,
) -> list[tuple[np.ndarray, Prior]]:
    """Returns scores fitted to each of `learnt`, under the prior that makes it likeliest."""
    problems = [
        Problem(rows=part, prior=prior.mean, factor=prior.factor)
        for part in learnt
        for prior in priors
    ]
    scores, costs = fit_problems(
        family,
        rows.features,
        rows.log_target,
        rows.weights,
        problems,
        np.stack([problem.prior for problem in problems]),
        options,
        Search(
            steps=0,
            polish=2 * options.polish,
            learning_rate=0.0,
            noise=options.few_noise,
        ),
    )
    known = np.where(np.isfinite(costs), costs, np.inf)
    costs, count = known.reshape(len(learnt), -1), len(priors)
    best = np.argmin(costs, axis=1)
    return [
        (scores[position * count + one], priors[one])
        for position, one in enumerate(best.tolist())
    ]


def _median(spreads: np.ndarray | None) -> float | None:
    if spreads is None or not np.isfinite(spreads).any():
        return None
    return float(np.nanmedian(spreads))
