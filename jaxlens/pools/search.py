"""The best pair of pools for a model under latency limits, beside the best without pools.

Pools meet in sums and maxima alone, so each candidate of each pool is evaluated once: N + M
evaluations for N x M pairs. Of each pool only those survive that no other beats in the
objective, in its part of TTFT and in GPUs; their pairs are judged at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from os import PathLike
from typing import Any

import jax
import numpy as np

from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.economics import Tariff
from jaxlens.exploring import ExploreResult, best, explore
from jaxlens.fronts import pareto_front, top_k
from jaxlens.limits import Limits
from jaxlens.pools.candidates import Candidates, candidates
from jaxlens.pools.estimates import Pool, PoolsEstimate, joined, predict_pools
from jaxlens.queueing import Arrivals, check_arrivals
from jaxlens.requests import MOST_GPUS, Request, has_network, prepare

# Quantity to rank by, and the column of one pool that adds up to it.
OBJECTIVES = {
    "joules_per_output_token": "joules_per_request",
    "dollars_per_million_output_tokens": "dollars_per_request",
    "gpus": "gpus",
}
TRIED = 50  # pairs for each one that is shown: many differ in batch or clock alone
MOST_SURVIVORS = 1500  # of one pool on one kind of GPU
Progress = Callable[[int], None]
# Objective, GPUs, and a position among the candidates of each pool.
Ranked = tuple[float, float, Candidates, int, Candidates, int]


@dataclass(frozen=True, kw_only=True)
class PoolPair:
    """Two pools and what they do together, in float64."""

    prefill_request: Request
    decode_request: Request
    prefill: Pool
    decode: Pool
    estimate: PoolsEstimate


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolsResult:
    """The best pairs of pools, best first, and what was compared to find them."""

    pairs: tuple[PoolPair, ...]
    objective: str
    limits: Limits
    arrivals: Arrivals
    candidates: int  # evaluated, of both pools
    compared: int  # pairs that were judged
    missed: dict[str, int]  # pairs that miss each limit
    least_ttft_seconds: float  # of the fastest pools; infinite if none is usable
    least_tpot_seconds: float
    aggregated: ExploreResult | None  # the same without pools

    @property
    def aggregated_best(self) -> int | None:
        """Returns the position of the best deployment without pools, if there is one."""
        if self.aggregated is None:
            return None
        rows = best(self.aggregated, 1)
        return rows[0] if rows else None


def best_pools(
    model: str | PathLike[str] | dict[str, Any],
    prefill_gpus: Iterable[str],
    decode_gpus: Iterable[str],
    arrivals: Arrivals,
    workload: Workload | None = None,
    limits: Limits | None = None,
    *,
    max_gpus: int = 16,
    objective: str = "joules_per_output_token",
    prefill_tariff: Tariff | None = None,
    decode_tariff: Tariff | None = None,
    weights: str | None = None,
    kv: str | None = None,
    stack: str | None = None,
    network_bytes_per_s: float | None = None,
    count: int = 5,
    compare: bool = True,
    progress: Progress | None = None,
) -> PoolsResult:
    """Returns the best pairs of pools that meet `limits`, in float64.

    Args:
        model: HuggingFace id, path to a `config.json` or its contents.
        prefill_gpus: Chip ids or files to prefill on.
        decode_gpus: Chip ids or files to decode on.
        arrivals: How requests come in.
        workload: Lengths of the requests.
        limits: On mean TTFT, p99 of TTFT and mean TPOT, all at load.
        max_gpus: Most GPUs of both pools together.
        objective: One of `OBJECTIVES`.
        prefill_tariff: Prices of GPUs that prefill.
        decode_tariff: Prices of GPUs that decode.
        weights: Number format of the weights; by default the checkpoint's own.
        kv: Number format of the KV cache; by default the checkpoint's own.
        stack: Serving stack id or file.
        network_bytes_per_s: Between nodes, per GPU; by default the chip's.
        count: How many pairs to return, each with other GPUs or layouts.
        compare: Whether to search deployments without pools on the same GPUs too.
        progress: Called with the number of candidates that are finished.

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    _check(objective, max_gpus)
    arrivals, limits = check_arrivals(arrivals), limits or Limits()
    formats = {"weights": weights, "kv": kv, "stack": stack, "workload": workload}
    formats["network_bytes_per_s"] = network_bytes_per_s

    def pools(names: Iterable[str], tariff: Tariff | None, decodes: bool) -> list:
        requests = _requests(model, names, decodes, formats)
        return [
            candidates(
                request,
                arrivals,
                max_gpus - 1,
                decodes=decodes,
                tariff=tariff,
                progress=progress,
            )
            for request in requests
        ]

    prefill_gpus, decode_gpus = list(prefill_gpus), list(decode_gpus)
    firsts = pools(prefill_gpus, prefill_tariff, False)
    seconds = pools(decode_gpus, decode_tariff, True)
    pairs, compared, missed = _pairs(
        firsts, seconds, limits, objective, max_gpus, count
    )
    aggregated = None
    if compare:
        gpus = dict.fromkeys([*prefill_gpus, *decode_gpus])
        aggregated = _aggregated(model, gpus, arrivals, limits, max_gpus, formats)
    return PoolsResult(
        pairs=pairs,
        objective=objective,
        limits=limits,
        arrivals=arrivals,
        candidates=sum(group.size for group in (*firsts, *seconds)),
        compared=compared,
        missed=missed,
        least_ttft_seconds=_least(firsts, "seconds") + _least(seconds, "seconds"),
        least_tpot_seconds=_least(seconds, "seconds_per_output_token"),
        aggregated=aggregated,
    )


def _check(objective: str, max_gpus: int) -> None:
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}."
        )
    if not 2 <= max_gpus <= MOST_GPUS:
        raise ValueError(
            f"max GPUs: expected a number from 2 to {MOST_GPUS}, one for each pool, "
            f"got {max_gpus}."
        )


def _requests(
    model: Any, names: Iterable[str], decodes: bool, formats: dict[str, Any]
) -> list[Request]:
    """One checked request per kind of GPU; pools need a network between them."""
    where = "decode gpu" if decodes else "prefill gpu"
    found = []
    for name in dict.fromkeys(names):
        request = prepare(model, name, deployment=Deployment(), **formats)
        if formats["network_bytes_per_s"] is None and not has_network(request.card):
            raise ValueError(
                f"{where}: expected a GPU with a known network, over which KV caches "
                f"move, got {request.card.chip}; state it (--network 400Gb/s)."
            )
        found.append(request)
    if not found:
        raise ValueError(
            f"{where}: expected at least one id such as h100-sxm, got none."
        )
    return found


def _survivors(
    group: Candidates, objective: str, limits: Limits, tail: bool
) -> np.ndarray:
    """Usable candidates that no other beats, as positions."""
    columns = group.columns
    seconds = columns["seconds_p99" if tail else "seconds"] + columns["port_seconds"]
    most = limits.ttft_p99_seconds if tail else limits.ttft_seconds
    fits = group.usable & (seconds <= most)
    if group.decodes:
        fits &= columns["seconds_per_output_token"] <= limits.tpot_seconds
    where = np.flatnonzero(fits)
    if where.size == 0:
        return where
    names = (OBJECTIVES[objective], "gpus")
    points = np.stack([seconds[where], *(columns[name][where] for name in names)], 1)
    front = where[pareto_front(points.astype(float))]
    if front.size > MOST_SURVIVORS:
        front = front[top_k(columns[OBJECTIVES[objective]][front], MOST_SURVIVORS)]
    return front


def _pairs(
    firsts: Sequence[Candidates],
    seconds: Sequence[Candidates],
    limits: Limits,
    objective: str,
    max_gpus: int,
    count: int,
) -> tuple[tuple[PoolPair, ...], int, dict[str, int]]:
    """The best pairs over all kinds of GPUs, how many were judged, what they missed."""
    tail = bool(limits.ttft_p99_seconds < UNLIMITED)
    found: list[Ranked] = []
    compared = 0
    missed: dict[str, int] = {}
    for first, second in product(firsts, seconds):
        left = _survivors(first, objective, limits, tail)
        right = _survivors(second, objective, limits, tail)
        if not left.size or not right.size:
            continue
        both = _joined(first, left, second, right)
        met = np.ones((left.size, right.size), bool)
        for name, slack in _slacks(both, limits, max_gpus).items():
            missed[name] = missed.get(name, 0) + int((slack < 0.0).sum())
            met &= slack >= 0.0
        compared += met.size
        score = np.where(met, getattr(both, objective), np.nan)
        for flat in top_k(score.ravel(), TRIED * count):
            row, column = divmod(int(flat), right.size)
            ends = (first, int(left[row]), second, int(right[column]))
            gpus = float(np.asarray(both.gpus)[row, column])
            found.append((float(score[row, column]), gpus, *ends))
    found.sort(key=lambda item: item[:2])
    return _distinct(found, count), compared, missed


def _joined(
    first: Candidates, left: np.ndarray, second: Candidates, right: np.ndarray
) -> PoolsEstimate:
    """What all pairs do, as arrays with a row for each prefill pool."""
    question = first.question
    both = joined(
        jax.tree.map(lambda column: column[:, None], first.load(left)),
        jax.tree.map(lambda column: column[None, :], second.load(right)),
        question.workload,
        question.arrivals,
    )
    shape = (left.size, right.size)
    return jax.tree.map(lambda value: np.broadcast_to(np.asarray(value), shape), both)


def _slacks(
    both: PoolsEstimate, limits: Limits, max_gpus: int
) -> dict[str, np.ndarray]:
    pairs = {
        "gpus": (max_gpus, both.gpus),
        "ttft": (limits.ttft_seconds, both.seconds_to_first_token),
        "ttft_p99": (limits.ttft_p99_seconds, both.seconds_to_first_token_p99),
        "tpot": (limits.tpot_seconds, both.seconds_per_output_token),
    }
    return {name: np.asarray(most - value) for name, (most, value) in pairs.items()}


def _distinct(found: Sequence[Ranked], count: int) -> tuple[PoolPair, ...]:
    """The first pair of each combination of GPUs, layouts and replicas."""
    taken: dict[tuple, PoolPair] = {}
    for _, _, first, left, second, right in found:
        prefill, decode = first.pool(left), second.pool(right)
        key = (
            first.request.card.chip,
            second.request.card.chip,
            *(_layout(pool) for pool in (prefill, decode)),
        )
        if key in taken:
            continue
        question = first.question
        with jax.enable_x64(True):
            estimate = predict_pools(
                question.model, prefill, decode, question.workload, question.arrivals
            )
            estimate = jax.tree.map(float, estimate)
        taken[key] = PoolPair(
            prefill_request=replace(first.request, deployment=prefill.deployment),
            decode_request=replace(second.request, deployment=decode.deployment),
            prefill=prefill,
            decode=decode,
            estimate=estimate,
        )
        if len(taken) == count:
            break
    return tuple(taken.values())


def _layout(pool: Pool) -> tuple[float, ...]:
    layout = pool.deployment
    degrees = layout.tensor_parallel, layout.pipeline_parallel, layout.expert_parallel
    return tuple(float(count) for count in (pool.replicas, *degrees))


def _least(groups: Sequence[Candidates], name: str) -> float:
    """The least of a column over all usable candidates; infinite if there are none."""
    values = [group.columns[name][group.usable] for group in groups]
    return float(
        min((column.min() for column in values if column.size), default=np.inf)
    )


def _aggregated(
    model: Any,
    gpus: Iterable[str],
    arrivals: Arrivals,
    limits: Limits,
    max_gpus: int,
    formats: dict[str, Any],
) -> ExploreResult:
    return explore(
        model,
        gpus,
        formats["workload"],
        limits=limits,
        arrivals=arrivals,
        max_gpus=max_gpus,
        weights=formats["weights"],
        kv=formats["kv"],
        stack=formats["stack"],
    )
