"""`jaxlens explore`: the deployment that meets its limits with the fewest joules."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

import typer

from jaxlens import exploring
from jaxlens.answers import answer
from jaxlens.cli.options import Json
from jaxlens.cli.pictures import check_picture, draw
from jaxlens.cli.quantities import quantity
from jaxlens.cli.tables import (
    print_json,
    print_line,
    print_notes,
    print_table,
    scaled,
)
from jaxlens.commands import Checkpoint, gpu_commands, serve_command
from jaxlens.deployments import UNLIMITED, Workload
from jaxlens.exploring import ExploreResult
from jaxlens.requests import Request
from jaxlens.shapes import Experts
from jaxlens.sweeps import REASONS

NOTHING_FEASIBLE = 2
TTFT = "TTFT is the time of one bare prefill: no queueing."

EXAMPLES = """
[bold]Examples[/bold]

jaxlens explore meta-llama/Llama-3.1-70B-Instruct --gpu h100-sxm,b200-sxm --tpot 50ms

jaxlens explore openai/gpt-oss-120b -g h200-sxm --max-gpus 8 --plot pareto.png --json

jaxlens explore Qwen/Qwen3-32B -g l40s --objective output_tokens_per_second_per_gpu
"""

COLUMNS = (
    "GPUs",
    "layout",
    "batch",
    "MHz",
    "J/token",
    "TPOT ms",
    "TTFT ms",
    "tok/s/GPU",
    "W/GPU",
    "binds",
)
DEGREES = {
    "tp": "tensor_parallel",
    "pp": "pipeline_parallel",
    "dp": "data_parallel",
    "ep": "expert_parallel",
}
NUMBERS = (
    "gpus",
    *DEGREES.values(),
    "batch",
    "seconds_prefill",
    "seconds_per_output_token",
    "output_tokens_per_second",
    "output_tokens_per_second_per_gpu",
    "joules_per_output_token",
    "watts_per_gpu",
    "memory_slack_bytes",
)
WORDS = {
    "layout": "layout",
    "batch": "too few sequences for the pipeline",
    "memory": "memory",
    "ttft": "TTFT",
    "tpot": "TPOT",
}


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="HuggingFace id, or path of a config.json.", show_default=False
        ),
    ],
    gpu: Annotated[
        str,
        typer.Option("--gpu", "-g", help="Chip ids, with commas between them."),
    ],
    prompt: Annotated[float, typer.Option(help="Prompt tokens.")] = 1024.0,
    output: Annotated[float, typer.Option(help="Mean output tokens.")] = 256.0,
    output_cv: Annotated[
        float,
        typer.Option(help="Spread of output lengths: standard deviation / mean."),
    ] = 0.5,
    ttft: Annotated[
        str | None,
        typer.Option(help="Limit on the time of one bare prefill, such as 1s."),
    ] = None,
    tpot: Annotated[
        str | None,
        typer.Option(help="Limit on the mean time per output token, such as 50ms."),
    ] = None,
    max_gpus: Annotated[
        int, typer.Option(help="Most GPUs, all replicas together.")
    ] = 16,
    weights: Annotated[
        str | None, typer.Option(help="Format of weights, such as fp8.")
    ] = None,
    kv: Annotated[str | None, typer.Option(help="Format of the KV cache.")] = None,
    stack: Annotated[
        str | None,
        typer.Option(help="Serving stack, id or TOML file; default: vllm-0.11."),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(help=f"What to rank by: {', '.join(exploring.OBJECTIVES)}."),
    ] = "joules_per_output_token",
    top: Annotated[int, typer.Option(help="Layouts to list.", min=1)] = 8,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw energy against latency to this file (png, svg, pdf)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compares layouts x batch x clock on several GPUs, and says which is best.

    Layouts are powers of two of tensor, pipeline and data parallel ranks, and experts
    split or spread. TTFT is the time of one bare prefill, without queueing.
    """
    if plot is not None:
        check_picture(plot)
        # It takes as long to import as half of a compilation, which runs meanwhile.
        Thread(target=import_module, args=("jaxlens.plots",), daemon=True).start()
    started = time.perf_counter()
    with _progress(hidden=as_json) as progress:
        result = exploring.explore(
            model,
            [name.strip() for name in gpu.split(",") if name.strip()],
            Workload(
                prompt_tokens=prompt, output_tokens=output, output_tokens_cv=output_cv
            ),
            ttft_seconds=_limit(ttft, "ttft"),
            tpot_seconds=_limit(tpot, "tpot"),
            max_gpus=max_gpus,
            weights=weights,
            kv=kv,
            stack=stack,
            objective=objective,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    rows = exploring.best(result, top)
    if plot is not None:
        draw(result, rows[0] if rows else None, plot)
    given = Checkpoint(name=model, weights=weights, kv=kv)
    content = _content(result, rows, given)
    content |= {"seconds_elapsed": seconds, "plot": str(plot) if plot else None}
    if as_json:
        print_json(content)
    elif rows:
        _show(result, rows, content)
    if not rows:
        typer.echo(f"jaxlens: {_no_answer(result)}", err=True)
        raise typer.Exit(NOTHING_FEASIBLE)


def _limit(text: str | None, where: str) -> float:
    return UNLIMITED if text is None else quantity(text, "seconds", where=where)


@contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on the terminal, gone when all is compared; none where output is piped."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if hidden or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=None)

        def report(done: int, total: int) -> None:
            words = f"{done:,} of {total:,} deployments"
            bar.update(task, completed=done, total=total, description=words)

        yield report


def _content(
    result: ExploreResult, rows: list[int], given: Checkpoint
) -> dict[str, Any]:
    """The whole answer for programs."""
    content: dict[str, Any] = {
        "model": result.requests[0].shape.name,
        "objective": result.objective,
        "deployments": result.size,
        "feasible": int(result.feasible.sum()),
        "infeasible_by_reason": exploring.ruled_out(result),
        "infeasible_by_one_reason": exploring.ruled_out_by_one(result),
        "best": [_row(result, index) for index in rows],
        "best_of_each_gpu": [
            _row(result, index) for index in exploring.best_of_each_gpu(result)
        ],
        "front": [_row(result, int(index)) for index in exploring.front(result)],
    }
    if not rows:
        return {**content, "nearest": _row(result, exploring.nearest(result))}
    winner = exploring.request(result, rows[0])
    return {
        **content,
        "winner": answer(winner, exploring.estimate(winner)),
        "serve_command": _serve(winner, given),
        "gpu_commands": gpu_commands(
            winner.card.vendor, winner.profile.chip, winner.deployment
        ),
    }


def _row(result: ExploreResult, index: int) -> dict[str, Any]:
    asked = exploring.request(result, index)
    numbers = {name: float(result.columns[name][index]) for name in NUMBERS}
    return {
        "gpu": asked.card.chip,
        **numbers,
        "clock_hz": float(asked.deployment.clock_hz),
        "binds": list(exploring.binds(result, index)),
        "misses": exploring.missed(result, index),
    }


def _serve(winner: Request, given: Checkpoint) -> str:
    checkpoint = Checkpoint(
        name=given.name,
        routed=any(isinstance(feed, Experts) for feed in winner.shape.feeds),
        max_context=winner.shape.max_context,
        weights=given.weights,
        kv=given.kv,
    )
    profile = winner.profile
    return serve_command(
        checkpoint, profile.chip, profile.stack, winner.deployment, winner.workload
    )


def _show(result: ExploreResult, rows: list[int], content: dict[str, Any]) -> None:
    winner, card = content["winner"], result.requests[0].card
    workload = result.requests[0].workload
    print_line(
        f"{content['model']} under {card.stack}: "
        f"{float(workload.prompt_tokens):g} prompt and "
        f"{float(workload.output_tokens):g} output tokens, {_limits(result)}",
        style="bold",
    )
    others = [i for i in exploring.best_of_each_gpu(result) if i not in rows]
    shown = [*content["best"], *(_row(result, index) for index in others)]
    print_table(COLUMNS, [_cells(row) for row in shown], left=2)
    print_line(_counts(result, content["seconds_elapsed"]))
    print_line(_comparison(result))
    if content["plot"]:
        print_line(f"picture: {content['plot']}")
    print_line()
    for line in [*content["gpu_commands"], content["serve_command"]]:
        print_line(line, style="green")
    print_line()
    print_notes(dict.fromkeys([TTFT, *winner["provenance"]["notes"]]))


def _cells(row: dict[str, Any]) -> list[str]:
    degrees = [
        f"{short}{row[name]:.0f}" for short, name in DEGREES.items() if row[name] > 1.0
    ]
    binding = [str(WORDS.get(name, name)) for name in row["binds"]]
    return [
        f"{row['gpus']:.0f} x {row['gpu']}",
        " ".join(degrees) or "tp1",
        f"{row['batch']:g}",
        f"{row['clock_hz'] * 1e-6:.0f}",
        f"{row['joules_per_output_token']:.3f}",
        f"{row['seconds_per_output_token'] * 1e3:.1f}",
        f"{row['seconds_prefill'] * 1e3:.0f}",
        f"{row['output_tokens_per_second_per_gpu']:,.0f}",
        f"{row['watts_per_gpu']:.0f}",
        ", ".join(binding) or "nothing",
    ]


def _limits(result: ExploreResult) -> str:
    limits = {
        "TTFT": float(result.limits.ttft_seconds),
        "TPOT": float(result.limits.tpot_seconds),
    }
    stated = [
        f"{name} up to {scaled(seconds, 's')}"
        for name, seconds in limits.items()
        if seconds < UNLIMITED
    ]
    return " and ".join(stated) or "no limits on latency"


def _counts(result: ExploreResult, seconds: float) -> str:
    reasons = [
        f"{WORDS[reason]} {count:,}"
        for reason, count in exploring.ruled_out(result).items()
        if count
    ]
    return (
        f"{result.size:,} deployments compared in {seconds:.1f} s, "
        f"{int(result.feasible.sum()):,} within limits; "
        f"ruled out (some by several): {', '.join(reasons) or 'none'}"
    )


def _comparison(result: ExploreResult) -> str:
    """How the best GPU compares with the next one."""
    leaders = exploring.best_of_each_gpu(result)
    names = [result.requests[int(result.columns["gpu"][i])].card.chip for i in leaders]
    if len(leaders) < 2:
        return f"only {names[0]} meets the limits" if len(result.requests) > 1 else ""
    values = [float(result.columns[result.objective][index]) for index in leaders[:2]]
    words = result.objective.replace("_", " ")
    return (
        f"{names[0]} against {names[1]}, each at its best: "
        f"{100.0 * (values[0] / values[1] - 1.0):+.0f} % {words}"
    )


def _no_answer(result: ExploreResult) -> str:
    """One line: which limit leaves nothing, and what comes nearest."""
    index = exploring.nearest(result)
    row = _row(result, index)
    missed = ", ".join(
        f"{WORDS[reason]} by {-100.0 * slack:.0f} %"
        for reason, slack in row["misses"].items()
    )
    alone = exploring.ruled_out_by_one(result)
    killers = sorted((r for r in REASONS if alone[r]), key=lambda r: -alone[r])
    cure = (
        f"without the limit on {WORDS[killers[0]]}, {alone[killers[0]]:,} would remain"
        if killers
        else "lifting any one limit would leave none either"
    )
    cells = _cells(row)
    return (
        f"explore: none of {result.size:,} deployments is within limits; {cure}. "
        f"Nearest: {cells[0]}, {cells[1]}, batch {cells[2]}, {cells[3]} MHz, with "
        f"TPOT {cells[5]} ms and TTFT {cells[6]} ms, misses {missed}."
    )
