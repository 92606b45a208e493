"""`jaxlens predict`: one deployment."""

from typing import Annotated, Any

import typer

from jaxlens.answers import answer
from jaxlens.cli.files import recommendation
from jaxlens.cli.jax_settings import stay_on_cpu
from jaxlens.cli.load import Burstiness, PromptSpread, Rate, load_numbers, print_load
from jaxlens.cli.options import Json, ServingOptions, number, request, with_options
from jaxlens.cli.tables import (
    print_json,
    print_line,
    print_notes,
    print_table,
    scaled,
    share,
)
from jaxlens.intervals import coefficient_variance
from jaxlens.recommendations import exact_estimate, reproduction
from jaxlens.recommendations.reproductions import Reproduction, as_content, said
from jaxlens.requests import Request, check_memory, check_wall_plug
from jaxlens.wall_plug import wall_plug

WALL = "Energy at the wall"
MOST_OPERATIONS = 10

EXAMPLES = """
[bold]Examples[/bold]

jaxlens predict meta-llama/Llama-3.1-70B-Instruct --gpu h100-sxm --tp 4 --batch 64

jaxlens predict openai/gpt-oss-120b --gpu b200-sxm --tp 2 --ep 2 -b 128 --json

jaxlens predict ./config.json -g h200-sxm --weights fp8 --kv fp8 --clock 1410MHz

jaxlens predict Qwen/Qwen3-8B -g h100-sxm -b 256 --arrivals 8 --burstiness 2

jaxlens predict --from deployment.yaml --batch 32     (model, gpu, tp … from the file)

jaxlens predict --from recommendation.yaml            (and whether its numbers still hold)
"""

HEADLINES = (
    ("prefill of one prompt", "seconds_prefill", "s"),
    ("time per output token", "seconds_per_output_token", "s"),
    ("output tokens per second", "output_tokens_per_second", "tok/s"),
    ("energy to first token", "joules_to_first_token", "J"),
    ("energy per output token", "joules_per_output_token", "J"),
    ("  of which prefill", "joules_prefill_per_output_token", "J"),
    ("  of which decode", "joules_decode_per_output_token", "J"),
    ("energy per request", "joules_per_request", "J"),
    ("power per GPU", "watts_per_gpu", "W"),
    ("clock of a decode step", "clock_hz", "Hz"),
    ("memory left per GPU", "memory_slack_bytes", "B"),
    ("at the wall: energy per output token", "wall_plug_joules_per_output_token", "J"),
    ("at the wall: energy per request", "wall_plug_joules_per_request", "J"),
    ("at the wall: power per GPU", "wall_plug_watts_per_gpu", "W"),
)
CAUSES = {
    "static": "static: leakage, memory on",
    "busy": "busy: clocks and schedulers",
    "compute": "compute: matrix units",
    "hbm": "HBM: weights, activations",
    "kv": "HBM: KV cache",
    "link": "link: collectives",
    "host": "host, outside the GPUs",
}


@with_options(ServingOptions)
def command(
    options: ServingOptions,
    host_watts: Annotated[
        float | None,
        number(
            "--host-watts",
            help="Add energy at the wall: watts of the server outside its GPUs, per GPU.",
            panel=WALL,
            metavar="WATTS",
        ),
    ] = None,
    pue: Annotated[
        float | None,
        number(
            "--pue",
            help="Add energy at the wall: power usage effectiveness of the building.",
            panel=WALL,
            metavar="RATIO",
        ),
    ] = None,
    arrivals: Rate = None,
    burstiness: Burstiness = 1.0,
    prompt_cv: PromptSpread = 0.0,
    allow_oversubscribed: Annotated[
        bool,
        typer.Option(
            "--allow-oversubscribed",
            help="Predict also what does not fit in memory (negative slack).",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Energy and latency of one deployment at steady state.

    Joules cover all GPUs; a request is one prompt and its output. What rests on a guess
    says so in the notes.
    """
    stay_on_cpu()
    asked = request(options)
    check_wall_plug(host_watts, pue)
    recommended = recommendation(options.defaults)
    variance = None
    if recommended is None:
        parts = asked.model, asked.profile, asked.card
        estimate, variance = coefficient_variance(
            *parts, asked.deployment, asked.workload
        )
    else:
        estimate = exact_estimate(asked)
    if estimate.memory_slack_bytes < 0.0 and not allow_oversubscribed:
        _check_memory(asked)
    wall = None
    if host_watts is not None or pue is not None:
        wall = wall_plug(
            estimate,
            0.0 if host_watts is None else host_watts,
            1.0 if pue is None else pue,
        )
    numbers = answer(asked, estimate, wall, variance)
    if arrivals is not None:
        numbers["at_load"] = load_numbers(
            asked, estimate, arrivals, burstiness, prompt_cv
        )
    found = recommended and reproduction(recommended, asked, numbers)
    if found is not None:
        numbers["recommendation"] = as_content(found)
    if as_json:
        print_json(numbers)
    else:
        _show(asked, numbers)
        if found is not None:
            _print_recommendation(found)


def _print_recommendation(found: Reproduction) -> None:
    """Prints how the numbers compare with those of the file that was asked again."""
    style = "green" if found.same else "yellow"
    for line in said(found):
        print_line(f"  {line}", style=style)


def _check_memory(asked: Request) -> None:
    try:
        check_memory(asked)
    except ValueError as error:
        cure = "--allow-oversubscribed predicts it all the same"
        raise ValueError(f"{str(error).rstrip('.')}; {cure}.") from None


def _show(asked: Request, numbers: dict[str, Any]) -> None:
    print_line(title(asked), style="bold")
    rows = [
        (label, scaled(numbers[name], unit), _interval(numbers, name, unit))
        for label, name, unit in HEADLINES
        if name in numbers
    ]
    if any(row[2] for row in rows):
        print_table(("at steady state", "", "80 % interval"), rows)
    else:
        print_table(("at steady state", ""), [row[:2] for row in rows])
    breakdown = numbers["breakdown"]
    causes = breakdown["joules_per_output_token_by_cause"]
    total = sum(causes.values())
    print_table(
        ("energy per output token, by cause", "", "share"),
        [
            (CAUSES.get(name, name), scaled(joules, "J"), share(joules / total))
            for name, joules in causes.items()
        ],
    )
    if "at_load" in numbers:
        print_load(numbers["at_load"])
    _show_operations("decode", breakdown)
    print_notes(numbers["provenance"]["notes"])


def _interval(numbers: dict[str, Any], name: str, unit: str) -> str:
    if f"{name}_interval" not in numbers:
        return ""
    low, high = numbers[f"{name}_interval"]
    return f"{scaled(low, unit)} to {scaled(high, unit)}"


def title(asked: Request) -> str:
    """Returns one line that says what was predicted."""
    layout, card = asked.deployment, asked.card
    degrees = {
        "tp": layout.tensor_parallel,
        "ep": layout.expert_parallel,
        "pp": layout.pipeline_parallel,
        "dp": layout.data_parallel,
    }
    parts = [f"{name} {n:.0f}" for name, n in degrees.items() if n > 1.0]
    parts += [
        f"batch {layout.batch:g}",
        f"prompt {asked.workload.prompt_tokens:g}",
        f"output {asked.workload.output_tokens:g}",
    ]
    return (
        f"{asked.shape.name} on {asked.gpus} x {card.chip} under {card.stack}: "
        f"{', '.join(parts)}"
    )


def _show_operations(phase: str, breakdown: dict[str, Any]) -> None:
    seconds = breakdown[f"{phase}_seconds_by_operation"]
    joules = breakdown[f"{phase}_joules_by_operation"]
    all_seconds, all_joules = sum(seconds.values()), sum(joules.values())
    names = sorted(seconds, key=lambda name: -joules[name])
    shown = [name for name in names[:MOST_OPERATIONS] if seconds[name] > 0.0]
    rows = [
        (
            name,
            scaled(seconds[name], "s"),
            share(seconds[name] / all_seconds),
            share(joules[name] / all_joules),
        )
        for name in shown
    ]
    rest = [name for name in names if name not in shown and seconds[name] > 0.0]
    if rest:
        more = sum(seconds[name] for name in rest)
        rows.append(
            (
                f"{len(rest)} more",
                scaled(more, "s"),
                share(more / all_seconds),
                share(sum(joules[name] for name in rest) / all_joules),
            )
        )
    print_table((f"{phase} step, by operation", "time", "time", "energy"), rows)
