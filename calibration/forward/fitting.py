"""Fit of chip, stack and eager coefficients to measured forward passes.

Targets are the logarithms of seconds and joules. Rows of one shape at many clocks count as the
square root of their number, so that a sweep over clocks does not drown the other shapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.calibration.fits import Fit, Options, fit, refit
from jaxlens.calibration.forward.coefficients import forward_parameters
from jaxlens.calibration.forward.prices import price
from jaxlens.calibration.forward.rows import ForwardRows, forward_rows, usable
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.parameters import Parameters, coefficients, row_scores

OPTIONS = Options(noise=0.05, starts=1, steps=100)
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardProblem:
    """Measured forward passes beside everything that their price depends on."""

    rows: ForwardRows
    parameters: Parameters
    measured: np.ndarray  # row x (seconds, joules)
    weights: np.ndarray  # row x target; 0 where not measured
    labels: dict[str, np.ndarray]  # gpu, stack, model, shape, table, clock_hz
    tables: tuple[Table, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardFit:
    """Coefficients that forward passes ask for, and how well they do."""

    problem: ForwardProblem
    found: Fit
    covariance: np.ndarray  # of the scores
    predicted: np.ndarray  # row x (seconds, joules)
    residuals: np.ndarray  # log(predicted / measured)
    report: dict[str, Any]


def forward_problem(tables: Sequence[Table]) -> ForwardProblem:
    """Returns the usable rows of forward tables, ready to be fitted."""
    kept = tuple(usable(table) for table in tables)
    joined = {
        name: np.concatenate([t[name] for t in kept])
        for name in ("gpu", "stack", "model", "batch", "prompt_tokens", "seconds")
    }
    rows = forward_rows(kept)
    joules = [t["joules"] if t.has("joules") else np.full(len(t), np.nan) for t in kept]
    measured = np.stack([joined["seconds"], np.concatenate(joules)], axis=1)
    dtypes = [
        t["weight_dtype"] if t.has("weight_dtype") else np.full(len(t), "")
        for t in kept
    ]
    shape = [
        f"{m} {d} {b:g}x{p:g}"
        for m, d, b, p in zip(
            joined["model"],
            np.concatenate(dtypes),
            joined["batch"],
            joined["prompt_tokens"],
            strict=True,
        )
    ]
    table = np.repeat(np.arange(len(kept)), [len(t) for t in kept])
    keys = [f"{n} {s}" for n, s in zip(table, shape, strict=True)]
    _, place, count = np.unique(keys, return_inverse=True, return_counts=True)
    weights = (1.0 / np.sqrt(count[place]))[:, None] * np.isfinite(measured)
    return ForwardProblem(
        rows=rows,
        parameters=forward_parameters(joined["gpu"].tolist(), joined["stack"].tolist()),
        measured=measured,
        weights=weights,
        labels={
            "gpu": joined["gpu"],
            "stack": joined["stack"],
            "model": joined["model"],
            "shape": np.array(shape),
            "table": table,
            "clock_hz": np.asarray(rows.clock_hz),
        },
        tables=tuple(tables),
    )


def fit_forward(
    tables: Sequence[Table],
    *,
    options: Options = OPTIONS,
    progress: Progress | None = None,
) -> ForwardFit:
    """Returns the fit to all usable rows of forward tables."""
    tell = progress or (lambda stage, share: None)
    with jax.enable_x64(True):
        tell("rows", 0.0)
        task = forward_problem(tables)
        tell("fit", 0.2)
        found = jax.jit(lambda w: fit(residuals_of(task), task.parameters, w, options))(
            jnp.asarray(task.weights)
        )
        predicted = predictions_at(task, found.scores)
        tell("fit", 1.0)
    residuals = np.log(predicted / task.measured)
    return ForwardFit(
        problem=task,
        found=found,
        covariance=np.linalg.inv(np.asarray(found.hessian)),
        predicted=predicted,
        residuals=residuals,
        report={
            "rows": len(predicted),
            "set_aside": sum(len(t) for t in tables) - len(predicted),
            "loss": float(found.loss),
            "last_decrease": float(found.last_decrease),
            "time_mape": float(np.abs(np.expm1(residuals[:, 0])).mean()),
            "energy_mape": float(np.nanmean(np.abs(np.expm1(residuals[:, 1])))),
        },
    )


def left_out(
    fitted: ForwardFit, folds: np.ndarray, options: Options = OPTIONS
) -> np.ndarray:
    """Returns predictions of every row by a fit that has not seen its fold."""
    task = fitted.problem
    predicted = np.zeros_like(task.measured)
    with jax.enable_x64(True):
        again = jax.jit(
            lambda w, start: refit(
                residuals_of(task), task.parameters, w, options, start
            )
        )
        for fold in dict.fromkeys(folds.tolist()):
            out = folds == fold
            weights = jnp.asarray(np.where(out[:, None], 0.0, task.weights))
            scores = again(weights, fitted.found.scores).scores
            predicted[out] = predictions_at(task, scores)[out]
    return predicted


def residuals_of(task: ForwardProblem) -> Callable[[jax.Array], jax.Array]:
    """Returns log ratios of predicted and measured as a function of row scores."""
    known = np.isfinite(task.measured)
    measured = jnp.asarray(np.log(np.where(known, task.measured, 1.0)))

    def residuals(u: jax.Array) -> jax.Array:
        return jnp.where(jnp.asarray(known), _logarithms(task, u) - measured, 0.0)

    return residuals


def predictions_at(task: ForwardProblem, scores: jax.Array) -> np.ndarray:
    """Returns seconds and joules of every row."""
    u = row_scores(task.parameters, scores)
    return np.exp(np.asarray(jax.jit(lambda v: _logarithms(task, v))(u)))


def _logarithms(task: ForwardProblem, u: jax.Array) -> jax.Array:
    chip, stack = coefficients(task.parameters, u)
    said = price(task.rows, chip, stack)
    return jnp.stack([jnp.log(said.seconds), jnp.log(said.joules)], axis=1)
