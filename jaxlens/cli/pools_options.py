"""Options of `jaxlens pools`: GPUs of each pool, traffic, limits and prices."""

import dataclasses
from typing import Annotated, Any

import typer

from jaxlens.cli.options import (
    Output,
    OutputCv,
    Prompt,
    kv_option,
    network_option,
    number,
    option,
    stack_option,
    weights_option,
)
from jaxlens.deployments import UNLIMITED, Workload
from jaxlens.limits import Limits
from jaxlens.quantities import quantity
from jaxlens.requests import check_workload

TRIED, TRAFFIC, LIMITS, MONEY = "What is tried", "Traffic", "Limits", "Money"


def _gpus(name: str, use: str) -> Any:
    return option(name, help=f"Chip ids to {use} on, with commas.", panel=TRIED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolsOptions:
    """Two pools, traffic and limits, as given on the command line."""

    model: Annotated[
        str,
        typer.Argument(
            help="HuggingFace id, or path of a config.json.", show_default=False
        ),
    ]
    prefill_gpu: Annotated[str, _gpus("--prefill-gpu", "prefill")]
    decode_gpu: Annotated[str, _gpus("--decode-gpu", "decode")]
    arrivals: Annotated[
        float,
        number(
            "--arrivals",
            help="Requests per second, over all replicas.",
            panel=TRAFFIC,
            metavar="RATE",
        ),
    ]
    burstiness: Annotated[
        float,
        number(
            "--burstiness",
            help="Squared coefficient of variation of the gaps between requests.",
            panel=TRAFFIC,
            metavar="RATIO",
            default="1, Poisson",
        ),
    ] = 1.0
    prompt: Prompt = 1024.0
    output: Output = 256.0
    output_cv: OutputCv = 0.5
    ttft: Annotated[
        str | None,
        option("--ttft", help="Limit on the mean TTFT, such as 1s.", panel=LIMITS),
    ] = None
    ttft_p99: Annotated[
        str | None,
        option("--ttft-p99", help="Limit on the p99 of TTFT.", panel=LIMITS),
    ] = None
    tpot: Annotated[
        str | None,
        option("--tpot", help="Limit on the mean TPOT, such as 30ms.", panel=LIMITS),
    ] = None
    max_gpus: Annotated[
        int,
        option("--max-gpus", help="Most GPUs of both pools together.", panel=LIMITS),
    ] = 16
    objective: Annotated[
        str,
        option("--objective", help="energy, cost or gpus.", panel=LIMITS),
    ] = "energy"
    prefill_price: Annotated[
        float,
        number(
            "--prefill-price",
            help="Dollars per hour of a GPU that prefills.",
            panel=MONEY,
            metavar="DOLLARS",
            default="0",
        ),
    ] = 0.0
    decode_price: Annotated[
        float,
        number(
            "--decode-price",
            help="Dollars per hour of a GPU that decodes.",
            panel=MONEY,
            metavar="DOLLARS",
            default="0",
        ),
    ] = 0.0
    weights: Annotated[str | None, weights_option(TRIED)] = None
    kv: Annotated[str | None, kv_option(TRIED)] = None
    stack: Annotated[str | None, stack_option(TRIED)] = None
    network: Annotated[str | None, network_option(TRIED)] = None
    top: Annotated[int, option("--top", help="Pairs to show.", panel=LIMITS)] = 5
    compare: Annotated[
        bool,
        typer.Option(
            "--compare/--no-compare",
            help="Also search deployments without pools on the same GPUs.",
            rich_help_panel=LIMITS,
        ),
    ] = True


def workload(options: PoolsOptions) -> Workload:
    """Returns the lengths that `options` state, checked."""
    return check_workload(
        Workload(
            prompt_tokens=options.prompt,
            output_tokens=options.output,
            output_tokens_cv=options.output_cv,
        )
    )


def limits(options: PoolsOptions) -> Limits:
    """Returns the limits on latency that `options` state."""
    return Limits(
        ttft_seconds=_seconds(options.ttft, "ttft"),
        ttft_p99_seconds=_seconds(options.ttft_p99, "ttft p99"),
        tpot_seconds=_seconds(options.tpot, "tpot"),
    )


def _seconds(text: str | None, where: str) -> float:
    if text is None:
        return UNLIMITED
    seconds = quantity(text, "seconds", where=where)
    if not seconds > 0.0:
        raise ValueError(f"{where}: expected seconds above 0, got {seconds:g}.")
    return seconds
