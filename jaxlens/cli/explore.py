"""`jaxlens explore`: the deployment that meets its limits at the least cost."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

import typer

from jaxlens import exploring
from jaxlens.cli.explore_content import content
from jaxlens.cli.explore_files import check_file, write_page, write_recommendation
from jaxlens.cli.explore_options import ANSWER, ExploreOptions
from jaxlens.cli.explore_pools import NOTE, pools_content, search_pools, show_pools
from jaxlens.cli.explore_questions import (
    arrivals,
    declared,
    limits,
    objective,
    pool_gpus,
    rates,
    soft,
    workload,
)
from jaxlens.cli.explore_tables import no_answer, show
from jaxlens.cli.hosts import joined
from jaxlens.cli.options import Json, option, with_options
from jaxlens.cli.pictures import check_picture, draw
from jaxlens.cli.tables import print_json, print_notes
from jaxlens.exploring import ExploreResult
from jaxlens.plans import DEFAULT_MAX_GPUS
from jaxlens.pools.search import PoolsResult

NOTHING_FEASIBLE = 2

EXAMPLES = """
[bold]Values of a knob[/bold], with --set or in a file

1,2,4 · 1..8 (integers) · 0..64+8 (steps) · 1..64*2 (powers) · 1.0:2.0:11 (a grid of 11) ·
1:1000:7:log (equal ratios) · none (no limit); units such as 1.4GHz or 500W

[bold]Knobs[/bold]: tensor_parallel (tp), expert_parallel (ep), pipeline_parallel (pp),
data_parallel (dp), sequences (per replica) or batch, clock (or clock_ghz, clock_share),
power_cap, communication_sms, stages, chunk_tokens, routing_skew, prompt_tokens,
output_tokens, output_tokens_cv; and [bold]kinds[/bold]: model, gpu, stack, weights, kv,
sequence_parallel, fused, overlap

[bold]Examples[/bold]

jaxlens explore meta-llama/Llama-3.1-70B-Instruct --gpu h100-sxm,b200-sxm --tpot 50ms

jaxlens explore openai/gpt-oss-120b -g h200-sxm --max-gpus 8 --plot pareto.png --json

jaxlens explore Qwen/Qwen3-32B -g l40s,h100-sxm --objective cost --gpu-price l40s=1,h100-sxm=2.5

jaxlens explore Qwen/Qwen3-32B -g h100-sxm --set tp=1..8*2 --set clock=1.0GHz:1.9GHz:10
--set power_cap=400W,500W,none --set weights=checkpoint,fp8 --where 'tp * dp <= 8'

jaxlens explore Qwen/Qwen3-32B -g h100-sxm,b200-sxm --arrivals 20 --ttft-p99 2s --pools

jaxlens explore --space space.yaml --node-power 5kW --host-watts 200     (a file of knobs)
"""


@with_options(ExploreOptions)
def command(
    options: ExploreOptions,
    top: Annotated[
        int, typer.Option(help="Layouts to list.", min=1, rich_help_panel=ANSWER)
    ] = 8,
    plot: Annotated[
        Path | None,
        option(
            "--plot",
            help="Draw energy against latency to this file (png, svg, pdf).",
            panel=ANSWER,
        ),
    ] = None,
    recommend: Annotated[
        Path | None,
        option(
            "--recommend",
            help="Write the best to this YAML file: commands to run, and what "
            "`jaxlens predict --from` reproduces.",
            panel=ANSWER,
            metavar="FILE",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        option(
            "--report",
            help="Write a page to look at, which works offline (html).",
            panel=ANSWER,
            metavar="FILE",
        ),
    ] = None,
    full: Annotated[
        Path | None,
        option(
            "--full",
            help="Write every deployment to this folder as Parquet; resumes.",
            panel=ANSWER,
            metavar="FOLDER",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        option(
            "--checkpoint",
            help="Keep what is known of more than a million deployments in this folder: "
            "the same command goes on where it was killed.",
            panel=ANSWER,
            metavar="FOLDER",
        ),
    ] = None,
    hosts: Annotated[
        str | None,
        option(
            "--hosts",
            help="Share a large comparison among machines: run the same command on each, "
            "with auto under Slurm, Open MPI or Kubernetes, else with "
            "RANK/COUNT@ADDRESS:PORT, the address being that of rank 0.",
            panel=ANSWER,
            metavar="HOSTS",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compares all deployments of a space on several GPUs, and says which is best.

    By default the space is layouts x sequences in flight x clock. Layouts are powers of two
    of tensor, pipeline and data parallel ranks, and experts split or spread; those that an
    engine refuses are left out. Up to a million deployments are kept; of more, the best, the
    front and counts. Ctrl-C ends a large comparison with what is known.
    """
    if recommend is not None:
        check_file(recommend, "recommend", (".yaml", ".yml"))
    if report is not None:
        check_file(report, "report", (".html", ".htm"))
    if plot is not None:
        check_picture(plot)
        # It takes as long to import as half of a compilation, which runs meanwhile.
        Thread(target=import_module, args=("jaxlens.plots",), daemon=True).start()
    files = {"full": full, "recommendation": recommend, "report": report}
    with joined(hosts) as leads:
        _explore(options, top, plot, files, checkpoint, as_json, leads)


def _explore(
    options: ExploreOptions,
    top: int,
    plot: Path | None,
    files: dict[str, Path | None],
    checkpoint: Path | None,
    as_json: bool,
    leads: bool,
) -> None:
    """Compares, and lets the process that leads write and print what was found."""
    started = time.perf_counter()
    given = _question(options)
    pool_chips = pool_gpus(options)
    if options.pools and given["arrivals"] is None:
        raise ValueError(
            "pools: expected --arrivals, the requests per second, got none."
        )
    hidden = as_json or not leads
    with _progress(hidden) as progress:
        result = exploring.explore(
            **given, full=files["full"], checkpoint=checkpoint, progress=progress
        )
    if not leads:
        return
    pooled = None
    if options.pools:
        most = given["space"].max_gpus or DEFAULT_MAX_GPUS
        pooled = search_pools(result, given["workload"], most, pool_chips, min(top, 5))
    seconds = time.perf_counter() - started
    rows = exploring.best(result, top)
    if plot is not None:
        draw(result, rows[0] if rows else None, plot)
    found = content(result, rows)
    found |= {"seconds_elapsed": seconds, "plot": str(plot) if plot else None}
    found |= _written(result, rows, found, files)
    if pooled is not None:
        found["pools"] = pools_content(pooled)
    if as_json:
        print_json(found)
    else:
        _print(result, rows, found, pooled)
    if not rows:
        typer.echo(f"jaxlens: {no_answer(result)}", err=True)
    if not rows and not (pooled and pooled.pairs):
        raise typer.Exit(NOTHING_FEASIBLE)


def _question(options: ExploreOptions) -> dict[str, Any]:
    return {
        "space": declared(options),
        "workload": workload(options),
        "limits": limits(options),
        "soft": soft(options),
        "rates": rates(options),
        "arrivals": arrivals(options),
        "objective": objective(options),
    }


def _written(
    result: ExploreResult,
    rows: list[int],
    found: dict[str, Any],
    files: dict[str, Path | None],
) -> dict[str, str | None]:
    """Writes the files that were asked for; returns where each lies, if anywhere."""
    recommend, report = files["recommendation"], files["report"]
    if rows and recommend is not None:
        write_recommendation(result, found, rows[0], recommend)
    if rows and report is not None:
        write_page(result, found, report)
    return {name: str(path) if path and rows else None for name, path in files.items()}


def _print(
    result: ExploreResult,
    rows: list[int],
    found: dict[str, Any],
    pooled: PoolsResult | None,
) -> None:
    if rows:
        show(result, rows, found)
    if pooled is not None:
        show_pools(result, pooled)
        print_notes([NOTE])


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
