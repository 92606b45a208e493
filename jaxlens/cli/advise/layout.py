"""`jaxlens advise layout`: TP, EP, PP, DP, batch and clock that meet limits best."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlens.caveats import notes
from jaxlens.cli.advise.options import AdviceOptions, limits, request
from jaxlens.cli.jax_settings import stay_on_cpu
from jaxlens.cli.options import Json, with_options
from jaxlens.cli.tables import (
    print_json,
    print_line,
    print_notes,
    print_table,
    scaled,
    signed_share,
)

if TYPE_CHECKING:
    from jaxlens.optimize.advise_layout import LayoutAdvice
    from jaxlens.optimize.results import Optimum

INFEASIBLE = 2
EXAMPLES = """
[bold]Examples[/bold]

jaxlens advise layout meta-llama/Llama-3.1-70B -g h100-sxm --tpot 50ms --ttft 1s

jaxlens advise layout openai/gpt-oss-120b -g b200-sxm --max-gpus 16 --tpot 20ms --json

jaxlens advise layout Qwen/Qwen3-32B -g l40s --objective output_tokens_per_second_per_gpu
"""
DEGREES = {
    "tp": "tensor_parallel",
    "pp": "pipeline_parallel",
    "dp": "data_parallel",
    "ep": "expert_parallel",
}
# Words, unit of the limit, and by how much of it a price is stated.
LIMITS = {
    "seconds_per_output_token": ("TPOT", "s", 1e-3),
    "seconds_prefill": ("TTFT", "s", 1e-2),
    "memory_slack_bytes": ("memory", "B", -1e9),
    "watts_per_gpu": ("power per GPU", "W", 10.0),
    "output_tokens_per_second": ("throughput", "tokens/s", -10.0),
    "sequences_per_stage": ("sequences per stage", "", -1.0),
}
NAMES = {"sequences": "batch", "clock_hz": "clock"}


@with_options(AdviceOptions)
def command(
    options: AdviceOptions,
    objective: Annotated[
        str,
        typer.Option(
            help="joules_per_output_token, seconds_per_output_token, seconds_prefill, "
            "output_tokens_per_second, output_tokens_per_second_per_gpu or "
            "gpu_seconds_per_output_token."
        ),
    ] = "joules_per_output_token",
    alternatives: Annotated[
        int, typer.Option(min=0, max=32, help="Other layouts to list.")
    ] = 3,
    as_json: Json = False,
) -> None:
    """The layout, batch and clock that meet limits best, and what holds them there.

    A search by slopes under limits, then exact values around its optima. Shadow prices say
    what it would be worth to loosen a limit. TTFT is the time of one bare prefill.
    """
    stay_on_cpu()
    from jaxlens.optimize.advise_layout import advise_layout

    advice = advise_layout(
        request(options),
        limits(options),
        max_gpus=options.max_gpus,
        objective=objective,
        alternatives=alternatives,
    )
    if as_json:
        print_json(content(advice))
    else:
        _show(advice)
    if not advice.optimum.feasible:
        typer.echo(f"jaxlens: {_nearest(advice)}", err=True)
        raise typer.Exit(INFEASIBLE)


def content(advice: "LayoutAdvice") -> dict[str, Any]:
    """Returns the whole answer for programs."""
    found = advice.optimum
    return {
        "model": advice.request.shape.name,
        "gpu": advice.request.card.chip,
        "objective": advice.problem.objective,
        **optimum_content(found),
        "alternatives": [
            {
                "values": dict(other.values),
                "objective": other.objective,
                "feasible": other.feasible,
            }
            for other in found.alternatives
        ],
        "notes": _notes(advice),
    }


def optimum_content(found: "Optimum") -> dict[str, Any]:
    """Returns an optimum for programs."""
    return {
        "reason": found.reason,
        "explanation": found.explanation,
        "feasible": found.feasible,
        "values": dict(found.values),
        "value": found.objective,
        "quantities": dict(found.quantities),
        "slacks": dict(found.slacks),
        "multipliers": dict(found.multipliers),
        "binding": list(found.binding),
        "at_bounds": dict(found.at_bounds),
        "violations": dict(found.violations),
        "relaxed": {
            "values": dict(found.relaxed_values),
            "value": found.relaxed_objective,
        },
        "evaluations": found.evaluations,
        "configurations": found.space,
        "seconds": found.seconds,
        "compile_seconds": found.compile_seconds,
    }


def _show(advice: "LayoutAdvice") -> None:
    found, asked = advice.optimum, advice.request
    workload = asked.workload
    print_line(
        f"{asked.shape.name} on {asked.card.chip} under {asked.card.stack}: "
        f"{float(workload.prompt_tokens):g} prompt and "
        f"{float(workload.output_tokens):g} output tokens",
        style="bold",
    )
    objective = advice.problem.objective
    rows = [("best" if found.feasible else "nearest", found.values, found.objective)]
    rows += [
        ("" if other.feasible else "misses limits", other.values, other.objective)
        for other in found.alternatives
    ]
    print_table(
        (
            "",
            "layout",
            "GPUs",
            "batch",
            "MHz",
            objective.replace("_", " "),
            "beside it",
        ),
        [
            (
                words,
                _layout(values),
                f"{_gpus(values):.0f}",
                f"{values['sequences'] * values['data_parallel']:g}",
                f"{values['clock_hz'] * 1e-6:.0f}" if "clock_hz" in values else "open",
                f"{value:.5g}",
                signed_share(value / found.objective - 1.0) if position else "",
            )
            for position, (words, values, value) in enumerate(rows)
        ],
        left=2,
    )
    quantities = found.quantities
    print_line(
        f"TPOT {scaled(quantities['seconds_per_output_token'], 's')}, "
        f"TTFT {scaled(quantities['seconds_prefill'], 's')}, "
        f"{quantities['output_tokens_per_second']:,.0f} tokens/s, "
        f"{quantities['watts_per_gpu']:.0f} W per GPU, "
        f"{scaled(quantities['memory_slack_bytes'], 'B')} of memory to spare"
    )
    for line in reasons(advice):
        print_line(f"  {line}")
    print_line(
        f"{found.evaluations:,} of {found.space:,.0f} configurations evaluated in "
        f"{found.seconds:.2f} s, after {found.compile_seconds:.1f} s to compile"
    )
    print_notes(_notes(advice))


def reasons(advice: "LayoutAdvice") -> list[str]:
    """Returns what holds the optimum where it is, a sentence each."""
    found, objective = advice.optimum, advice.problem.objective
    lines = []
    for name, price in found.multipliers.items():
        if price <= 0.0:
            continue
        words, unit, step = LIMITS.get(name, (name, "", 1.0))
        worth = price * abs(step) / found.relaxed_objective
        more = f"{scaled(abs(step), unit)} {'more' if step > 0.0 else 'less'}"
        lines.append(
            f"{words} binds: {more} would improve {objective.replace('_', ' ')} by "
            f"{100.0 * worth:.2g} %"
        )
    for name, end in found.at_bounds.items():
        lines.append(f"{NAMES.get(name, name)} is at the {end} value that was allowed")
    return lines or ["nothing binds: the optimum lies inside all limits"]


def _layout(values: Any) -> str:
    degrees = [
        f"{short}{values[name]:.0f}"
        for short, name in DEGREES.items()
        if values.get(name, 1.0) > 1.0
    ]
    return " ".join(degrees) or "tp1"


def _gpus(values: Any) -> float:
    found = 1.0
    for name in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
        found *= values.get(name, 1.0)
    return found


def _notes(advice: "LayoutAdvice") -> list[str]:
    return list(dict.fromkeys([*advice.notes, *notes(advice.request)]))


def _nearest(advice: "LayoutAdvice") -> str:
    missed = []
    for name, by in advice.optimum.violations.items():
        words, unit, _ = LIMITS.get(name, (name, "", 1.0))
        missed.append(f"{words} by {scaled(by, unit)}")
    return (
        f"no deployment was found within all limits; the nearest, "
        f"{_layout(advice.optimum.values)}, misses {', '.join(missed) or 'some'}: "
        f"loosen it, or allow more GPUs."
    )
