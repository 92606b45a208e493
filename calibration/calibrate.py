"""The whole of a calibration: read tables, fit, cross-validate, keep the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlens.calibration.calibrating import (
    CrossValidation,
    Problem,
    cross_validate,
    problem,
    random_folds,
    solve,
)
from jaxlens.calibration.fits import Fit, Options
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.results import (
    SILENT,
    WEAK,
    converged,
    identifiability,
    profiles,
    reason,
    summary,
)
from jaxlens.calibration.tables import read_table
from jaxlens.fitted_profiles import FittedProfile

REFIT = {"polish": 8, "tolerance": 1e-4}  # a fold starts from the fit to all rows


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fit to serving tables, validated on architectures that it has not seen."""

    task: Problem
    fit: Fit
    validation: CrossValidation
    profiles: tuple[FittedProfile, ...]
    report: dict[str, Any]


def calibrate(
    paths: Sequence[str | Path],
    *,
    options: Options | None = None,
    gpu: str | None = None,
    stack: str | None = None,
    strict: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> Calibration:
    """Returns the coefficients that explain serving tables best.

    Args:
        paths: Tables of the kind `serving`.
        options: How hard to try.
        gpu: Chip of tables without that column.
        stack: Stack of tables without that column.
        strict: Whether a bad row is an error instead of being set aside.
        progress: Called with the name of each stage as it begins.
    """
    options = options or Options()
    progress("reading tables")
    tables = [read_table(p, gpu=gpu, stack=stack, strict=strict) for p in paths]
    _check(tables)
    with jax.enable_x64(True):
        task = problem(tables)
        progress(f"fitting {len(task.evidence.parameters.scores)} scores")
        found = solve(task, options)
        if not np.isfinite(float(found.loss)):
            raise ValueError(
                "calibrate: expected a finite loss, got none; "
                "look for impossible rows with `jaxlens validate`."
            )
        progress("validating on architectures left out")
        folds = _folds(task)
        validation = cross_validate(task, folds, _refit(options), found.scores)
        fitted = profiles(task, found, validation, tables, options)
        return Calibration(
            task=task,
            fit=found,
            validation=validation,
            profiles=tuple(fitted),
            report=_report(task, found, validation, tables, options),
        )


def _refit(options: Options) -> Options:
    return Options(**{**vars(options), **REFIT})


def _folds(task: Problem) -> np.ndarray:
    """Layer shapes; random folds where a table has one only."""
    folds = task.labels["architecture"]
    return folds if len(set(folds)) > 1 else random_folds(len(folds))


def _check(tables: Sequence[Table]) -> None:
    for table in tables:
        if table.kind != "serving":
            raise ValueError(
                f"calibrate: {table.source}: expected a serving table, got one of kind "
                f"{table.kind}; kernels and forward passes have fits of their own."
            )


def _report(
    task: Problem,
    found: Fit,
    validation: CrossValidation,
    tables: Sequence[Table],
    options: Options,
) -> dict[str, Any]:
    learned = identifiability(task, found)
    silent = [name for name, share in learned.items() if share < SILENT]
    return {
        "rows": len(task.labels["gpu"]),
        "skipped": sum(len(table.skipped) for table in tables),
        "reason": reason(found, options),
        "converged": converged(found, options),
        "loss": float(found.loss),
        **summary(task, found, validation),
        "identifiability": learned,
        "scores": len(learned),
        "scores_moved": sum(share >= WEAK for share in learned.values()),
        "not_identified": silent,
        "notes": [note for table in tables for note in table.notes],
    }
