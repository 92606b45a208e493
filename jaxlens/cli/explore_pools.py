"""Prefill and decode pools beside the best deployment without pools."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxlens import exploring
from jaxlens.cli.tables import print_line, print_table, scaled
from jaxlens.deployments import Workload
from jaxlens.economics import Tariff
from jaxlens.exploring import ExploreResult
from jaxlens.plans import OWN_FORMAT
from jaxlens.pools.search import OBJECTIVES, PoolPair, PoolsResult, best_pools

COLUMNS = (
    "prefill pool",
    "decode pool",
    "batch",
    "MHz",
    "J/token",
    "TPOT ms",
    "TTFT ms",
    "transfer ms",
    "W",
)
NUMBERS = (
    "joules_per_output_token",
    "joules_prefill_per_output_token",
    "joules_decode_per_output_token",
    "joules_transfer_per_output_token",
    "wall_joules_per_output_token",
    "dollars_per_million_output_tokens",
    "seconds_to_first_token",
    "seconds_to_first_token_p50",
    "seconds_to_first_token_p99",
    "seconds_transfer",
    "seconds_per_output_token",
    "seconds_per_output_token_p99",
    "capacity_requests_per_second",
    "kv_bytes_per_request",
    "gpus",
    "watts",
)
NOTE = (
    "pools: layouts x batch x clock x replicas; --set, --where and power budgets do not "
    "hold for them. Transfers of KV caches are exposed, their energy is a prior."
)


def search_pools(
    result: ExploreResult,
    workload: Workload,
    max_gpus: int,
    gpus: tuple[Sequence[str], Sequence[str]],
    count: int,
) -> PoolsResult:
    """Returns the best pairs of pools for what was compared without pools.

    Args:
        result: The comparison without pools: model, formats, limits, arrivals, prices.
        workload: Lengths of the requests.
        max_gpus: Most GPUs of both pools.
        gpus: Chip ids of the pool that prefills and of the one that decodes; by default
            those that were compared.
        count: How many pairs.
    """
    if result.arrivals is None:
        raise ValueError(
            "pools: expected --arrivals, the requests per second, got none."
        )
    if result.objective not in OBJECTIVES:
        raise ValueError(
            "pools: expected the objective energy or cost, got "
            f"{result.objective.replace('_', ' ')}; leave out --pools."
        )
    kind = result.plans[0].kind
    own = list(dict.fromkeys(str(plan.kind["gpu"]) for plan in result.plans))
    known = {str(plan.kind["gpu"]): plan.question.rates for plan in result.plans}
    sides = [list(names) or own for names in gpus]
    formats: dict[str, Any] = {
        name: None if kind.get(name) in (None, OWN_FORMAT) else str(kind[name])
        for name in ("weights", "kv", "stack")
    }
    found = [
        best_pools(
            kind["model"],  # pyright: ignore[reportArgumentType]
            [first],
            [second],
            result.arrivals,
            workload,
            result.limits,
            max_gpus=max_gpus,
            objective=result.objective,
            prefill_tariff=_tariff(known, first),
            decode_tariff=_tariff(known, second),
            count=count,
            compare=False,
            **formats,
        )
        for first in sides[0]
        for second in sides[1]
    ]
    return _merged(found, count)


def pools_content(found: PoolsResult) -> dict[str, Any]:
    """Returns the pairs as plain numbers, best first, and how many were compared."""
    return {
        "pairs": [_pair(pair) for pair in found.pairs],
        "candidates": found.candidates,
        "compared": found.compared,
        "missed": found.missed,
        "note": NOTE,
    }


def show_pools(result: ExploreResult, found: PoolsResult) -> None:
    """Prints the best pairs, and how the first compares with no pools."""
    if not found.pairs:
        print_line(f"pools: none of {found.compared:,} pairs is within limits")
        return
    print_table(COLUMNS, [_cells(pair) for pair in found.pairs], left=2)
    rows, words = exploring.best(result, 1), found.objective.replace("_", " ")
    if rows and found.objective in result.columns:
        alone = float(result.columns[found.objective][rows[0]])
        pooled = float(getattr(found.pairs[0].estimate, found.objective))
        change = 100.0 * (pooled / alone - 1.0)
        print_line(f"pools against the best without: {change:+.0f} % {words}")


def _tariff(known: dict[str, Tariff], gpu: str) -> Tariff:
    if gpu not in known and len(set(map(id, known.values()))) > 1:
        raise ValueError(f"prices: expected one for {gpu}, got none; add it to --gpu.")
    return known.get(gpu, next(iter(known.values())))


def _merged(found: Sequence[PoolsResult], count: int) -> PoolsResult:
    """The best pairs of several searches of different GPUs."""
    first = found[0]
    pairs = sorted(
        (pair for one in found for pair in one.pairs),
        key=lambda pair: float(getattr(pair.estimate, first.objective)),
    )
    return replace(
        first,
        pairs=tuple(pairs[:count]),
        candidates=sum(one.candidates for one in found),
        compared=sum(one.compared for one in found),
        missed={name: sum(one.missed[name] for one in found) for name in first.missed},
        least_ttft_seconds=min(one.least_ttft_seconds for one in found),
        least_tpot_seconds=min(one.least_tpot_seconds for one in found),
    )


def _pair(pair: PoolPair) -> dict[str, Any]:
    def side(request: Any, pool: Any) -> dict[str, Any]:
        layout = pool.deployment
        return {
            "gpu": request.card.chip,
            "replicas": float(pool.replicas),
            "tensor_parallel": float(layout.tensor_parallel),
            "expert_parallel": float(layout.expert_parallel),
            "pipeline_parallel": float(layout.pipeline_parallel),
            "batch": float(layout.batch),
            "clock_hz": float(layout.clock_hz),
        }

    return {
        "prefill": side(pair.prefill_request, pair.prefill),
        "decode": side(pair.decode_request, pair.decode),
        **{name: float(getattr(pair.estimate, name)) for name in NUMBERS},
    }


def _cells(pair: PoolPair) -> list[str]:
    def side(request: Any, pool: Any) -> str:
        layout = pool.deployment
        degrees = {
            "tp": layout.tensor_parallel,
            "pp": layout.pipeline_parallel,
            "ep": layout.expert_parallel,
        }
        text = " ".join(f"{n}{float(d):.0f}" for n, d in degrees.items() if d > 1.0)
        return f"{float(pool.replicas):.0f} x {request.card.chip} {text or 'tp1'}"

    found, pools = pair.estimate, (pair.prefill, pair.decode)
    return [
        side(pair.prefill_request, pair.prefill),
        side(pair.decode_request, pair.decode),
        " / ".join(f"{float(pool.deployment.batch):g}" for pool in pools),
        " / ".join(f"{float(pool.deployment.clock_hz) * 1e-6:.0f}" for pool in pools),
        f"{found.joules_per_output_token:.3f}",
        f"{found.seconds_per_output_token * 1e3:.1f}",
        f"{found.seconds_to_first_token * 1e3:.0f}",
        f"{found.seconds_transfer * 1e3:.1f}",
        scaled(float(found.watts), "W"),
    ]
