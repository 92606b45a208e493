"""`jaxlens sensitivity`: what matters, and by how much."""

from typing import Annotated, Any

import typer

from jaxlens.answers import provenance
from jaxlens.caveats import notes
from jaxlens.cli.jax_settings import stay_on_cpu
from jaxlens.cli.labels import label
from jaxlens.cli.options import Json, ServingOptions, request, with_options
from jaxlens.cli.predict import title
from jaxlens.cli.tables import (
    print_json,
    print_line,
    print_notes,
    print_table,
    signed_share,
)
from jaxlens.requests import Request
from jaxlens.sensitivities import QUANTITIES, elasticities, inputs, relative_change

EXAMPLES = """
[bold]Examples[/bold]

What would 10 % more HBM bandwidth buy?

jaxlens sensitivity meta-llama/Llama-3.1-70B-Instruct --gpu h100-sxm --tp 4 -b 64

jaxlens sensitivity Qwen/Qwen3-32B -g b200-sxm --what seconds_per_output_token --json
"""

GROUPS = {
    "deployment": "knob",
    "workload": "traffic",
    "chip": "chip",
    "stack": "stack",
}
SMALLEST = 5e-4  # smaller elasticities are not shown


@with_options(ServingOptions)
def command(
    options: ServingOptions,
    what: Annotated[
        str,
        typer.Option(
            help=f"The answer that moves: {', '.join(QUANTITIES)}.", metavar="NAME"
        ),
    ] = "joules_per_output_token",
    top: Annotated[
        int, typer.Option(min=1, help="Rows of the table, most important first.")
    ] = 25,
    as_json: Json = False,
) -> None:
    """How an answer moves with every knob, and with every chip and stack coefficient.

    An elasticity of -0.4 says: 1 % more of the input, 0.4 % less of the answer. Degrees
    of parallelism count as real numbers here.
    """
    if what not in QUANTITIES:
        raise ValueError(f"--what: expected of {', '.join(QUANTITIES)}, got {what!r}.")
    stay_on_cpu()
    asked = request(options)
    both = tuple(dict.fromkeys((what, "seconds_per_output_token")))
    found = elasticities(
        asked.model, asked.profile, asked.deployment, asked.workload, both
    )
    rows = _rows(asked, found[what], found["seconds_per_output_token"])
    if as_json:
        origin = provenance(asked)
        print_json({"quantity": what, "inputs": rows, "provenance": origin})
        return
    _show(asked, what, rows, top)


def _rows(
    asked: Request, of_answer: dict[str, float], of_seconds: dict[str, float]
) -> list[dict[str, Any]]:
    values = inputs(asked.profile, asked.deployment, asked.workload)
    rows = []
    for name, elasticity in of_answer.items():
        coefficient = asked.card.coefficients.get(name)
        spread = coefficient.spread if coefficient else None
        rows.append(
            {
                "name": name,
                "group": GROUPS[name.partition(".")[0]],
                "value": values[name],
                "elasticity": elasticity,
                "elasticity_of_seconds_per_output_token": of_seconds[name],
                "change_at_10_percent_more": relative_change(elasticity),
                "origin": coefficient.origin if coefficient else "given",
                "spread": spread,
                "spread_of_answer": None
                if spread is None
                else abs(elasticity) * spread,
            }
        )
    return sorted(rows, key=lambda row: -abs(row["elasticity"]))


def _show(asked: Request, what: str, rows: list[dict[str, Any]], top: int) -> None:
    print_line(title(asked), style="bold")
    print_line(f"What moves {what.replace('_', ' ')}:")
    shown = [row for row in rows if abs(row["elasticity"]) >= SMALLEST]
    print_table(
        (
            "10 % more …",
            "group",
            "changes it by",
            "elasticity",
            "TPOT",
            "known ±",
            "from",
        ),
        [
            (
                label(row["name"]),
                row["group"],
                signed_share(row["change_at_10_percent_more"]),
                f"{row['elasticity']:+.3f}",
                f"{row['elasticity_of_seconds_per_output_token']:+.3f}",
                "" if row["spread"] is None else f"{100.0 * row['spread']:.0f} %",
                row["origin"],
            )
            for row in shown[:top]
        ],
        left=2,
    )
    if len(shown) > top:
        print_line(f"{len(shown) - top} more with --top {len(shown)}")
    guesses = [
        row for row in rows if row["origin"] == "prior" and row["spread_of_answer"]
    ]
    guesses = sorted(guesses, key=lambda row: -row["spread_of_answer"])[:3]
    if guesses:
        named = ", ".join(
            f"{label(row['name'])} (± {100.0 * row['spread_of_answer']:.1f} %)"
            for row in guesses
        )
        print_line(f"Priors that the answer leans on most: {named}")
    print_notes(notes(asked))
