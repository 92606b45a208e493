"""The whole of a calibration: read tables, fit, cross-validate, keep the result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlens.calibration.calibrating import (
    CrossValidation,
    Problem,
    Progress,
    cross_validate,
    problem,
    random_folds,
    silent,
    solve,
)
from jaxlens.calibration.checkpoints import Checkpoint, fingerprint
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

NOTE = "note"  # the stage of what is said about a checkpoint
REFIT = {"polish": 25, "tolerance": 1e-6}  # a fold starts from the fit to all rows


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
    power: str | Path | None = None,
    tensor_parallel: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Returns the coefficients that explain serving tables best.

    Args:
        paths: Tables of the kind `serving`.
        options: How hard to try.
        gpu: Chip of tables without that column.
        stack: Stack of tables without that column.
        strict: Whether a bad row is an error instead of being set aside.
        power: Log of watts, for one result of `vllm bench serve`.
        tensor_parallel: GPUs of the engine of such a result.
        checkpoint: File to go on from after an interruption; gone in the end.
        progress: Called with a stage, what of it is done, of how much, and a detail.
    """
    options = options or Options()
    given: Any = {"gpu": gpu, "stack": stack, "strict": strict, "power": power}
    given["tensor_parallel"] = tensor_parallel
    tables = [read_table(path, **given) for path in paths]
    _check(tables)
    with jax.enable_x64(True):
        task = problem(tables)
        kept = Checkpoint(checkpoint, _fingerprint(task, tables, options))
        if kept.note:
            progress(NOTE, 0, 0, kept.note)
        found = solve(task, options, checkpoint=kept, progress=progress)
        if not np.isfinite(float(found.loss)):
            raise ValueError(
                "calibrate: expected a finite loss, got none; "
                "look for impossible rows with `jaxlens validate`."
            )
        done = converged(found, options)
        validation = cross_validate(
            task,
            _folds(task),
            _refit(options),
            found.scores,
            checkpoint=kept if done else None,
            progress=progress,
        )
        fitted = profiles(task, found, validation, tables, options)
        result = Calibration(
            task=task,
            fit=found,
            validation=validation,
            profiles=tuple(fitted),
            report=_report(task, found, validation, tables, options),
        )
    if done:  # else more steps go on from here
        kept.remove()
    return result


def _fingerprint(task: Problem, tables: Sequence[Table], options: Options) -> str:
    known = task.evidence.parameters
    return fingerprint(
        task.evidence,
        [table.sha256 for table in tables],
        _folds(task).tolist(),
        replace(options, polish=0),  # more steps go on from where fewer ended
        known.scores,
        known.coefficients,
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
