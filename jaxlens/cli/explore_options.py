"""Options of `jaxlens explore`: what is tried, what must be met, what it costs."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from jaxlens.cli.options import (
    Output,
    OutputCv,
    Prompt,
    kv_option,
    number,
    option,
    stack_option,
    weights_option,
)

TRIED, TRAFFIC = "What is tried", "Traffic"
LIMITS, MONEY, ANSWER = "Limits", "Money and carbon", "The answer"
SHORT = {
    "energy": "joules_per_output_token",
    "tpot": "seconds_per_output_token",
    "prefill": "seconds_prefill",
    "ttft": "seconds_to_first_token",
    "ttft-p99": "seconds_to_first_token_p99",
    "watts": "watts_per_gpu",
    "throughput": "output_tokens_per_second",
    "throughput-per-gpu": "output_tokens_per_second_per_gpu",
    "tokens-per-joule": "output_tokens_per_joule",
    "wall-energy": "wall_joules_per_output_token",
    "cost": "dollars_per_million_output_tokens",
    "carbon": "grams_co2_per_million_output_tokens",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploreOptions:
    """A space of deployments, limits and prices, as given on the command line."""

    model: Annotated[
        str | None,
        typer.Argument(
            help="HuggingFace id, or path of a config.json; or in the space.",
            show_default=False,
        ),
    ] = None
    gpu: Annotated[
        str | None,
        option("--gpu", "-g", help="Chip ids, with commas between them.", panel=TRIED),
    ] = None
    settings: Annotated[
        list[str] | None,
        option(
            "--set",
            help="Values of a knob; repeat for more knobs. See the end of this page.",
            panel=TRIED,
            metavar="KNOB=VALUES",
        ),
    ] = None
    where: Annotated[
        list[str] | None,
        option(
            "--where",
            help="A bound between knobs and results, such as 'tp * pp <= 8' or "
            "'watts_per_gpu * gpus < 5000'; may be repeated.",
            panel=TRIED,
            metavar="BOUND",
        ),
    ] = None
    space: Annotated[
        Path | None,
        option(
            "--space",
            help="YAML or TOML file with knobs and their values; --set wins over it.",
            panel=TRIED,
            metavar="FILE",
        ),
    ] = None
    max_gpus: Annotated[
        int | None,
        option(
            "--max-gpus",
            help="Most GPUs, all replicas together. Default: 16.",
            panel=TRIED,
            metavar="COUNT",
        ),
    ] = None
    weights: Annotated[str | None, weights_option(TRIED)] = None
    kv: Annotated[str | None, kv_option(TRIED)] = None
    stack: Annotated[str | None, stack_option(TRIED)] = None
    prompt: Prompt = 1024.0
    output: Output = 256.0
    output_cv: OutputCv = 0.5
    pools: Annotated[
        bool,
        option(
            "--pools",
            help="Also try pools of GPUs that prefill and that decode; needs --arrivals.",
            panel=TRIED,
        ),
    ] = False
    prefill_gpu: Annotated[
        str | None,
        option(
            "--prefill-gpu",
            help="Chips of the pool that prefills; --gpu's.",
            panel=TRIED,
        ),
    ] = None
    decode_gpu: Annotated[
        str | None,
        option(
            "--decode-gpu", help="Chips of the pool that decodes; --gpu's.", panel=TRIED
        ),
    ] = None
    rate: Annotated[
        float | None,
        number(
            "--arrivals",
            "--rate",
            help="Requests per second that arrive: answers are then at that load.",
            panel=TRAFFIC,
            metavar="RATE",
        ),
    ] = None
    burstiness: Annotated[
        float,
        number(
            "--burstiness",
            help="Squared variation of the gaps between arrivals; 1 is Poisson.",
            panel=TRAFFIC,
            metavar="RATIO",
            default="1",
        ),
    ] = 1.0
    prefill: Annotated[
        str | None,
        option(
            "--prefill",
            help="Limit on the time of one bare prefill, such as 500ms.",
            panel=LIMITS,
            metavar="TIME",
        ),
    ] = None
    ttft: Annotated[
        str | None,
        option(
            "--ttft",
            help="Limit on the mean time to the first token, such as 1s: with --arrivals at "
            "load, else of one bare prefill.",
            panel=LIMITS,
            metavar="TIME",
        ),
    ] = None
    ttft_p99: Annotated[
        str | None,
        option(
            "--ttft-p99",
            help="Limit on the TTFT of 99 requests in 100; needs --arrivals.",
            panel=LIMITS,
            metavar="TIME",
        ),
    ] = None
    tpot: Annotated[
        str | None,
        option(
            "--tpot",
            help="Limit on the mean time per output token, such as 50ms.",
            panel=LIMITS,
            metavar="TIME",
        ),
    ] = None
    gpu_power: Annotated[
        str | None,
        option(
            "--gpu-power",
            help="Power budget of one GPU, such as 500W.",
            panel=LIMITS,
            metavar="POWER",
        ),
    ] = None
    node_power: Annotated[
        str | None,
        option(
            "--node-power",
            help="Power budget of a node: its GPUs and their share of the host.",
            panel=LIMITS,
            metavar="POWER",
        ),
    ] = None
    rack_power: Annotated[
        str | None,
        option(
            "--rack-power",
            help="Power budget of a rack, such as 40kW; needs --rack-nodes.",
            panel=LIMITS,
            metavar="POWER",
        ),
    ] = None
    rack_nodes: Annotated[
        float | None,
        number("--rack-nodes", help="Nodes of a rack.", panel=LIMITS, metavar="COUNT"),
    ] = None
    soft_power: Annotated[
        bool,
        option(
            "--soft-power",
            help="Power budgets exclude nothing: what exceeds them says by how much.",
            panel=LIMITS,
        ),
    ] = False
    gpu_price: Annotated[
        str | None,
        option(
            "--gpu-price",
            help="Dollars per GPU-hour: 2.5 for all, or h100-sxm=2.5,b200-sxm=4.",
            panel=MONEY,
            metavar="PRICES",
        ),
    ] = None
    kwh_price: Annotated[
        float,
        number(
            "--kwh-price",
            help="Dollars per kWh.",
            panel=MONEY,
            metavar="DOLLARS",
            default="0",
        ),
    ] = 0.0
    carbon: Annotated[
        float,
        number(
            "--carbon",
            help="Carbon intensity of the grid, gCO2 per kWh.",
            panel=MONEY,
            metavar="GRAMS",
            default="0",
        ),
    ] = 0.0
    host_watts: Annotated[
        float,
        number(
            "--host-watts",
            help="Watts of the server outside its GPUs, per GPU.",
            panel=MONEY,
            metavar="WATTS",
            default="0",
        ),
    ] = 0.0
    pue: Annotated[
        float,
        number(
            "--pue",
            help="Power usage effectiveness of the building.",
            panel=MONEY,
            metavar="RATIO",
            default="1",
        ),
    ] = 1.0
    objective: Annotated[
        str,
        option(
            "--objective",
            help=f"What to rank by: {', '.join(SHORT)}.",
            panel=ANSWER,
            metavar="NAME",
        ),
    ] = "energy"
