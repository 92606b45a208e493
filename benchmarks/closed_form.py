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
    TERMS,
    ClosedForm,
    Terms,
    closed_form_terms,
    fit_closed_form,
)
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.tables import read_table
from jaxlens.calibration.validation import predict_serving

RUNS = 50
SHIPPED = "full model, shipped profile (fitted to all rows)"
RULE = "rule: most sequences for each GPU that the measured latency allows"
NEAR = 0.05  # of the least J/token: within the noise of a repeated run

QUANTILES = (0.25, 0.5, 0.75)  # of measured latencies of a group, as limits

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
    products = terms.seconds[:, TERMS.index("products")]
    said = (np.zeros(len(gpus)), np.zeros(len(gpus)))
    for gpu in dict.fromkeys(gpus):
        of_chip = gpus == gpu
        seen = rows[of_chip[rows]]
        for column, proxy in enumerate((terms.flop_per_output_token, products)):
            scale = np.exp(np.log(measured[seen, column] / proxy[seen]).mean())
            said[column][of_chip] = scale * proxy[of_chip]
    return said


def choices(
    said: Said, measured: np.ndarray, groups: np.ndarray, quantile: float | None
) -> list[tuple[float, float]]:
    """Returns how often the best, and nearly the best, is chosen in each group.

    Ties share. With a `quantile`, latency must not exceed that of the group's measured
    ones. The chooser goes by the latency in `said`; a choice that breaks the limit, or none
    at all, is wrong.
    """
    result = []
    for group in dict.fromkeys(groups):
        rows = np.flatnonzero(groups == group)
        if len(rows) < 2:
            continue
        joules, seconds = measured[rows].T
        limit = np.inf if quantile is None else np.quantile(seconds, quantile)
        allowed = seconds <= limit
        believed = np.where(said[1][rows] <= limit, said[0][rows], np.inf)
        if not np.isfinite(believed).any():
            result.append((0.0, 0.0))
            continue
        tied = believed <= believed.min() * (1.0 + 1e-9)
        regret = np.where(allowed, joules / joules[allowed].min() - 1.0, np.inf)[tied]
        result.append((float((regret <= 0.0).mean()), float((regret <= NEAR).mean())))
    return result


def score(
    said: Said, measured: np.ndarray, unseen: np.ndarray, groups: np.ndarray
) -> dict[str, float]:
    """Returns MAPE of unseen rows, and what choosing by `said` comes to."""
    known = (said[0], measured[:, 1])
    result = {}
    for name, pair, quantiles in (
        ("free", said, (None,)),
        ("limit_on_measured_latency", known, QUANTILES),
        ("limit_on_predicted_latency", said, QUANTILES),
    ):
        cases = [c for q in quantiles for c in choices(pair, measured, groups, q)]
        best, near = np.mean(cases, axis=0)
        result[f"{name}_top1"] = float(best)
        result[f"{name}_within_5_percent"] = float(near)
    for column, name in enumerate(("energy", "latency")):
        errors = np.abs(said[column] / measured[:, column] - 1.0)
        result[f"{name}_mape"] = float(errors[unseen].mean())
        result[f"{name}_median_ape"] = float(np.median(errors[unseen]))
    return result


def study(table: Table, task: Problem) -> dict[str, Any]:
    """Returns the scores of formula, full model and baselines, medians over draws."""
    terms = closed_form_terms(table)
    measured = np.asarray(task.evidence.measured)
    labels = task.labels
    parts = zip(labels["model"], labels["gpu"], labels["workload"], strict=True)
    groups = np.array([" | ".join(part) for part in parts])
    count = len(groups)
    generator = np.random.default_rng(0)
    draws = [generator.choice(count, RUNS, replace=False) for _ in range(DRAWS)]
    refitted = refits(task, draws, [np.ones(RUNS)] * DRAWS)
    fixed = _fixed(table, task)
    cases: dict[str, list[dict[str, float]]] = {}
    formulas: list[ClosedForm] = []
    for rows, residual in zip(draws, refitted, strict=True):
        unseen = np.setdiff1d(np.arange(count), rows)
        said = dict(fixed)
        for name, (joules, seconds) in (
            ("closed form, 50 measurements", (measured[:, 0], measured[:, 1])),
            ("closed form, 50 predictions of the shipped profile", fixed[SHIPPED]),
        ):
            form = fit_closed_form(terms.subset(rows), seconds[rows], joules[rows])
            formulas.append(form)
            said[name] = (form.joules(terms), form.seconds(terms))
        full = measured * np.exp(residual)
        said["full model, same 50 measurements"] = (full[:, 0], full[:, 1])
        said["proportional to FLOPs, same 50 measurements"] = flop_proportional(
            terms, labels["gpu"], rows, measured
        )
        for name, pair in said.items():
            cases.setdefault(name, []).append(score(pair, measured, unseen, groups))
    rule = (terms.watts_per_sequence, measured[:, 1])
    by_rule = score(rule, measured, np.arange(count), groups)
    return {
        "rows": count,
        "runs": RUNS,
        "draws": DRAWS,
        "groups": len(set(groups)),
        "cases": {name: _medians(values) for name, values in cases.items()},
        RULE: {name: x for name, x in by_rule.items() if not name.endswith("ape")},
        "formula_of_first_draw": str(formulas[0]),
    }


def _fixed(table: Table, task: Problem) -> dict[str, Said]:
    """What the full model says without any fit to the draws."""
    prior = np.exp(residuals_at(task, jnp.zeros(len(task.evidence.parameters.scores))))
    joules, seconds = (np.asarray(task.evidence.measured) * prior).T
    shipped = predict_serving(table)
    return {
        "full model, priors": (joules, seconds),
        SHIPPED: (shipped["joules_per_output_token"], shipped["latency_seconds"]),
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
        print(name, *(f"  {k} {v:.1%}" for k, v in case.items()), sep="\n")
    print(RULE, *(f"  {k} {v:.1%}" for k, v in found[RULE].items()), sep="\n")
    print(found["formula_of_first_draw"])


if __name__ == "__main__":
    main()
