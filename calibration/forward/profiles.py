"""Fitted profiles of forward passes: one for each pair of chip and stack."""

import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlens.calibration.forward.fitting import ForwardFit
from jaxlens.calibration.parameters import SHARES, coefficients, row_scores
from jaxlens.fitted_profiles import FittedProfile, FittedValue, save_profile
from jaxlens.intervals import NORMAL_80


def profiles(
    fitted: ForwardFit, report: dict[str, Any], left_out: np.ndarray
) -> list[FittedProfile]:
    """Returns the profile of every pair of chip and stack in a fit.

    Args:
        fitted: The fit.
        report: Errors to keep with it, as `validation.cross_validated` gives them.
        left_out: Seconds and joules of each row by a fit without its model.
    """
    labels = fitted.problem.labels
    pairs = list(zip(labels["gpu"].tolist(), labels["stack"].tolist(), strict=True))
    known = fitted.problem.parameters
    with jax.enable_x64(True):
        parts = coefficients(known, row_scores(known, fitted.found.scores))
        chip, stack = ({k: np.array(v) for k, v in vars(p).items()} for p in parts)
    values = {f"chip.{name}": leaf for name, leaf in chip.items()}
    values |= {f"stack.{name}": leaf for name, leaf in stack.items()}
    result = []
    for pair in dict.fromkeys(pairs):
        rows = np.array([other == pair for other in pairs])
        scatter = _scatter(np.log(left_out[rows] / fitted.problem.measured[rows]))
        result.append(_profile(fitted, values, pair, rows, report, scatter))
    return result


def save_profiles(found: list[FittedProfile], folder: Path) -> list[Path]:
    """Writes each profile as `<chip>.<stack>.toml` and returns the paths."""
    paths = []
    for profile in found:
        path = folder / f"{profile.chip}.{profile.stack}.toml"
        save_profile(path, profile)
        paths.append(path)
    return paths


def _profile(
    fitted: ForwardFit,
    values: dict[str, np.ndarray],
    pair: tuple[str, str],
    rows: np.ndarray,
    report: dict[str, Any],
    scatter: dict[str, float],
) -> FittedProfile:
    task, row = fitted.problem, int(np.flatnonzero(rows)[0])
    names = list(task.parameters.coefficients)
    covariance = _covariance(fitted, values, names, row)
    deviation = np.sqrt(np.diag(covariance))
    kept = {
        name: FittedValue(value=_short(values[name][row]), sd=_short(sd))
        for name, sd in zip(names, deviation, strict=True)
    }

    def layer(prefix: str) -> dict[str, FittedValue]:
        return {k[len(prefix) :]: v for k, v in kept.items() if k.startswith(prefix)}

    used = sorted(set(task.labels["table"][rows].tolist()))
    tables = [task.tables[number] for number in used]
    return FittedProfile(
        chip=pair[0],
        stack=pair[1],
        created=datetime.date.today().isoformat(),
        fitted_on=tuple(table.provenance["file"] for table in tables),
        rows=int(rows.sum()),
        chip_values=layer("chip."),
        stack_values=layer("stack."),
        scatter=scatter,
        covariance_names=tuple(names),
        covariance=tuple(_short(item) for item in covariance.ravel()),
        provenance={
            "tables": [f"{Path(t.source).name} sha256 {t.sha256[:16]}" for t in tables],
            "validation": _flat(report),
        },
    )


def _scatter(residuals: np.ndarray) -> dict[str, float]:
    """Standard deviation that makes 80 % intervals cover 80 % of left-out rows."""
    half = np.nanquantile(np.abs(residuals), 0.8, axis=0) / NORMAL_80
    return {"latency": _short(half[0]), "energy": _short(half[1])}


def _covariance(
    fitted: ForwardFit, values: dict[str, np.ndarray], names: list[str], row: int
) -> np.ndarray:
    """Covariance of the logarithms of `names`, symmetric to the last digit."""
    known = fitted.problem.parameters
    chosen = [known.coefficients.index(name) for name in names]
    moved = (
        np.asarray(known.selector)[:, chosen] * np.asarray(known.membership)[:, [row]]
    )
    slope = np.asarray(known.spread)[row, chosen]
    for position, name in enumerate(names):
        if name.partition(".")[2] in SHARES:
            prior = float(known.prior[row, chosen[position]])
            slope[position] *= (1.0 - float(values[name][row])) / (1.0 - prior)
    by_score = moved * slope
    covariance = by_score.T @ fitted.covariance @ by_score
    rounded = np.vectorize(_short)(0.5 * (covariance + covariance.T))
    return np.triu(rounded) + np.triu(rounded, 1).T


def _flat(report: dict[str, Any]) -> dict[str, Any]:
    """`scheme table target` to error, in one level that a TOML line holds."""
    flat: dict[str, Any] = {}
    for scheme, parts in report.items():
        for table, errors in parts.items():
            if isinstance(errors, dict):
                flat |= {
                    f"{scheme}, {table}, {target} MAPE": _short(errors[target])
                    for target in ("time", "energy")
                }
            else:
                flat[f"{scheme}, {table}"] = errors
    return flat


def _short(value: Any) -> float:
    return float(f"{float(value):.6g}")
