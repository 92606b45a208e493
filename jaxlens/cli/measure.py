"""`jaxlens measure`: time and energy of kernels and steps on this machine."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxlens.cli.options import Json
from jaxlens.cli.quantities import quantity
from jaxlens.cli.tables import print_json, print_line, print_notes, scaled, share
from jaxlens.measure.requests import Request
from jaxlens.measure.suites import OPERATIONS, SUITES

INTERRUPTED = 130
INCOMPLETE = 1

EXAMPLES = """
[bold]Examples[/bold]

jaxlens measure --out h200.parquet     (about five minutes; again to resume)

jaxlens measure --suite full --ops gemm,moe --out h200.parquet --budget 540

jaxlens measure --device cpu --threads 1 --runs 3     (time only; how well it repeats)

torchrun --nproc-per-node 8 -m jaxlens.cli measure --out links.parquet

jaxlens calibrate h200.parquet --out mine/

jaxlens predict MODEL --gpu mine/h200-sxm.toml
"""


def measure(
    suite: Annotated[
        str, typer.Option(help=f"One of {', '.join(SUITES)}.", metavar="NAME")
    ] = "quick",
    ops: Annotated[
        str | None,
        typer.Option(help=f"Some of {','.join(OPERATIONS)}.", metavar="A,B"),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Every row goes here, and by kind into NAME.KIND.parquet beside it. "
            "What an earlier run measured is kept and not repeated."
        ),
    ] = Path("run.parquet"),
    device: Annotated[
        str, typer.Option(help="cuda, cuda:N, or cpu (which says nothing of GPUs).")
    ] = "cuda",
    budget: Annotated[
        float | None,
        typer.Option(
            help="Time after which nothing more is begun. The quick suite is chosen to "
            "fit it (default 300).",
            metavar="SECONDS",
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            help="Length of one window (default 1; on a processor 0.03, as each case is "
            "visited in turn 20 to 60 times).",
            metavar="SECONDS",
        ),
    ] = None,
    runs: Annotated[
        int,
        typer.Option(help="Whole runs over all cases, to see how well they repeat."),
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads with --device cpu (default one per physical core). One thread "
            "repeats best on a machine that others use.",
            metavar="N",
        ),
    ] = None,
    lock_clocks: Annotated[
        str | None,
        typer.Option(
            help="Lock the SM clock, such as 1410MHz; needs the right, and is given "
            "back at the end. Never on a machine that others use.",
            metavar="CLOCK",
        ),
    ] = None,
    allow_disturbed: Annotated[
        bool,
        typer.Option(
            "--allow-disturbed",
            help="Measure although something else uses or throttles the GPU; rows say so.",
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Measure time and energy of kernels on this machine, for `jaxlens calibrate`."""
    # Sessions reach torch, which takes seconds to load: help does without.
    from jaxlens.measure.sessions import measure as run

    clock = lock_clocks and quantity(lock_clocks, "hertz", where="--lock-clocks")
    request = Request(
        suite=suite,
        operations=OPERATIONS if ops is None else tuple(ops.split(",")),
        out=out,
        device=device,
        budget_seconds=budget,
        window_seconds=window,
        runs=runs,
        threads=threads,
        lock_clock_hz=clock or None,
        allow_disturbed=allow_disturbed,
    )
    try:
        outcome = run(request, report=_quiet if json else print_line)
    except KeyboardInterrupt:
        typer.echo(
            f"jaxlens: interrupted; what was measured is in {out}, the same command "
            "goes on from there.",
            err=True,
        )
        return INTERRUPTED
    tally = outcome.tally
    if json:
        print_json(_plain(outcome))
    else:
        _summary(outcome)
    return 0 if tally.measured or tally.kept else INCOMPLETE


command = measure


def _quiet(text: str) -> None:
    """Prints nothing: the JSON says it."""


def _plain(outcome: Any) -> dict[str, Any]:
    content = dataclasses.asdict(outcome)
    content["out"] = str(outcome.out)
    content["tables"] = [str(table) for table in outcome.tables]
    return content


def _summary(outcome: Any) -> None:
    tally = outcome.tally
    print_line()
    print_line(
        f"{tally.measured} measured, {tally.kept} kept from before, {tally.left} left "
        f"for lack of time, {len(tally.problems)} failed, in {outcome.seconds:.0f} s"
    )
    if tally.loose:
        print_line(f"{tally.loose} have an interval wider than asked for: see `tight`")
    if tally.disturbed_windows:
        print_line(
            f"something else ran during {share(tally.disturbed_windows / tally.windows)} "
            f"of the windows; {tally.discarded_windows} were left out"
        )
    if outcome.idle_watts is not None:
        print_line(f"idle: {scaled(outcome.idle_watts, 'W')}")
    cost = outcome.overhead
    if cost:
        empty = scaled(cost["seconds_per_empty_launch"], "s")
        print_line(f"harness: {empty} a launch that does nothing")
        if cost["empty_watts"] is not None and cost["asleep_watts"] is not None:
            drawn = scaled(cost["empty_watts"], "W")
            asleep = scaled(cost["asleep_watts"], "W")
            print_line(f"harness: {drawn} while it does nothing, {asleep} asleep")
    for name in ("seconds", "joules"):
        value = getattr(outcome, f"{name}_repeatability")
        if value is not None:
            print_line(f"repeatability of {name} between runs: {share(value)} (median)")
    print_line(f"rows: {outcome.out}")
    for table in outcome.tables:
        print_line(f"table: {table}")
    if outcome.chip is not None:
        print_line(f"chip: {outcome.chip} (the catalogue does not know it)")
    print_notes([*outcome.notes, *tally.problems])
