"""Fit of a chip and of torch's kernels to what one run measured on it.

Targets are the logarithms of seconds and joules. A case counts as the square root of the cases
that it stands for, less if its own measurements spread, and its repeats share that weight. The
scale of a residual that is still noise is taken from the residuals themselves, so that the
intervals of the coefficients widen where the model does not hold. Fits to all rows, and those
that leave a fifth of the cases out, are one compiled program.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration.contention import fit_contention
from jaxlens.calibration.fits import Fit, Limits, begin, polish
from jaxlens.calibration.machines import runs
from jaxlens.calibration.machines.coefficients import SATURATION, machine_parameters
from jaxlens.calibration.machines.prices import MachineRows, price
from jaxlens.calibration.machines.rows import asked, machine_rows
from jaxlens.calibration.machines.runs import Row, Run
from jaxlens.calibration.parameters import (
    SHARES,
    Parameters,
    coefficients,
    row_scores,
)
from jaxlens.fitted_profiles import FittedValue
from jaxlens.hardware import Chip
from jaxlens.profiles import load_chip

STACK = "torch"
FOLDS = 5
NOISE = 0.06  # of a log residual, before residuals tell
LEAST_NOISE, MOST_NOISE = 0.01, 0.3
FEWEST = 10  # residuals that say what is noise
LOOSE = 0.05  # spread of a row's own measurements that halves its weight
IDLE_WEIGHT = 4.0  # one reading stands for all times without a kernel
LIMITED = 0.7  # SMs x clock below which HBM may not be saturated
STEPS, TOLERANCE = 200, 1e-7
SEED = 0
COMPILER = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Measured rows beside everything that their price depends on."""

    rows: tuple[Row, ...]
    asks: MachineRows
    parameters: Parameters
    measured: np.ndarray  # row x (seconds, joules); NaN where not measured
    weights: np.ndarray  # row x target; 0 where not measured or only judged
    families: np.ndarray  # by row
    pairs: tuple[Row, ...]  # of kernels side by side, which say what contention is
    set_aside: tuple[str, ...]

    @property
    def own_priors(self) -> frozenset[str]:
        """Coefficients whose prior here is not that of the chip or stack file."""
        known = self.parameters
        return frozenset(
            name
            for prior, name in zip(
                np.asarray(known.prior)[0], known.coefficients, strict=True
            )
            if not np.isclose(prior, np.asarray(known.fixed[name])[0])
        )

    @property
    def fitted_rows(self) -> int:
        """How many rows have a say in the fit."""
        return int((self.weights.sum(axis=1) > 0.0).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class MachineFit:
    """Coefficients that a run asks for, and what they say of every row."""

    problem: Problem
    values: dict[str, float]  # by "chip.<field>" or "stack.<field>", all of them
    covariance: np.ndarray  # of the scores
    apart: dict[str, FittedValue]  # coefficients that one kind of row tells alone
    noise: tuple[float, float]  # of log seconds and joules
    converged: bool
    predicted: np.ndarray  # row x (seconds, joules)
    left_out: (
        np.ndarray
    )  # the same, by fits without the row's case; NaN where not fitted

    @property
    def informed(self) -> dict[str, float]:
        """Share of the prior variance that the run took from each coefficient."""
        shares = 1.0 - np.diag(self.covariance)
        return {
            score.coefficient: float(share)
            for score, share in zip(self.problem.parameters.scores, shares, strict=True)
        }

    @property
    def spreads(self) -> dict[str, float]:
        """Standard deviation of the logarithm of each coefficient that may move."""
        names = tuple(self.informed)
        deviations = np.sqrt(np.diag(self.log_covariance(names)))
        return {n: float(d) for n, d in zip(names, deviations, strict=True)}

    @property
    def has_energy(self) -> bool:
        """Whether the run measured energy of anything that it was fitted to."""
        return bool((self.problem.weights[:, 1] > 0.0).any())

    def log_covariance(self, names: Sequence[str]) -> np.ndarray:
        """Returns the covariance of the logarithms of `names`, symmetric."""
        known = self.problem.parameters
        chosen = [known.coefficients.index(name) for name in names]
        slope = np.asarray(known.spread)[0, chosen]
        for position, name in enumerate(names):
            if name.partition(".")[2] in SHARES:
                prior = float(np.asarray(known.prior)[0, chosen[position]])
                slope[position] *= (1.0 - self.values[name]) / (1.0 - prior)
        moved = np.asarray(known.selector)[:, chosen] * slope
        covariance = moved.T @ self.covariance @ moved
        rounded = np.vectorize(short)(0.5 * (covariance + covariance.T))
        return np.triu(rounded) + np.triu(rounded, 1).T


def problem(run: Run, gpu: str | Path, judged: Sequence[Row] = ()) -> Problem:
    """Returns the rows of `run` to be fitted, and `judged` ones that only are predicted.

    Args:
        run: The run.
        gpu: Id of its chip, or the file that describes it.
        judged: Rows whose cases the fit must not see.
    """
    chip = load_chip(gpu)
    pairs = tuple(row for row in run.rows if row["kind"] == runs.PAIRS)
    single = [row for row in (*run.rows, *judged) if row["kind"] != runs.PAIRS]
    found = asked(single)
    measured = np.array([_measured(row) for row in found.rows])
    weights = _weights(found.rows, {id(row) for row in run.rows})
    if not weights.any():
        raise ValueError(
            f"{run.name}: expected rows of kernels to fit to, got none; "
            "measure the quick or the full suite."
        )
    asks = machine_rows(found, chip)
    limited = _is_limited(asks, weights)
    return Problem(
        rows=found.rows,
        asks=asks,
        parameters=machine_parameters(
            str(gpu), STACK, len(found.rows), limited=limited
        ),
        measured=measured,
        weights=weights[:, None] * np.isfinite(measured),
        families=np.array([runs.family(row) for row in found.rows]),
        pairs=pairs,
        set_aside=found.reasons,
    )


def _weights(rows: Sequence[Row], fitted: Set[int]) -> np.ndarray:
    """Returns the weight of each row, 1 on average over the `fitted` ones, 0 for others."""
    repeats = Counter(row["case"] for row in rows)
    weights = np.array(
        [
            _weight(row, repeats[row["case"]])
            * (id(row) in fitted and row["kind"] != runs.STEPS)
            for row in rows
        ]
    )
    return weights / weights[weights > 0.0].mean() if weights.any() else weights


def _is_limited(asks: MachineRows, weights: np.ndarray) -> bool:
    """Whether a fitted row had so few SMs, or so low a clock, that HBM may wait for it."""
    driven = np.asarray(asks.sm_share * asks.clock_share)
    busy = (weights > 0.0) & (np.asarray(asks.idle) == 0.0)
    return bool((driven[busy] < LIMITED).any())


def _measured(row: Row) -> tuple[float, float]:
    if row["kind"] in runs.IDLE:
        return np.nan, runs.idle_watts(row)  # joules of one second
    return runs.seconds(row), runs.joules(row)


def _weight(row: Row, repeats: int) -> float:
    if row["kind"] in runs.IDLE:
        return IDLE_WEIGHT
    stood_for = max(float(row.get("weight", 1.0)), 1.0)
    spread = float(row.get("seconds_spread", 0.0)) / LOOSE
    return float(np.sqrt(stood_for)) / repeats / (1.0 + spread * spread)


def fit_machine(task: Problem) -> MachineFit:
    """Returns the fit to all rows with a weight, and predictions by fits without them."""
    with jax.enable_x64(True):
        solve = partial(
            _solved(), task.asks, task.parameters, jnp.asarray(task.measured)
        )
        weights = jnp.asarray(task.weights)
        start = jnp.zeros(len(task.parameters.scores))
        found, predicted = solve(weights, jnp.array([NOISE, NOISE]), start)
        noise = _noise(np.asarray(predicted), task)
        found, predicted = solve(weights, noise, found.scores)
        left_out = np.full(task.measured.shape, np.nan)
        for out in folds([str(row["case"]) for row in task.rows], task.weights):
            kept = jnp.asarray(np.where(out[:, None], 0.0, task.weights))
            _, unseen = solve(kept, noise, found.scores)
            left_out[out] = np.asarray(unseen)[out]
        values = _values(task.parameters, found.scores)
        covariance = np.linalg.inv(np.asarray(found.hessian))
    return MachineFit(
        problem=task,
        values=values,
        covariance=covariance,
        apart=_apart(task.pairs, values),
        noise=(float(noise[0]), float(noise[1])),
        converged=float(found.last_decrease) <= TOLERANCE,
        predicted=np.asarray(predicted),
        left_out=left_out,
    )


def _apart(pairs: Sequence[Row], values: Mapping[str, float]) -> dict[str, FittedValue]:
    """Returns the contention of kernels side by side, if there are such rows."""
    if not pairs:
        return {}
    chip = Chip(**{field.name: values[f"chip.{field.name}"] for field in fields(Chip)})
    value, sd = fit_contention(pairs, chip)
    return {"chip.overlap_contention": FittedValue(value=short(value), sd=short(sd))}


def folds(cases: Sequence[str], weights: np.ndarray) -> list[np.ndarray]:
    """Returns masks of fitted rows; all rows of a case are in the same one.

    Cases are dealt out in a random order.
    """
    fitted = weights.sum(axis=1) > 0.0
    names = list(dict.fromkeys(c for c, f in zip(cases, fitted, strict=True) if f))
    count = min(FOLDS, len(names))
    order = np.random.default_rng(SEED).permutation(len(names))
    fold = {name: int(order[i]) % count for i, name in enumerate(names)}
    own = np.array([fold.get(name, -1) for name in cases])
    return [fitted & (own == number) for number in range(count)]


def _solved() -> Any:
    """Returns the compiled fit: rows, priors, measurements, weights, noise, start."""
    return jax.jit(_solve, compiler_options=COMPILER)


def _solve(
    rows: MachineRows,
    known: Parameters,
    measured: Array,
    weights: Array,
    noise: Array,  # of each target
    start: Array,
) -> tuple[Fit, Array]:
    there = jnp.isfinite(measured)
    logs = jnp.log(jnp.where(there, measured, 1.0))

    def residuals(u: Array) -> Array:
        return jnp.where(there, _logarithms(rows, known, u) - logs, 0.0) / noise[None]

    limits = Limits(noise=1.0, tolerance=TOLERANCE, steps=STEPS)
    found = polish(residuals, known, weights, limits, begin(start))[1]
    return found, jnp.exp(_logarithms(rows, known, row_scores(known, found.scores)))


def _logarithms(rows: MachineRows, known: Parameters, u: Array) -> Array:
    seconds, joules = price(rows, *coefficients(known, u))
    return jnp.stack([jnp.log(seconds), jnp.log(joules)], axis=1)


def _noise(predicted: np.ndarray, task: Problem) -> Array:
    """Weighted median of residuals by target, as the standard deviation of a normal one."""
    result = []
    for said, measured, weights in zip(
        predicted.T, task.measured.T, task.weights.T, strict=True
    ):
        chosen = weights > 0.0
        if chosen.sum() < FEWEST:
            result.append(NOISE)
            continue
        sizes = np.abs(np.log(said[chosen] / measured[chosen]))
        order = np.argsort(sizes)
        share = np.cumsum(weights[chosen][order])
        middle = sizes[order][np.searchsorted(share, 0.5 * share[-1])]
        result.append(float(np.clip(1.4826 * middle, LEAST_NOISE, MOST_NOISE)))
    return jnp.array(result)


def _values(known: Parameters, scores: Array) -> dict[str, float]:
    """Returns every coefficient, fitted or not; all rows have the same."""
    chip, stack = coefficients(known, row_scores(known, scores))
    values = {f"chip.{name}": leaf for name, leaf in vars(chip).items()}
    values |= {f"stack.{name}": leaf for name, leaf in vars(stack).items()}
    found = {name: float(np.asarray(leaf)[0]) for name, leaf in values.items()}
    if found[SATURATION] > 1.0:
        found[SATURATION] = 1.0  # all SMs at full clock are what there is
    return found


def short(value: float) -> float:
    """Returns `value` with the digits that a file keeps."""
    return float(f"{float(value):.6g}")
