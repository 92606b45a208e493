"""A dozen coefficients beside the full model: errors, and which configuration each picks.

All see the same 50 random clean rows of ML.ENERGY v3, again and again, and are judged on the
others; every configuration of a model, chip and workload competes for the least J/token.
Reads the folder that JAXLENS_DATA names.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.coreset import DRAWS, refits
from jaxlens.calibration.calibrating import Problem, problem, residuals_at
from jaxlens.calibration.closed_form import (
    ClosedForm,
    Terms,
    closed_form_terms,
    fit_closed_form,
)
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.tables import read_table
from jaxlens.calibration.validation import predict_serving

RUNS = 50
NEAR = 0.05  # of the least J/token: within the noise of a repeated run

Said = tuple[np.ndarray, np.ndarray]  # joules and seconds of a token


def clean_table() -> Table:
    """Returns the clean rows of the serving table, in the order of a fit to them."""
    folder = os.environ.get("JAXLENS_DATA")
    if not folder:
        raise SystemExit("closed_form: expected JAXLENS_DATA to name a folder; set it.")
    table = read_table(Path(folder) / "serving" / "mlenergy_v3.csv")
    return table.subset(np.asarray(table["clean"], float) != 0.0)


def flop_proportional(
    terms: Terms, gpus: np.ndarray, rows: np.ndarray, measured: np.ndarray
) -> Said:
    """Returns energy in proportion to FLOPs, on each chip; latency to their time."""
    products = terms.seconds[:, 2]
    said = (np.zeros(len(gpus)), np.zeros(len(gpus)))
    for gpu in dict.fromkeys(gpus):
        of_chip = gpus == gpu
        seen = rows[of_chip[rows]]
        for column, proxy in enumerate((terms.flop_per_output_token, products)):
            scale = np.exp(np.log(measured[seen, column] / proxy[seen]).mean())
            said[column][of_chip] = scale * proxy[of_chip]
    return said


def choices(said_joules: np.ndarray, joules: np.ndarray, groups: np.ndarray) -> Any:
    """Returns how often the best is chosen, ties sharing; how often nearly; regret."""
    best, near, regrets = [], [], []
    for group in dict.fromkeys(groups):
        rows = np.flatnonzero(groups == group)
        if len(rows) < 2:
            continue
        tied = rows[said_joules[rows] <= said_joules[rows].min() * (1.0 + 1e-9)]
        regret = joules[tied] / joules[rows].min() - 1.0
        best.append((regret <= 0.0).mean())
        near.append((regret <= NEAR).mean())
        regrets.append(regret.mean())
    return {
        "groups": len(best),
        "top1": float(np.mean(best)),
        "within_5_percent": float(np.mean(near)),
        "mean_regret": float(np.mean(regrets)),
    }


def score(
    said: Said, measured: np.ndarray, unseen: np.ndarray, groups: np.ndarray
) -> dict[str, float]:
    """Returns MAPE of unseen rows, and what choosing by `said` comes to."""
    result = choices(said[0], measured[:, 0], groups)
    for column, name in enumerate(("energy", "latency")):
        errors = np.abs(said[column] / measured[:, column] - 1.0)
        result[f"{name}_mape"] = float(errors[unseen].mean())
        result[f"{name}_median_ape"] = float(np.median(errors[unseen]))
    return result


def study(table: Table, task: Problem) -> dict[str, Any]:
    """Returns the scores of formula, full model and baseline, medians over draws."""
    terms = closed_form_terms(table)
    measured = np.asarray(task.evidence.measured)
    labels = task.labels
    parts = zip(labels["model"], labels["gpu"], labels["workload"], strict=True)
    groups = np.array([" | ".join(part) for part in parts])
    count = len(groups)
    generator = np.random.default_rng(0)
    draws = [generator.choice(count, RUNS, replace=False) for _ in range(DRAWS)]
    refitted = refits(task, draws, [np.ones(RUNS)] * DRAWS)
    shipped = predict_serving(table)
    whole = (shipped["joules_per_output_token"], shipped["latency_seconds"])
    prior = np.exp(residuals_at(task, jnp.zeros(len(task.evidence.parameters.scores))))
    cases: dict[str, list[dict[str, float]]] = {}
    formulas: list[ClosedForm] = []
    for rows, residual in zip(draws, refitted, strict=True):
        unseen = np.setdiff1d(np.arange(count), rows)
        form = fit_closed_form(terms.subset(rows), measured[rows, 1], measured[rows, 0])
        copy = fit_closed_form(terms.subset(rows), whole[1][rows], whole[0][rows])
        formulas.append(form)
        full = measured * np.exp(residual)
        said: dict[str, Said] = {
            "closed form, 50 measurements": (form.joules(terms), form.seconds(terms)),
            "closed form, 50 predictions of the shipped profile": (
                copy.joules(terms),
                copy.seconds(terms),
            ),
            "full model, same 50 measurements": (full[:, 0], full[:, 1]),
            "full model, priors": tuple((measured * prior).T),
            "full model, shipped profile (has seen all rows)": whole,
            "proportional to FLOPs, same 50 measurements": flop_proportional(
                terms, labels["gpu"], rows, measured
            ),
        }
        for name, pair in said.items():
            cases.setdefault(name, []).append(score(pair, measured, unseen, groups))
    everything = fit_closed_form(terms, measured[:, 1], measured[:, 0])
    return {
        "rows": count,
        "runs": RUNS,
        "draws": DRAWS,
        "cases": {name: _medians(values) for name, values in cases.items()},
        "in_sample": score(
            (everything.joules(terms), everything.seconds(terms)),
            measured,
            np.arange(count),
            groups,
        ),
        "formula_of_first_draw": str(formulas[0]),
        "formula_of_all_rows": str(everything),
    }


def _medians(values: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: round(float(np.median([value[name] for value in values])), 4)
        for name in values[0]
    }


def main() -> None:
    """Prints the study as a table, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with jax.enable_x64(True):
        table = clean_table()
        found = study(table, problem([table]))
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, case in found["cases"].items():
        energy, latency = case["energy_mape"], case["latency_mape"]
        print(f"{name:52s}{energy:8.1%}{latency:8.1%}{case['top1']:8.1%}")
    print(found["formula_of_all_rows"])


if __name__ == "__main__":
    main()
