"""Errors after calibrating on a coreset, and on random rows: the same number of runs.

A fit starts from the package priors, sees the chosen rows of ML.ENERGY v3 alone, and is judged
on all others. Reads the folder that JAXLENS_DATA names.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration import fits
from jaxlens.calibration.calibrating import (
    QUICK_COMPILE,
    Evidence,
    Problem,
    problem,
    residuals_at,
)
from jaxlens.calibration.coresets import Coreset, coreset, gradients
from jaxlens.calibration.fits import Options
from jaxlens.calibration.parameters import row_scores
from jaxlens.calibration.tables import read_table

SIZES = (10, 20, 50)
DRAWS = 40
POOL = 0.8  # share of the rows that are candidates where the choice is repeated
OPTIONS = Options(polish=25, tolerance=1e-4)


def picked(evidence: Evidence, rows: Array) -> Evidence:
    """Returns the evidence of `rows` alone."""
    count = evidence.rows.mixed_share.shape[0]
    both = jnp.concatenate([rows, rows + count])  # decode-only and mixed steps

    def taken(tree: Any, positions: Array) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[positions], tree)

    known = evidence.parameters
    return Evidence(
        rows=replace(
            evidence.rows,
            deployments=taken(evidence.rows.deployments, both),
            steps=taken(evidence.rows.steps, both),
            loads=taken(evidence.rows.loads, both),
            mixed_share=taken(evidence.rows.mixed_share, rows),
        ),
        parameters=replace(
            known,
            groups=taken(known.groups, rows),
            prior=taken(known.prior, rows),
            spread=taken(known.spread, rows),
            fixed=taken(known.fixed, rows),
        ),
        measured=taken(evidence.measured, rows),
        weights=taken(evidence.weights, rows),
    )


@partial(jax.jit, static_argnums=3, compiler_options=QUICK_COMPILE)
def _refits(evidence: Evidence, rows: Array, weights: Array, options: Options) -> Array:
    start = jnp.zeros(len(evidence.parameters.scores))

    def one(given: tuple[Array, Array]) -> Array:
        chosen, weight = given
        seen = picked(evidence, chosen)
        both = weight[:, None] * jnp.isfinite(seen.measured)
        found = fits.refit(seen.residuals, seen.parameters, both, options, start)
        return evidence.residuals(row_scores(evidence.parameters, found.scores))

    return jax.lax.map(one, (rows, weights))


def refits(
    task: Problem, subsets: list[np.ndarray], weights: list[np.ndarray]
) -> np.ndarray:
    """Returns log residuals of all rows after a fit to each weighted subset."""
    width = max(map(len, subsets))
    rows = np.zeros((len(subsets), width), int)
    padded = np.zeros((len(subsets), width))
    for index, (subset, weight) in enumerate(zip(subsets, weights, strict=True)):
        rows[index, : len(subset)] = subset
        padded[index, : len(subset)] = weight
    return np.asarray(_refits(task.evidence, rows, padded, OPTIONS))


def clean_rows() -> Problem:
    """Returns the clean rows of the serving table."""
    folder = os.environ.get("JAXLENS_DATA")
    if not folder:
        raise SystemExit("coreset: expected JAXLENS_DATA to name a folder; set it.")
    return problem([read_table(Path(folder) / "serving" / "mlenergy_v3.csv")])


def errors(residuals: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns MAPE of energy and of latency of the rows that are not `seen`."""
    unseen = np.setdiff1d(np.arange(len(residuals)), seen)
    return np.abs(np.expm1(residuals[unseen])).mean(axis=0)


def study(task: Problem, sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """Returns errors by number of runs, for a coreset and for random subsets."""
    count = len(task.labels["gpu"])
    features = gradients(task.evidence)
    generator = np.random.default_rng(0)
    chosen = {size: coreset(features, size) for size in sizes}
    plan: list[tuple[int, str, np.ndarray, np.ndarray]] = []
    for size in sizes:
        plan += [(size, *case) for case in _coreset_cases(chosen[size])]
        for _ in range(DRAWS // 2):
            pool = np.sort(generator.permutation(count)[: int(POOL * count)])
            found = coreset(features[pool], size)
            name = "coreset of 80 % of the rows, mean-one weights"
            plan.append((size, name, pool[found.rows], found.fit_weights))
        for _ in range(DRAWS):
            rows = generator.choice(count, size, replace=False)
            plan.append((size, "random", rows, np.ones(size)))
            weights = np.full(size, count / size)
            plan.append((size, "random, weights as high", rows, weights))
    started = time.perf_counter()
    residuals = refits(task, [case[2] for case in plan], [case[3] for case in plan])
    seconds = time.perf_counter() - started
    prior = residuals_at(task, jnp.zeros(len(task.evidence.parameters.scores)))
    table: dict[str, Any] = {
        "rows": count,
        "draws": DRAWS,
        "prior": _shown(errors(prior, np.zeros(0, int))[None]),
        "seconds_of_fits": seconds,
        "by_runs": {},
    }
    for size in sizes:
        results: dict[str, list[np.ndarray]] = {}
        for (runs, name, rows, _), residual in zip(plan, residuals, strict=True):
            if runs == size:
                results.setdefault(name, []).append(errors(residual, rows))
        table["by_runs"][size] = {
            name: _shown(np.array(values)) for name, values in results.items()
        }
    return table


def _coreset_cases(found: Coreset) -> list[tuple[str, np.ndarray, np.ndarray]]:
    rows = found.rows
    return [
        ("coreset, cluster sizes of mean one", rows, found.fit_weights),
        ("coreset, cluster sizes as they are", rows, found.weights),
        ("coreset, equal weights", rows, np.ones(len(rows))),
    ]


def _shown(values: np.ndarray) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for column, name in enumerate(("energy", "latency")):
        part = values[:, column]
        shown[f"{name}_mape"] = round(float(np.median(part)), 4)
        if len(part) > 1:
            quartiles = np.quantile(part, [0.25, 0.75])
            shown[f"{name}_quartiles"] = [round(float(q), 4) for q in quartiles]
    return shown


def main() -> None:
    """Prints the study as a table, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with jax.enable_x64(True):
        found = study(clean_rows())
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['rows']} rows, {found['draws']} draws; priors {found['prior']}")
    for runs, cases in found["by_runs"].items():
        for name, case in cases.items():
            energy, latency = case["energy_mape"], case["latency_mape"]
            print(f"{runs:3d} runs  {name:48s}{energy:8.1%}{latency:8.1%}")


if __name__ == "__main__":
    main()
