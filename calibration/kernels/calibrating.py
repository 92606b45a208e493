"""Fits of all kernel formulas on op tables, each judged on shapes that were kept back.

Coefficients are pooled from coarse to fine: a number format, a kernel in that format, that
kernel on one chip. Formulas are written in shares of datasheet facts, so that a pool says
something about every chip; each level is a prior for the next. Tables of few rows start from
groups and pools that were fitted before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from jaxlens.calibration.kernels.chip_facts import Chips, facts_of
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
from jaxlens.calibration.kernels.prior_fits import fit_with_priors
from jaxlens.calibration.measured_tables import Table
from jaxlens.hardware import Chip


def fit_kernels(
    tables: Sequence[Table],
    *,
    options: Options | None = None,
    priors: KernelFits | None = None,
    chips: Mapping[str, Chip | str | Path] | None = None,
    progress: Progress | None = None,
) -> KernelFits:
    """Returns coefficients of every group of rows in `tables`, and of their pools.

    Args:
        tables: At most one of each kind of op table.
        options: How hard to try.
        priors: Groups and pools that say where those of `tables` may lie, such as
            `load_kernel_fits()`: for tables of few rows or of one chip. Where not given,
            pools are fitted to `tables` themselves.
        chips: Chips or chip files, by the id that tables use, beside those of the
            catalogue.
        progress: Called with a family, groups done and groups in all.
    """
    options = options or Options()
    facts = facts_of(chips)
    levels: dict[str, dict[str, Levels]] = _pools(priors)
    provenance = {}
    # optax mixes integer counts with floats, which strict promotion forbids.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        for table in tables:
            provenance[table.kind] = table.provenance
            for target, family, columns in _targets(table):
                of_kind = levels.setdefault(target, {})
                if priors is None:
                    found = _fit_family(
                        family, columns, target, options, facts, progress
                    )
                else:
                    known = priors.levels.get(target, {}).get(table.kind, {})
                    found = _extend_family(
                        family, columns, target, known, options, facts, progress
                    )
                of_kind[table.kind] = found
    return KernelFits(
        levels=levels,
        provenance=provenance,
        facts=facts,
        pooled_from=provenance if priors is None else priors.pooled_from,
    )


def _targets(table: Table) -> Iterator[tuple[str, Family, Columns]]:
    """Yields what can be explained of a table: its seconds, and watts where they are."""
    columns = rows_of(table)
    yield "seconds", FAMILIES[table.kind], columns
    if table.kind in POWER_FAMILIES and table.has("watts"):
        family = POWER_FAMILIES[table.kind]
        own = family.scored(columns)
        if own.any():
            yield "watts", family, {name: v[own] for name, v in columns.items()}


def _pools(priors: KernelFits | None) -> dict[str, dict[str, Levels]]:
    """Returns the pools of `priors`, which stand in for kinds without a table."""
    if priors is None:
        return {}
    return {
        target: {
            kind: {of: groups for of, groups in levels.items() if "gpu" not in of}
            for kind, levels in kinds.items()
        }
        for target, kinds in priors.levels.items()
    }


def _extend_family(
    family: Family,
    columns: Columns,
    target: str,
    known: Levels,
    options: Options,
    facts: Chips,
    progress: Progress | None,
) -> Levels:
    groups = np.unique(group_names(columns, family.levels[-1], family.kind))
    count = _counter(family.kind, len(groups), progress)
    return fit_with_priors(family, columns, target, known, options, facts, count)


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
    target: str,
    options: Options,
    facts: Chips,
    progress: Progress | None,
) -> Levels:
    scored = family.scored(columns)
    data = _Data(
        features=family.features(columns, facts),
        log_target=np.log(columns[target]),
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
        steps=steps,
        polish=options.polish,
        learning_rate=options.learning_rate,
        noise=options.noise,
    )
    inputs = (data.features, data.log_target, data.weights)
    scores, _ = fit_problems(family, *inputs, problems, starts, options, search, count)
    of_rows = np.empty((len(data.log_target), scores.shape[1]))
    for rows, own in zip(groups.values(), scores, strict=True):
        of_rows[rows] = own
    values = values_of(family.coefficients, of_rows)
    errors = log_predictions(family, values, data.features) - data.log_target
    judged = data.kept_back & data.scored
    if labels == family.levels[-1]:
        problems = _problems(family, groups, groups, parents, options)
        search = replace(search, steps=0, learning_rate=0.0)
        scores, _ = fit_problems(
            family, *inputs, problems, scores, options, search, count
        )
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
            factor=spread * np.eye(len(none)),
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
