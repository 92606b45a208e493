"""Which configurations to measure: medoids of the model's own gradients, within a budget.

Near the priors a prediction is linear in the scores z of a fit, log y = log y_0 + J z, and z
has a standard normal prior. So two candidates a and b are expected to say different things by

    E (J_a z - J_b z)^2 = |J_a - J_b|^2,

the squared distance of their Jacobian rows. Candidates that lie close teach the same; one of
them, a medoid, stands for all, with the size of its cluster as its weight. Medoids minimise
the sum of squared distances: what is expected to be left unexplained.

Source: Y. Guo et al., "FedCore: Straggler-Free Federated Learning with Distributed Coresets",
arXiv 2402.00219, 2024 (k-medoids of gradients, size from a time budget); E. Schubert,
P. J. Rousseeuw, "Fast and Eager k-Medoids Clustering", Information Systems 101, 2021.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration import fits
from jaxlens.calibration.calibrating import QUICK_COMPILE, Evidence
from jaxlens.calibration.freedoms import SERVING
from jaxlens.calibration.measured_tables import Table, build_table
from jaxlens.calibration.parameters import Freedom, coefficients, parameters
from jaxlens.calibration.raw_tables import read_columns
from jaxlens.calibration.serving_rows import predict_rows, serving_rows
from jaxlens.profiles import load_profile_card, load_stack

SETTLING_LIFETIMES = 3.0  # one to fill the batch, two to measure
# Columns of a serving table that only a measurement can fill: a candidate has none.
RESULTS = frozenset(
    {
        "output_tokens_per_second",
        "watts",
        "joules_per_output_token",
        "itl_mean_seconds",
        "itl_p50_seconds",
        "itl_p99_seconds",
        "ttft_p50_seconds",
        "prompt_tokens_is_estimate",
    }
)


@dataclass(frozen=True, kw_only=True)
class Coreset:
    """Candidates to measure, and how many each stands for."""

    rows: np.ndarray  # positions among the candidates, in their order
    weights: np.ndarray  # candidates for which each row stands, itself included
    cluster: np.ndarray  # of every candidate: index into `rows`
    seconds: float  # what measuring all rows costs
    spread: float  # root mean square distance from the medoid, of log predictions
    spread_of_one: float  # the same where the best single candidate stands for all

    @property
    def fit_weights(self) -> np.ndarray:
        """Weights of mean one: a run is one run, however many it stands for."""
        return self.weights / self.weights.mean()


def read_candidates(
    path: str | Path, *, gpu: str | None = None, stack: str | None = None
) -> tuple[Table, np.ndarray]:
    """Returns what could be run, and what each run costs in seconds where a column says.

    A candidate is a row of a serving table without results: `max_num_seqs` stands in for
    the concurrency that nobody has measured. Costs are NaN where there is no column
    `cost_seconds`.

    Args:
        path: CSV or Parquet file.
        gpu: Chip of rows that name none.
        stack: Serving stack of rows that name none.
    """
    raw = read_columns(path)
    columns: dict[str, Any] = {
        name: cells for name, cells in raw.columns.items() if name not in RESULTS
    }
    rows = len(raw.row_numbers)
    limit = columns.get("max_num_seqs", [None] * rows)
    running = columns.get("concurrency", [None] * rows)
    columns["concurrency"] = [
        b if _empty(a) else a for a, b in zip(running, limit, strict=True)
    ]
    columns["output_tokens_per_second"] = [1.0] * rows  # the reader asks for one
    for name in ("weight_dtype", "kv_dtype"):
        columns.setdefault(name, [""] * rows)  # the model's own
    given = columns.pop("cost_seconds", [None] * rows)
    read = build_table(raw.with_columns(columns), kind="serving", gpu=gpu, stack=stack)
    position = {int(number): i for i, number in enumerate(raw.row_numbers)}
    costs = [given[position[int(number)]] for number in read.row_numbers]
    seconds = np.array([np.nan if _empty(c) else float(c) for c in costs])
    known = np.isfinite(np.asarray(read["concurrency"], float))
    for name in ("prompt_tokens", "output_tokens"):
        known &= np.isfinite(np.asarray(read.columns.get(name, np.nan * seconds)))
    if not known.any():
        raise ValueError(
            f"coreset: {path}: expected candidates with prompt_tokens, output_tokens "
            f"and concurrency or max_num_seqs, got none; add the columns."
        )
    return read.subset(known), seconds[known]


def _empty(cell: Any) -> bool:
    return cell is None or str(cell).strip() in {"", "nan"}


def evidence_of(
    table: Table, freedom: Mapping[str, Freedom] = SERVING
) -> tuple[Evidence, np.ndarray]:
    """Returns candidates as rows of a fit, and the predicted seconds of a sequence."""
    pairs = list(zip(table["gpu"], table["stack"], strict=True))
    cards = {pair: load_profile_card(*pair, shipped=False) for pair in set(pairs)}
    loaded = {name: load_stack(name) for name in dict.fromkeys(table["stack"])}
    evidence = Evidence(
        rows=serving_rows(table, loaded),
        parameters=parameters(
            [cards[pair].chip for pair in pairs],
            [cards[pair].stack for pair in pairs],
            freedom,
        ),
        measured=jnp.ones((len(table), 2)),
        weights=jnp.ones((len(table), 2)),
    )
    seconds_per_step = np.asarray(_prior_latency(evidence))
    return evidence, seconds_per_step * np.asarray(table["output_tokens"], float)


@partial(jax.jit, compiler_options=QUICK_COMPILE)
def _prior_latency(evidence: Evidence) -> Array:
    known = evidence.parameters
    chip, stack = coefficients(known, jnp.zeros_like(known.prior))
    return predict_rows(evidence.rows, chip, stack).seconds_per_step


def run_seconds(lifetime_seconds: np.ndarray, setup_seconds: float) -> np.ndarray:
    """Returns what a run costs: start the engine, fill the batch, measure."""
    return setup_seconds + SETTLING_LIFETIMES * lifetime_seconds


def gradients(evidence: Evidence) -> np.ndarray:
    """Returns d log(J/token), d log(latency) / d scores at the priors, a row a candidate."""
    ones = jnp.ones_like(jnp.asarray(evidence.measured))
    rows = np.asarray(_jacobian(replace(evidence, measured=ones)))
    return rows.reshape(len(rows), -1)


@partial(jax.jit, compiler_options=QUICK_COMPILE)
def _jacobian(evidence: Evidence) -> Array:
    known = evidence.parameters
    prior = jnp.zeros(len(known.scores))
    return fits.jacobian(evidence.residuals, known, prior)


def squared_distances(features: np.ndarray) -> np.ndarray:
    """Returns squared Euclidean distances of all pairs of rows."""
    squares = np.sum(features * features, axis=1)
    squared = squares[:, None] + squares[None, :] - 2.0 * features @ features.T
    np.fill_diagonal(squared, 0.0)
    return np.maximum(squared, 0.0)


def coreset(features: np.ndarray, count: int, seed: int = 0) -> Coreset:
    """Returns `count` medoids of the rows of `features`."""
    _check_features(features)
    if not 1 <= count <= len(features):
        raise ValueError(
            f"coreset: expected 1 to {len(features)} rows to choose, got {count}."
        )
    apart = squared_distances(features)
    return _described(apart, _medoids(apart, count, seed), np.zeros(len(features)))


def coreset_within(
    features: np.ndarray, seconds: np.ndarray, budget_seconds: float, seed: int = 0
) -> Coreset:
    """Returns the most medoids whose measurement fits in a budget of time.

    The largest number of medoids that costs no more than the budget is found by bisection;
    what is left is spent greedily on the candidates that bring the others closest to one
    that is measured, per second.

    Args:
        features: Row of each candidate in gradient space.
        seconds: Cost of measuring each candidate.
        budget_seconds: What all runs may take together.
        seed: Of the clustering.
    """
    _check_features(features)
    seconds = np.asarray(seconds, float)
    if seconds.shape != (len(features),) or not (seconds > 0.0).all():
        raise ValueError(
            "coreset: expected seconds above 0 for each candidate, got others."
        )
    if budget_seconds < seconds.min():
        raise ValueError(
            f"coreset: expected a budget of at least {seconds.min():.0f} s, the cheapest "
            f"run, got {budget_seconds:.0f} s."
        )
    apart = squared_distances(features)
    chosen = np.zeros(0, int)
    low, high = 0, int((np.cumsum(np.sort(seconds)) <= budget_seconds).sum())
    while low < high:
        count = (low + high + 1) // 2
        tried = _medoids(apart, count, seed)
        if seconds[tried].sum() <= budget_seconds:
            low, chosen = count, tried
        else:
            high = count - 1
    chosen = _topped_up(apart, chosen, seconds, budget_seconds)
    return _described(apart, chosen, seconds)


def _check_features(features: np.ndarray) -> None:
    if features.ndim != 2 or not len(features) or not np.isfinite(features).all():
        raise ValueError(
            "coreset: expected a finite gradient row for each candidate, got others; "
            "look for impossible rows with `jaxlens validate`."
        )


def _medoids(apart: np.ndarray, count: int, seed: int) -> np.ndarray:
    if count >= len(apart):
        return np.arange(len(apart))
    import kmedoids

    found = kmedoids.fasterpam(
        apart, count, init="build", random_state=seed, n_cpu=1, max_iter=100
    )
    return np.sort(np.asarray(found.medoids, int))


def _topped_up(
    apart: np.ndarray, chosen: np.ndarray, seconds: np.ndarray, budget: float
) -> np.ndarray:
    left = budget - seconds[chosen].sum()
    nearest = apart[:, chosen].min(axis=1, initial=apart.max() + 1.0)
    while True:
        gain = np.maximum(nearest[:, None] - apart, 0.0).sum(axis=0) / seconds
        gain[(seconds > left) | np.isin(np.arange(len(apart)), chosen)] = -1.0
        best = int(np.argmax(gain))
        if gain[best] <= 0.0:
            return np.sort(chosen)
        chosen = np.append(chosen, best)
        left -= seconds[best]
        nearest = np.minimum(nearest, apart[:, best])


def _described(apart: np.ndarray, rows: np.ndarray, seconds: np.ndarray) -> Coreset:
    to_rows = apart[:, rows]
    cluster = to_rows.argmin(axis=1)
    cluster[rows] = np.arange(len(rows))  # each stands for itself, repeats included
    return Coreset(
        rows=rows,
        weights=np.bincount(cluster, minlength=len(rows)).astype(float),
        cluster=cluster,
        seconds=float(seconds[rows].sum()),
        spread=float(np.sqrt(to_rows.min(axis=1).mean())),
        spread_of_one=float(np.sqrt(apart.mean(axis=0).min())),
    )
