"""Whether a learned correction of efficiencies beats the physics on unseen architectures.

python -m benchmarks.residual_network --json   (reads the folder that JAXLENS_DATA names)

One architecture is left out at a time. Both arms start from the same refit of the physics
and descend as many steps; only one may move the correction. It ships on a chip where it
lowers the error of energy and that of latency. The report also says how sure that is: the
gain of each architecture's mean error, its standard error, and how many architectures gain.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlens.calibration.calibrate import REFIT
from jaxlens.calibration.calibrating import Problem, error_report, problem, solve
from jaxlens.calibration.fits import Options
from jaxlens.calibration.residual_networks import NetworkOptions, left_out
from jaxlens.calibration.tables import read_table

TABLE = "mlenergy_v3"
TARGETS = ("energy", "latency")


def gains(
    task: Problem, physics: np.ndarray, network: np.ndarray, gpu: str
) -> dict[str, dict[str, float]]:
    """Returns by how much the mean error of an architecture falls, over architectures."""
    known = np.isfinite(np.asarray(task.evidence.measured))
    fall = np.abs(np.expm1(physics)) - np.abs(np.expm1(network))
    result: dict[str, dict[str, float]] = {}
    for column, target in enumerate(TARGETS):
        rows = known[:, column] & (task.labels["gpu"] == gpu)
        names = task.labels["architecture"][rows]
        means = np.array([fall[rows, column][names == n].mean() for n in set(names)])
        if len(means) > 1:
            result[target] = {
                "gain": float(means.mean()),
                "standard_error": float(means.std(ddof=1) / np.sqrt(len(means))),
                "improved": float(np.sum(means > 0.0)),
                "architectures": float(len(means)),
            }
    return result


def verdict(physics: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """Returns the mean errors of both arms on one chip, and whether the network ships."""
    errors = {
        target: {
            "physics_mape": physics[target]["mape"],
            "network_mape": network[target]["mape"],
        }
        for target in physics
    }
    better = [e["network_mape"] < e["physics_mape"] for e in errors.values()]
    return {**errors, "ships": all(better)}


def compare(folder: Path, network: NetworkOptions) -> dict[str, Any]:
    """Returns the verdict on every chip of the table."""
    started = time.perf_counter()
    with jax.enable_x64(True):
        task = problem([read_table(folder / f"{TABLE}.csv")])
        options = Options()
        found = solve(task, options)
        refit = Options(**{**vars(options), **REFIT})
        folds = task.labels["architecture"]
        arms = left_out(task, folds, found.scores, refit, network)
    physics, corrected = (error_report(task, arm) for arm in arms)
    return {
        "rows": len(folds),
        "architectures": len(set(folds)),
        "network": vars(network),
        "chips": {
            gpu: {
                **verdict(physics[gpu], corrected[gpu]),
                "by_architecture": gains(task, *arms, gpu),
            }
            for gpu in physics
        },
        "largest_change": float(np.abs(arms[1] - arms[0]).max()),
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    """Prints the comparison, as lines or as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    given = parser.parse_args()
    network = NetworkOptions(seed=given.seed)
    result = compare(Path(os.environ["JAXLENS_DATA"]) / "serving", network)
    if given.json:
        print(json.dumps(result, indent=2))
        return
    for gpu, chip in result["chips"].items():
        errors = ", ".join(
            f"{target} {chip[target]['physics_mape']:.4f} without and "
            f"{chip[target]['network_mape']:.4f} with it"
            for target in TARGETS
            if target in chip
        )
        print(f"{gpu}: {errors}; ships: {str(chip['ships']).lower()}")


if __name__ == "__main__":
    main()
