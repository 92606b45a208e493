"""Options that all advice shares: what is served, where, and within which limits."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlens.cli.options import (
    Output,
    OutputCv,
    Prompt,
    kv_option,
    network_option,
    network_rate,
    number,
    option,
    profile_option,
    stack_option,
    weights_option,
)
from jaxlens.deployments import Workload
from jaxlens.quantities import quantity
from jaxlens.requests import Request, prepare

if TYPE_CHECKING:
    from jaxlens.optimize.problems import Limit

WHAT, TRAFFIC, LIMITS = "What is served", "Traffic", "Limits"
UNITS = {"ttft": "seconds", "tpot": "seconds", "power": "watts"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdviceOptions:
    """A model, a GPU, traffic and limits, as given on the command line."""

    model: Annotated[
        str,
        typer.Argument(
            help="HuggingFace id, or path of a config.json.", show_default=False
        ),
    ]
    gpu: Annotated[
        str | None,
        option("--gpu", "-g", help="Chip id or TOML file.", panel=WHAT),
    ] = None
    weights: Annotated[str | None, weights_option(WHAT)] = None
    kv: Annotated[str | None, kv_option(WHAT)] = None
    stack: Annotated[str | None, stack_option(WHAT)] = None
    profile: Annotated[Path | None, profile_option(WHAT)] = None
    network: Annotated[str | None, network_option(WHAT)] = None
    prompt: Prompt = 1024.0
    output: Output = 256.0
    output_cv: OutputCv = 0.5
    ttft: Annotated[
        str | None,
        option("--ttft", help="Longest bare prefill, such as 1s.", panel=LIMITS),
    ] = None
    tpot: Annotated[
        str | None,
        option(
            "--tpot", help="Longest mean time per output token: 50ms.", panel=LIMITS
        ),
    ] = None
    power: Annotated[
        str | None,
        option("--power", help="Most mean power of a GPU: 500W.", panel=LIMITS),
    ] = None
    throughput: Annotated[
        float | None,
        number(
            "--throughput",
            help="Least output tokens per second.",
            panel=LIMITS,
            metavar="RATE",
        ),
    ] = None
    max_gpus: Annotated[
        int,
        option("--max-gpus", help="Most GPUs, all replicas together.", panel=LIMITS),
    ] = 8


def request(options: AdviceOptions) -> Request:
    """Returns the checked request that `options` stand for, with no layout yet."""
    return prepare(
        options.model,
        options.gpu,
        stack=options.stack,
        profile=options.profile,
        weights=options.weights,
        kv=options.kv,
        workload=Workload(
            prompt_tokens=options.prompt,
            output_tokens=options.output,
            output_tokens_cv=options.output_cv,
        ),
        network_bytes_per_s=network_rate(options.network),
    )


def limits(options: AdviceOptions) -> "dict[str, Limit]":
    """Returns the limits that `options` state, by quantity."""
    from jaxlens.optimize.advise_layout import latency_limits

    stated: dict[str, Any] = {
        name: None
        if getattr(options, name) is None
        else quantity(getattr(options, name), unit, where=name)
        for name, unit in UNITS.items()
    }
    for name, value in {**stated, "throughput": options.throughput}.items():
        if value is not None and not value > 0.0:
            raise ValueError(f"{name}: expected a limit above 0, got {value:g}.")
    return latency_limits(
        ttft_seconds=stated["ttft"],
        tpot_seconds=stated["tpot"],
        watts_per_gpu=stated["power"],
        output_tokens_per_second=options.throughput,
    )
