"""Fit of chip and stack coefficients to serving runs, with cross-validation."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration import fits, scores
from jaxlens.calibration.checkpoints import Checkpoint
from jaxlens.calibration.fits import Fit, Options, Polish
from jaxlens.calibration.freedoms import SERVING
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.parameters import (
    Freedom,
    Parameters,
    coefficients,
    parameters,
    row_scores,
)
from jaxlens.calibration.serving_rows import (
    QUICK_COMPILE,
    ServingRows,
    predict_rows,
    serving_rows,
)
from jaxlens.models import load_shape
from jaxlens.profiles import load_profile_card, load_stack
from jaxlens.pytrees import pytree

TARGETS = ("joules_per_output_token", "latency_seconds")
MIN_ROWS = 2

# A checkpoint is written after so many of them.
POLISH_STEPS = 5
FOLDS_AT_ONCE = 2

# Some optimisation pays in a loop that runs a thousand times.
STEP_COMPILE = {**QUICK_COMPILE, "xla_backend_optimization_level": 1}

STARTS, POLISH, FOLDS = "starting points", "second-order steps", "folds left out"
Progress = Callable[[str, int, int, str], None]  # stage, done, of how many, detail


def silent(stage: str, done: int, total: int, detail: str) -> None:
    """Says nothing about progress."""


@pytree
class Evidence:
    """Rows of all tables and what was measured on them; traced, never folded in."""

    rows: ServingRows
    parameters: Parameters
    measured: Array  # row x target; NaN where a table says nothing
    weights: Array  # row x target

    def residuals(self, u: Array) -> Array:
        """Returns log(predicted / measured), row x target; 0 where nothing is known."""
        chip, stack = coefficients(self.parameters, u)
        said = predict_rows(self.rows, chip, stack)
        values = jnp.stack(
            [said.joules_per_output_token, said.seconds_per_step], axis=1
        )
        known = jnp.isfinite(self.measured)
        measured = jnp.where(known, self.measured, 1.0)
        return jnp.where(known, jnp.log(values / measured), 0.0)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Evidence, and the labels by which rows are grouped."""

    evidence: Evidence
    labels: Mapping[str, np.ndarray]  # chip, stack, architecture, gpus, ... of each row


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """Residuals of rows that the fit has not seen."""

    residuals: np.ndarray  # row x target
    folds: np.ndarray  # label of each row


@dataclass(frozen=True, kw_only=True)
class FoldsDone:
    """Residuals of all rows under the fits without the first folds."""

    residuals: np.ndarray  # fold x row x target


def problem(
    tables: Sequence[Table], freedom: Mapping[str, Freedom] = SERVING
) -> Problem:
    """Returns the rows of serving tables that can be fitted: clean, one replica a GPU."""
    kept = [table.subset(_usable(table)) for table in tables]
    joined = _join([table for table in kept if len(table)])
    if len(joined) < MIN_ROWS:
        raise ValueError(
            f"calibrate: expected at least {MIN_ROWS} usable rows, got {len(joined)}; "
            f"one run says how far a prediction is off (`jaxlens validate`), not why."
        )
    cards = {
        pair: load_profile_card(*pair, shipped=False)
        for pair in zip(joined["gpu"], joined["stack"], strict=True)
    }
    pairs = [cards[p] for p in zip(joined["gpu"], joined["stack"], strict=True)]
    gpus, stacks = [card.chip for card in pairs], [card.stack for card in pairs]
    measured: Any = np.stack(
        [np.asarray(joined[name], float) for name in TARGETS], axis=1
    )
    labels = {
        "gpu": np.array(gpus),
        "stack": np.array(stacks),
        "model": np.asarray(joined["model"]).astype(str),
        "gpus": np.asarray(joined["gpus"], float).astype(int).astype(str),
        "architecture": architectures(joined["model"].tolist()),
        **{
            name: np.asarray(joined[name]).astype(str)
            for name in ("workload", "source", "prompt_tokens", "output_tokens")
            if name in joined.columns
        },
    }
    loaded = {name: load_stack(name) for name in dict.fromkeys(joined["stack"])}
    weights: Any = _weights(labels)[:, None] * np.isfinite(measured)
    evidence = Evidence(
        rows=serving_rows(joined, loaded),
        parameters=parameters(gpus, stacks, freedom),
        measured=measured,
        weights=weights,
    )
    return Problem(evidence=evidence, labels=labels)


def architectures(models: Sequence[str]) -> np.ndarray:
    """Returns a label of the layer shape of each model: folds must not share one."""
    shapes = {model: load_shape(model) for model in dict.fromkeys(map(str, models))}
    keys = {
        model: (shape.width, shape.vocabulary, shape.mixers, shape.feeds)
        for model, shape in shapes.items()
    }
    names: dict[Any, str] = {}
    for model, key in keys.items():
        names.setdefault(key, model)
    return np.array([names[keys[str(model)]] for model in models])


def solve(
    task: Problem,
    options: Options,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Fit:
    """Returns the fit to all rows.

    Args:
        task: Rows, and what may move.
        options: How hard to try.
        checkpoint: Where to keep what is reached, and to go on from.
        progress: Called with a stage, what of it is done, of how much, and a detail.
    """
    checkpoint = checkpoint or Checkpoint()
    found = checkpoint.kept("fit", Fit)
    state = checkpoint.kept("polish", Polish)
    if state is None:
        progress(STARTS, 0, options.starts, "")
        best = _descended(task.evidence, options)
        state = _on_host(fits.begin(best))
        checkpoint.keep(polish=state)
    progress(STARTS, options.starts, options.starts, "")
    while found is None:
        progress(POLISH, int(state.count), options.polish, f"loss {state.loss:.6g}")
        left = min(POLISH_STEPS, options.polish - int(state.count))
        state, ended, _ = _on_host(
            _polished(task.evidence, task.evidence.weights, state, options, left)
        )
        done = bool(state.decrease <= options.tolerance)
        if done or state.count >= options.polish:
            found = ended
        # A fit that has run out of steps goes on where more are allowed.
        checkpoint.keep(polish=state, **({"fit": ended} if done else {}))
    detail = f"loss {state.loss:.6g} after {int(state.count)}"
    progress(POLISH, options.polish, options.polish, detail)
    return jax.tree.map(jnp.asarray, found)


@partial(jax.jit, static_argnums=1, compiler_options=QUICK_COMPILE)
def _descended(evidence: Evidence, options: Options) -> Array:
    return fits.descend(
        evidence.residuals, evidence.parameters, evidence.weights, options
    )


def _polished(
    evidence: Evidence, weights: Array, state: Polish, options: Options, steps: int
) -> tuple[Polish, Fit, fits.Linear]:
    limits = fits.Limits(
        noise=options.noise, tolerance=options.tolerance, steps=jnp.asarray(steps)
    )
    return _polish(evidence, weights, limits, jax.tree.map(jnp.asarray, state))


# All second-order steps, of the fit and of every fold, run through this one compilation.
@partial(jax.jit, compiler_options=STEP_COMPILE)
def _polish(
    evidence: Evidence, weights: Array, limits: fits.Limits, state: Polish
) -> tuple[Polish, Fit, fits.Linear]:
    return fits.polish(evidence.residuals, evidence.parameters, weights, limits, state)


def _on_host(tree: Any) -> Any:
    """Arrays as a checkpoint gives them back, so that a restart compiles the same."""
    return jax.tree.map(np.asarray, tree)


def coefficient_variances(task: Problem, found: Fit, options: Options) -> np.ndarray:
    """Returns the variance of each row's log predictions due to the scores, row x target.

    g^T H^-1 g, with g the slopes in the scores that the row sees (Laplace).
    """
    begun = fits.begin(found.scores)
    there = _polished(task.evidence, task.evidence.weights, begun, options, 0)[2]
    known = task.evidence.parameters
    slopes, owners = np.asarray(there.slopes), np.asarray(known.owners)
    spread = np.linalg.inv(np.asarray(found.hessian))
    result = np.zeros(slopes.shape[:2])
    for group in range(owners.shape[1]):
        rows = np.asarray(known.groups) == group
        moves = owners[:, group][:, None] * np.asarray(known.selector)
        seen = moves.T @ spread @ moves
        result[rows] = np.einsum("rtc,cd,rtd->rt", slopes[rows], seen, slopes[rows])
    return result


def residuals_at(task: Problem, scores: Array) -> np.ndarray:
    """Returns residuals of all rows at `scores`."""
    return np.asarray(_residuals(task.evidence, scores))


@partial(jax.jit, compiler_options=QUICK_COMPILE)
def _residuals(evidence: Evidence, scores: Array) -> Array:
    return evidence.residuals(row_scores(evidence.parameters, scores))


def cross_validate(
    task: Problem,
    folds: np.ndarray,
    options: Options,
    start: Array,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> CrossValidation:
    """Returns residuals of every row under the fit without its fold, all in one compile.

    Args:
        task: Rows, and what may move.
        folds: Label of each row.
        options: How hard to try.
        start: Scores that every fold starts from.
        checkpoint: Where to keep the folds that are done; of this validation alone.
        progress: Called with a stage, what of it is done, of how much, and a detail.
    """
    checkpoint = checkpoint or Checkpoint()
    labels = list(dict.fromkeys(folds))
    kept = checkpoint.kept("folds", FoldsDone)
    done = [] if kept is None else list(kept.residuals)

    def left_out(label: Any) -> np.ndarray:
        seen: Any = np.asarray(folds != label, float)[:, None]
        weights = jnp.asarray(task.evidence.weights) * seen
        begun = fits.begin(start)
        there = _polished(task.evidence, weights, begun, options, options.polish)[2]
        return np.asarray(there.residuals)

    while len(done) < len(labels):
        progress(FOLDS, len(done), len(labels), "")
        done.extend(_side_by_side(left_out, labels[len(done) :][:FOLDS_AT_ONCE]))
        checkpoint.keep(folds=FoldsDone(residuals=np.stack(done)))
    progress(FOLDS, len(labels), len(labels), "")
    residuals = np.zeros_like(done[0])
    for position, label in enumerate(labels):
        residuals[folds == label] = done[position][folds == label]
    return CrossValidation(residuals=residuals, folds=folds)


def _side_by_side(ask: Callable[[Any], Any], asked: Sequence[Any]) -> list[Any]:
    """Answers to all that is asked, a thread for each: XLA computes outside of Python."""

    def answer(one: Any) -> Any:
        with jax.enable_x64(True):  # known to the calling thread alone
            return ask(one)

    with ThreadPoolExecutor(len(asked)) as threads:
        return list(threads.map(answer, asked))


def random_folds(rows: int, count: int = 10, seed: int = 0) -> np.ndarray:
    """Returns labels of `count` random folds of equal size."""
    return np.random.default_rng(seed).permutation(rows) % count


def error_report(
    task: Problem, residuals: np.ndarray, by: str = "gpu"
) -> dict[str, dict[str, Any]]:
    """Returns errors of energy and latency by the label `by`."""
    measured = np.asarray(task.evidence.measured)
    predicted = measured * np.exp(residuals)
    result: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(task.labels[by]):
        chosen = task.labels[by] == label
        result[str(label)] = {
            name: scores.summary(
                predicted[chosen & known, column], measured[chosen & known, column]
            )
            for column, name in enumerate(("energy", "latency"))
            if (known := np.isfinite(measured[:, column])).any()
            and (chosen & known).any()
        }
    return result


def _usable(table: Table) -> np.ndarray:
    """Rows to learn from: clean, with known lengths, one engine on each GPU."""
    usable = np.isfinite(np.asarray(table["prompt_tokens"], float))
    usable &= np.isfinite(np.asarray(table["concurrency"], float))
    if table.has("clean"):
        usable &= np.asarray(table["clean"], float) != 0.0
    if table.has("replicas"):
        replicas = np.asarray(table["replicas"], float)
        usable &= ~(replicas > 1.0)
    return usable


def _weights(labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """1 / sqrt(rows of the same architecture, chip and stack), of mean one."""
    keys = list(
        zip(labels["architecture"], labels["gpu"], labels["stack"], strict=True)
    )
    count = {key: keys.count(key) for key in dict.fromkeys(keys)}
    weights = np.array([1.0 / np.sqrt(count[key]) for key in keys])
    return weights / weights.mean()


def _join(tables: Sequence[Table]) -> Table:
    """All rows as one table; columns that one of them lacks are unknown there."""
    if not tables:
        raise ValueError(
            "calibrate: expected at least one usable row, got none; give prompt_tokens "
            "and concurrency, one replica a GPU, and clean other than False."
        )
    names = dict.fromkeys(name for table in tables for name in table.columns)
    columns = {}
    for name in names:
        parts = []
        numeric = any(
            table.has(name) and np.asarray(table[name]).dtype.kind == "f"
            for table in tables
        )
        for table in tables:
            empty = np.full(len(table), np.nan) if numeric else np.full(len(table), "")
            parts.append(np.asarray(table[name]) if name in table.columns else empty)
        columns[name] = np.concatenate(parts)
    numbers = np.concatenate([table.row_numbers for table in tables])
    return replace(tables[0], columns=columns, row_numbers=numbers)
