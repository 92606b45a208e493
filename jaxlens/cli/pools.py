"""`jaxlens pools`: prefill and decode on GPUs of their own."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from jaxlens.cli.options import Json, network_rate, with_options
from jaxlens.cli.pools_options import PoolsOptions, limits, workload
from jaxlens.cli.tables import (
    print_json,
    print_line,
    print_notes,
    print_table,
    scaled,
    share,
)
from jaxlens.deployments import UNLIMITED
from jaxlens.economics import tariff
from jaxlens.pools import Pool, PoolLoad
from jaxlens.pools.search import PoolPair, PoolsResult, best_pools
from jaxlens.queueing import Arrivals

NOTHING_FEASIBLE = 2
OBJECTIVES = {
    "energy": "joules_per_output_token",
    "cost": "dollars_per_million_output_tokens",
    "gpus": "gpus",
}
NOTES = (
    "the energy of a transfer is a prior: power of the links x time",
    "a transfer is not hidden behind the prefill that makes it: the worst case",
    "latencies are those at load, queueing included; their quantiles are approximate",
)
EXAMPLES = """
[bold]Examples[/bold]

jaxlens pools meta-llama/Llama-3.1-70B-Instruct --prefill-gpu h100-sxm --decode-gpu h200-sxm
--arrivals 4 --ttft 1s --tpot 30ms

jaxlens pools Qwen/Qwen3-32B --prefill-gpu h100-sxm,b200-sxm --decode-gpu h100-sxm
--arrivals 10 --burstiness 2 --ttft-p99 2s --tpot 25ms --json
"""
COLUMNS = (
    "prefill",
    "decode",
    "GPUs",
    "J/token",
    "TTFT ms",
    "p99",
    "transfer",
    "TPOT ms",
    "load",
)


@with_options(PoolsOptions)
def command(options: PoolsOptions, as_json: Json = False) -> None:
    """The best pair of a prefill pool and a decode pool, beside the best without pools.

    Each pool has its own GPU, layout, clock, batch and replicas; KV caches move between
    them over the network. Latencies are those at the rate of arrivals, with queueing.
    """
    started = time.perf_counter()
    with _progress(hidden=as_json) as progress:
        result = _searched(options, progress)
    found = content(result)
    found["seconds_elapsed"] = time.perf_counter() - started
    if as_json:
        print_json(found)
    else:
        _show(result, found)
    if not result.pairs:
        raise typer.Exit(NOTHING_FEASIBLE)


def _searched(
    options: PoolsOptions, progress: Callable[[int], None] | None
) -> PoolsResult:
    objective = options.objective
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}."
        )
    if objective == "cost" and options.prefill_price == options.decode_price == 0.0:
        raise ValueError(
            "objective: expected prices for cost, got none; "
            "give --prefill-price and --decode-price."
        )
    arrivals = Arrivals(
        requests_per_second=options.arrivals, burstiness=options.burstiness
    )
    return best_pools(
        options.model,
        _listed(options.prefill_gpu),
        _listed(options.decode_gpu),
        arrivals,
        workload(options),
        limits(options),
        max_gpus=options.max_gpus,
        objective=OBJECTIVES[objective],
        prefill_tariff=tariff(dollars_per_gpu_hour=options.prefill_price),
        decode_tariff=tariff(dollars_per_gpu_hour=options.decode_price),
        weights=options.weights,
        kv=options.kv,
        stack=options.stack,
        network_bytes_per_s=network_rate(options.network),
        count=options.top,
        compare=options.compare,
        progress=progress,
    )


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar on the terminal, gone when all is compared; none where output is piped."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if hidden or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=None)
        done = [0]

        def report(count: int) -> None:
            done[0] += count
            bar.update(task, description=f"{done[0]:,} candidates priced")

        yield report


def content(result: PoolsResult) -> dict[str, Any]:
    """Returns the answer as plain numbers in SI."""
    rows = [_pair(pair) for pair in result.pairs]
    return {
        "pairs": rows,
        "aggregated": _aggregated(result),
        "objective": result.objective,
        "arrivals": {name: float(v) for name, v in vars(result.arrivals).items()},
        "candidates": result.candidates,
        "pairs_compared": result.compared,
        "pairs_that_miss": result.missed,
        "least_ttft_seconds": _finite(result.least_ttft_seconds),
        "least_tpot_seconds": _finite(result.least_tpot_seconds),
        "notes": list(NOTES),
    }


def _finite(value: float) -> float | None:
    return value if value < UNLIMITED else None


def _pair(pair: PoolPair) -> dict[str, Any]:
    numbers = {
        name: value
        for name, value in vars(pair.estimate).items()
        if not isinstance(value, PoolLoad)
    }
    return {
        **numbers,
        "prefill": _pool(pair.prefill_request.card.chip, pair.prefill)
        | dict(vars(pair.estimate.prefill)),
        "decode": _pool(pair.decode_request.card.chip, pair.decode)
        | dict(vars(pair.estimate.decode)),
    }


def _pool(chip: str, pool: Pool) -> dict[str, Any]:
    layout = pool.deployment
    return {
        "gpu": chip,
        "replicas": int(pool.replicas),
        "tensor_parallel": int(layout.tensor_parallel),
        "pipeline_parallel": int(layout.pipeline_parallel),
        "expert_parallel": int(layout.expert_parallel),
        "batch": int(layout.batch),
        "clock_hz": float(layout.clock_hz),
    }


AGGREGATED = (
    "gpus",
    "tensor_parallel",
    "expert_parallel",
    "pipeline_parallel",
    "data_parallel",
    "batch",
    "clock_hz",
    "joules_per_output_token",
    "seconds_to_first_token",
    "seconds_to_first_token_p99",
    "seconds_per_output_token",
    "utilisation",
)


def _aggregated(result: PoolsResult) -> dict[str, Any] | None:
    index = result.aggregated_best
    if result.aggregated is None or index is None:
        return None
    columns = result.aggregated.columns
    request = result.aggregated.requests[int(columns["gpu"][index])]
    numbers = {name: float(columns[name][index]) for name in AGGREGATED}
    return {"gpu": request.card.chip, **numbers}


def _show(result: PoolsResult, found: dict[str, Any]) -> None:
    rate = float(result.arrivals.requests_per_second)
    print_line(
        f"{result.candidates:,} pools priced, {result.compared:,} pairs judged at "
        f"{rate:g} requests/s",
        style="bold",
    )
    if not result.pairs:
        _show_nothing(result)
    else:
        print_table(COLUMNS, [_row(pair) for pair in found["pairs"]], left=2)
    without = found["aggregated"]
    if without is not None:
        joules = without["joules_per_output_token"]
        print_line(
            f"without pools: {without['gpus']:.0f} x {without['gpu']}, "
            f"tp {without['tensor_parallel']:.0f}, batch {without['batch']:.0f}: "
            f"{scaled(joules, 'J')} per token, "
            f"TTFT {scaled(without['seconds_to_first_token'], 's')}, "
            f"TPOT {scaled(without['seconds_per_output_token'], 's')}"
        )
        if found["pairs"]:
            change = found["pairs"][0]["joules_per_output_token"] / joules - 1.0
            more = "more" if change > 0.0 else "less"
            print_line(f"pools take {share(abs(change))} {more} energy per token")
    elif result.aggregated is not None:
        print_line("without pools no deployment meets the limits")
    print_notes(NOTES)


def _show_nothing(result: PoolsResult) -> None:
    if result.least_ttft_seconds == float("inf"):
        print_line(
            "no pools fit and keep up with the arrivals: take more GPUs (--max-gpus), "
            "other GPUs or a lower rate",
            style="red",
        )
        return
    print_line(
        f"no pair meets the limits; the fastest pools reach a TTFT of "
        f"{scaled(result.least_ttft_seconds, 's')} and a TPOT of "
        f"{scaled(result.least_tpot_seconds, 's')}: relax the limits or --max-gpus",
        style="red",
    )


def _row(pair: dict[str, Any]) -> tuple[str, ...]:
    def pool(end: dict[str, Any]) -> str:
        words = f"{end['replicas']}x {end['gpu']} tp{end['tensor_parallel']}"
        for name in ("pipeline", "expert"):
            degree = end[f"{name}_parallel"]
            words += f" {name[0]}p{degree}" if degree > 1 else ""
        return f"{words} b{end['batch']} {end['clock_hz'] / 1e6:.0f}MHz"

    return (
        pool(pair["prefill"]),
        pool(pair["decode"]),
        f"{pair['gpus']:.0f}",
        f"{pair['joules_per_output_token']:.3g}",
        f"{1e3 * pair['seconds_to_first_token']:.0f}",
        f"{1e3 * pair['seconds_to_first_token_p99']:.0f}",
        f"{1e3 * pair['seconds_transfer']:.1f}",
        f"{1e3 * pair['seconds_per_output_token']:.1f}",
        share(1.0 - pair["load_slack"]),
    )
