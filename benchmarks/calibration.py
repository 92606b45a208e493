"""How good the serving fit is on rows that it has not seen, and on choosing for a user.

python -m benchmarks.calibration --json   (reads the folder that JAXLENS_DATA names)

Folds: layer shapes, ten random ones, GPU counts, chips. Choice: of the runs of one model on
one chip, the one of least J/token within a limit on the time per token, at the measured 25,
50 and 75 % quantiles; the fit has not seen the architecture. Regret is what the choice costs
over the best one, both as measured.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlens.calibration import scores
from jaxlens.calibration.calibrate import REFIT
from jaxlens.calibration.calibrating import (
    Problem,
    cross_validate,
    error_report,
    problem,
    random_folds,
    solve,
)
from jaxlens.calibration.coverage import coverage
from jaxlens.calibration.fits import Options
from jaxlens.calibration.tables import read_table

TABLES = ("argonne", "memory_gap", "mlenergy_v2", "mlenergy_v3")
QUANTILES = (0.25, 0.5, 0.75)
BEARABLE = 0.05


def folds(task: Problem) -> dict[str, np.ndarray]:
    """Returns the label of each row's fold, by the name of the validation."""
    return {
        "architecture": task.labels["architecture"],
        "ten_random": random_folds(len(task.labels["gpu"])),
        "gpu_count": task.labels["gpus"],
        "chip": task.labels["gpu"],
    }


def choices(task: Problem, residuals: np.ndarray, source: str) -> dict[str, float]:
    """Returns the share of cases with a regret of at most 5 %, for the fit and a rule.

    The rule takes the largest batch that the limit allows, and the fewest GPUs of those.
    Limits apply to measured times for both; `within_predicted` trusts predicted times.
    """
    measured = np.asarray(task.evidence.measured)
    predicted = measured * np.exp(residuals)
    batch = np.asarray(task.evidence.rows.deployments.batch)[: len(measured)]
    gpus = task.labels["gpus"].astype(float)
    found: dict[str, list[bool]] = {"fit": [], "rule": [], "within_predicted": []}
    chosen = task.labels["source"] == source
    pairs = list(zip(task.labels["model"], task.labels["gpu"], strict=True))
    for pair in dict.fromkeys(p for p, c in zip(pairs, chosen, strict=True) if c):
        rows = np.array([p == pair for p in pairs]) & chosen
        if rows.sum() < 3:
            continue
        energy, latency = measured[rows].T
        guess = predicted[rows]
        order = -batch[rows] * 1e3 + gpus[rows]
        for limit in np.quantile(latency, QUANTILES):
            allowed = latency <= limit
            for name, value, seen in (
                ("fit", guess[:, 0], allowed),
                ("rule", order, allowed),
                ("within_predicted", guess[:, 0], guess[:, 1] <= limit),
            ):
                regret = scores.top1_regret(value, energy, allowed, seen)
                found[name].append(bool(regret <= BEARABLE))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """Prints errors by chip and table for every validation, as JSON."""
    folder = Path(os.environ["JAXLENS_DATA"]) / "serving"
    started = time.perf_counter()
    result: dict[str, Any] = {}
    with jax.enable_x64(True):
        task = problem([read_table(folder / f"{name}.csv") for name in TABLES])
        names = [
            f"{source} on {gpu}"
            for source, gpu in zip(
                task.labels["source"], task.labels["gpu"], strict=True
            )
        ]
        task = replace(task, labels={**task.labels, "table": np.array(names)})
        options = Options()
        fit = solve(task, options)
        refit = Options(**{**vars(options), **REFIT})
        for name, labels in folds(task).items():
            validation = cross_validate(task, labels, refit, fit.scores)
            left_out = validation.residuals
            result[name] = error_report(task, left_out, by="table")
            if name == "architecture":
                result["choice"] = choices(task, left_out, "mlenergy-v3")
                result["coverage"] = coverage(task, validation)
    result["seconds"] = time.perf_counter() - started
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
