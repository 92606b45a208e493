"""What a fit leaves behind: one profile for each pair of chip and stack."""

import datetime
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration.calibrating import (
    CrossValidation,
    Problem,
    coefficient_variances,
    error_report,
    residuals_at,
)
from jaxlens.calibration.coverage import NAMES, coverage, scatter
from jaxlens.calibration.fits import Fit, Options
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.parameters import SHARES, coefficients, row_scores
from jaxlens.fitted_profiles import FittedProfile, FittedValue, save_profile
from jaxlens.intervals import TYPICAL

WEAK = 0.5  # share of a prior's variance that must go for data to have spoken
SILENT = 0.1  # share below which data say next to nothing


def profiles(
    task: Problem,
    found: Fit,
    validation: CrossValidation,
    tables: Sequence[Table],
    options: Options,
) -> list[FittedProfile]:
    """Returns the fitted profile of every pair of chip and stack in the tables."""
    chip, stack = coefficients(
        task.evidence.parameters, row_scores(task.evidence.parameters, found.scores)
    )
    values = {
        **{f"chip.{name}": np.asarray(leaf) for name, leaf in vars(chip).items()},
        **{f"stack.{name}": np.asarray(leaf) for name, leaf in vars(stack).items()},
    }
    pairs = list(zip(task.labels["gpu"], task.labels["stack"], strict=True))
    shared = {
        "tables": [f"{Path(t.source).name} sha256 {t.sha256[:16]}" for t in tables],
        "fit": reason(found, options),
        "seed": options.seed,
    }
    variances = coefficient_variances(task, found, options)
    return [
        _profile(
            task, found, validation, values, pair, np.array(pairs), shared, variances
        )
        for pair in dict.fromkeys(pairs)
    ]


def _profile(
    task: Problem,
    found: Fit,
    validation: CrossValidation,
    values: Mapping[str, np.ndarray],
    pair: tuple[str, str],
    pairs: np.ndarray,
    shared: Mapping[str, Any],
    variances: np.ndarray,
) -> FittedProfile:
    rows = np.flatnonzero((pairs == np.array(pair)).all(axis=1))
    names = task.evidence.parameters.coefficients
    covariance = _covariance(task, found, values, int(rows[0]))
    sd = dict(zip(names, np.sqrt(np.diag(covariance)), strict=True))
    fitted = {
        name: FittedValue(value=_short(values[name][rows[0]]), sd=_short(sd[name]))
        for name in names
    }

    def layer(prefix: str) -> dict[str, FittedValue]:
        return {
            name.partition(".")[2]: value
            for name, value in fitted.items()
            if name.startswith(prefix)
        }

    left_out = validation.residuals[rows]
    return FittedProfile(
        chip=str(pair[0]),
        stack=str(pair[1]),
        created=datetime.date.today().isoformat(),
        fitted_on=tuple(shared["tables"]),
        rows=len(rows),
        chip_values=layer("chip."),
        stack_values=layer("stack."),
        scatter=_scatter(task, left_out, rows),
        covariance_names=names,
        covariance=tuple(_short(x) for x in covariance.ravel()),
        provenance={
            **shared,
            "ranges": _ranges(task, rows),
            TYPICAL: {
                name: _short(np.median(variances[rows, column]))
                for column, name in enumerate(NAMES)
            },
            "errors_left_out_architectures": _errors(task, left_out, rows),
            "errors_in_sample": _errors(
                task, residuals_at(task, found.scores)[rows], rows
            ),
        },
    )


def reason(found: Fit, options: Options) -> str:
    """Returns why a fit stopped, in words."""
    if not np.isfinite(float(found.loss)):
        return "failed: the loss is not finite"
    if converged(found, options):
        return "converged"
    return f"stopped after {options.polish} second-order steps, not converged"


def converged(found: Fit, options: Options) -> bool:
    """Returns whether the last step of a fit hardly changed its finite loss."""
    small = float(found.last_decrease) <= options.tolerance
    return bool(np.isfinite(float(found.loss))) and small


def identifiability(task: Problem, found: Fit) -> dict[str, float]:
    """Returns, by score, the share of its prior variance that the data took away.

    Near 0 the data are silent and the value is its prior; near 1 the prior hardly matters.
    The prior of every score has variance one, so this reads off the Gauss-Newton spectrum.
    """
    variance = np.diag(np.linalg.inv(np.asarray(found.hessian)))
    return {
        f"{score.coefficient} of {score.owner}": float(1.0 - v)
        for score, v in zip(task.evidence.parameters.scores, variance, strict=True)
    }


def save(folder: Path, results: Sequence[FittedProfile]) -> list[Path]:
    """Writes profiles as `<chip>.<stack>.toml` into `folder`; returns their paths.

    All of them are written aside before the first replaces an old one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{result.chip}.{result.stack}.toml" for result in results]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as aside:
        for name, result in zip(names, results, strict=True):
            save_profile(Path(aside) / name, result)
        for name in names:
            os.replace(Path(aside) / name, folder / name)
    return [folder / name for name in names]


def _covariance(
    task: Problem, found: Fit, values: Mapping[str, np.ndarray], row: int
) -> np.ndarray:
    """Laplace covariance of the logarithms of one row's coefficients."""
    known = task.evidence.parameters
    spread, prior = np.asarray(known.spread)[row], np.asarray(known.prior)[row]
    slope = spread.copy()
    for position, name in enumerate(known.coefficients):
        if name.partition(".")[2] in SHARES:
            slope[position] *= (1.0 - values[name][row]) / (1.0 - prior[position])
    weight = np.asarray(known.membership)[:, row][:, None] * np.asarray(known.selector)
    to_log = (weight * slope[None, :]).T
    return to_log @ np.linalg.inv(np.asarray(found.hessian)) @ to_log.T


def _scatter(task: Problem, left_out: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Standard deviation that makes 80 % intervals cover 80 % of left-out rows."""
    result = {}
    for column, name in enumerate(NAMES):
        known = np.isfinite(np.asarray(task.evidence.measured)[rows, column])
        spread = scatter(left_out[known, column])
        if spread is not None:
            result[name] = _short(spread)
    return result


def _ranges(task: Problem, rows: np.ndarray) -> dict[str, list[float]]:
    layout = task.evidence.rows.deployments
    gpus = layout.tensor_parallel * layout.pipeline_parallel * layout.data_parallel
    found = {
        "batch": layout.batch,
        "gpus": gpus,
        "prompt_tokens": np.asarray(task.labels["prompt_tokens"], float),
        "output_tokens": np.asarray(task.labels["output_tokens"], float),
    }
    return {
        name: [_short(np.asarray(v)[rows].min()), _short(np.asarray(v)[rows].max())]
        for name, v in found.items()
    }


def _errors(task: Problem, residuals: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    result = {}
    for column, name in enumerate(NAMES):
        known = np.isfinite(np.asarray(task.evidence.measured)[rows, column])
        if known.any():
            errors = np.abs(np.expm1(residuals[known, column]))
            result[f"{name}_mape"] = _short(errors.mean())
            result[f"{name}_median_ape"] = _short(np.median(errors))
    return result


def _short(value: Any) -> float:
    """Five significant digits are more than any coefficient deserves."""
    return float(f"{float(value):.5g}")


def summary(task: Problem, found: Fit, validation: CrossValidation) -> dict[str, Any]:
    """Returns errors in sample and left out, and coverage, by chip; fit for JSON."""
    return {
        "in_sample": error_report(task, residuals_at(task, found.scores)),
        "left_out": error_report(task, validation.residuals),
        "coverage": coverage(task, validation),
    }
