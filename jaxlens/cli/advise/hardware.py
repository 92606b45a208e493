"""`jaxlens advise hardware`: which number of a chip would pay, if it were better."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlens.caveats import notes
from jaxlens.cli.advise.layout import optimum_content
from jaxlens.cli.advise.options import AdviceOptions, limits, request
from jaxlens.cli.jax_settings import stay_on_cpu
from jaxlens.cli.options import Json, with_options
from jaxlens.cli.tables import (
    print_json,
    print_line,
    print_notes,
    print_table,
    share,
)

if TYPE_CHECKING:
    from jaxlens.optimize.what_if import HardwareAdvice
    from jaxlens.requests import Request

EXAMPLES = """
[bold]Examples[/bold]

Would more bandwidth, a lower idle power or a faster link save most, once redeployed?

jaxlens advise hardware meta-llama/Llama-3.1-70B -g h100-sxm --tpot 50ms

jaxlens advise hardware Qwen/Qwen3-30B-A3B -g b200-sxm --tpot 20ms --json
"""


@with_options(AdviceOptions)
def command(
    options: AdviceOptions,
    objective: Annotated[
        str, typer.Option(help="What the best deployment is best at.")
    ] = "joules_per_output_token",
    top: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 12,
    as_json: Json = False,
) -> None:
    """What each number of a chip is worth to the best deployment under limits.

    The best layout, batch and clock are found first. Then the envelope theorem says how the
    best achievable answer would move with the chip, deployments adapting to it.
    """
    stay_on_cpu()
    from jaxlens.optimize.advise_layout import layout_problem
    from jaxlens.optimize.outcomes import deployed
    from jaxlens.optimize.what_if import advise_hardware

    asked = request(options)
    problem, _ = layout_problem(
        asked, limits(options), max_gpus=options.max_gpus, objective=objective
    )
    advice = advise_hardware(problem, asked)
    best = advice.optimum
    asked = replace(asked, deployment=deployed(asked.deployment, best.values))
    rows = _rows(advice, asked)
    if as_json:
        print_json(
            {
                "model": asked.shape.name,
                "gpu": asked.card.chip,
                "objective": objective,
                "optimum": optimum_content(best),
                "coefficients": rows,
                "notes": notes(asked),
            }
        )
        return
    print_line(
        f"{asked.shape.name} on {asked.card.chip}: best {objective.replace('_', ' ')} "
        f"{best.relaxed_objective:.4g}",
        style="bold",
    )
    print_table(
        ("10 % better …", "which is", "improves it by", "elasticity", "value", "from"),
        [
            (
                row["name"],
                row["better"],
                share(row["gain_at_10_percent_better"]),
                f"{row['elasticity']:+.3f}",
                f"{row['value']:.4g} {row['unit']}",
                row["origin"],
            )
            for row in rows[:top]
        ],
        left=2,
    )
    print_notes(notes(asked))


def _rows(advice: "HardwareAdvice", asked: "Request") -> list[dict[str, Any]]:
    known = asked.card.coefficients
    rows = []
    for worth in advice.worths:
        coefficient = known.get(f"chip.{worth.name}")
        rows.append(
            {
                "name": worth.name,
                "value": worth.value,
                "unit": coefficient.unit if coefficient else "",
                "origin": coefficient.origin if coefficient else "given",
                "slope": worth.slope,
                "elasticity": worth.elasticity,
                "better": worth.better,
                "gain_at_10_percent_better": worth.gain,
            }
        )
    return rows
