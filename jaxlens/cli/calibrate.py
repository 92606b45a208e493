"""`jaxlens calibrate`: coefficients from measured runs."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlens.cli.calibrate_machine import calibrate_run
from jaxlens.cli.options import Json
from jaxlens.cli.tables import print_json, print_line, print_table

if TYPE_CHECKING:
    from jaxlens.calibration.calibrating import Progress
    from jaxlens.fitted_profiles import FittedProfile

LEAST = 10  # scores shown of those that the data say least about
EXAMPLES = """
[bold]Examples[/bold]

jaxlens calibrate runs.csv --out profile.toml

jaxlens calibrate a.csv b.csv --out profiles/    one file for each chip and stack

jaxlens predict MODEL --gpu h100-sxm --profile profile.toml

jaxlens calibrate run.parquet --out mine/    the machine that `jaxlens measure` measured

jaxlens predict MODEL --gpu mine/h200-sxm.toml

jaxlens calibrate quick.parquet --held-out full.parquet --out mine/

jaxlens calibrate gemm.parquet moe.parquet --out kernels/    formulas of kernels

jaxlens calibrate bench.json --power nvidia-smi.csv --gpu h100-sxm --stack vllm --tp 2

Rows are steady-state serving runs, forward passes or kernels, as `jaxlens validate` reads
them, or all that `jaxlens measure` wrote of one machine. Coefficients that the runs cannot
tell apart keep their priors. Errors of serving runs are reported on architectures that were
left out of the fit.
"""


def command(
    tables: Annotated[
        list[Path],
        typer.Argument(
            help="CSV, Parquet or JSON files of measured runs.",
            metavar="TABLE…",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Profile to write, or a folder for several pairs."),
    ] = Path("profile.toml"),
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Chip of tables without that column; of a measured machine, id or file."
        ),
    ] = None,
    stack: Annotated[
        str | None, typer.Option(help="Stack of tables without that column.")
    ] = None,
    power: Annotated[
        Path | None,
        typer.Option(
            help="Power log (NVML, nvidia-smi or Zeus CSV) of a `vllm bench serve` result.",
            metavar="FILE",
        ),
    ] = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option("--tp", help="GPUs of the engine of such a result.", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the starting points.")] = 0,
    starts: Annotated[int, typer.Option(help="Starting points.", min=1)] = 2,
    steps: Annotated[
        int, typer.Option(help="Second-order steps at most.", min=1)
    ] = 100,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse tables with bad rows.")
    ] = False,
    carry_over: Annotated[
        str,
        typer.Option(
            help="Also write profiles of these chips without runs, such as "
            "h200-sxm,gb200, from the fitted ones; flagged, with wide intervals.",
            metavar="CHIPS",
        ),
    ] = "",
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            "--held-out",
            help="Another run on a measured machine: errors on its cases that the fit "
            "did not see.",
            metavar="RUN",
        ),
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option(
            help="Also fit formulas of single kernels to a measured machine (slower)."
        ),
    ] = True,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Picture of a measured machine: predicted against measured.",
            metavar="FILE",
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Fit chip and stack coefficients to measured serving runs, or to a measured machine.

    A profile is replaced only by a fit that has converged. A fit that is interrupted goes
    on where it was when the same command is given again.
    """
    from jaxlens.calibration.calibrate import calibrate
    from jaxlens.calibration.checkpoints import beside
    from jaxlens.calibration.fits import Options
    from jaxlens.calibration.table_fits import are_runs, kind_of
    from jaxlens.calibration.tables import read_table

    if are_runs(tables):
        return calibrate_run(
            tables, out, gpu, held_out or (), plot, kernels=kernels, as_json=as_json
        )
    if held_out or plot:
        raise ValueError(
            "calibrate: expected --held-out and --plot with a run of `jaxlens measure`, "
            "got other tables; `jaxlens validate` judges those."
        )
    given: Any = {
        "gpu": gpu,
        "stack": stack,
        "strict": strict,
        "power": power,
        "tensor_parallel": tensor_parallel,
    }
    kind = kind_of([read_table(path, **given) for path in tables])
    if kind != "serving":
        return _other_fit(kind, tables, out, as_json, **given)
    with _bars(quiet=as_json) as progress:
        found = calibrate(
            tables,
            options=Options(seed=seed, starts=starts, polish=steps),
            **given,
            checkpoint=beside(out),
            progress=progress,
        )
    report = {**found.report, "written": []}
    if report["converged"]:
        every = (*found.profiles, *_carried(carry_over, found.profiles))
        report["written"] = [str(path) for path in _write(out, every)]
    if as_json:
        print_json(report)
    else:
        _show(report)
    if report["converged"]:
        return 0
    print(
        f"jaxlens: calibrate: {report['reason']}; nothing written. Allow more --steps.",
        file=sys.stderr,
    )
    return 1


@contextmanager
def _bars(quiet: bool) -> Iterator["Progress"]:
    """Shows a bar for each stage on stderr; notes alone where `quiet` or piped."""
    from rich import progress as rich
    from rich.console import Console

    from jaxlens.calibration.calibrate import NOTE

    console = Console(stderr=True, highlight=False)
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("{task.fields[detail]}"),
    )
    hidden = quiet or not console.is_terminal
    bars = rich.Progress(*columns, console=console, disable=hidden)
    known: dict[str, rich.TaskID] = {}

    def show(stage: str, done: int, total: int, detail: str) -> None:
        if stage == NOTE:
            print(f"jaxlens: calibrate: {detail}", file=sys.stderr)
            return
        if stage not in known:
            known[stage] = bars.add_task(stage, total=total, detail="")
        bars.update(known[stage], completed=done, detail=detail)

    with bars:
        yield show


def _progress(stage: str) -> None:
    print(f"{stage} …", file=sys.stderr)


def _other_fit(
    kind: str, tables: Sequence[Path], out: Path, as_json: bool, **given: Any
) -> int:
    """Fits kernels or forward passes, and says how far off the fits are."""
    from jaxlens.calibration import table_fits
    from jaxlens.calibration.tables import read_table

    read = [read_table(path, **given) for path in tables]
    fit = {
        "kernels": table_fits.fit_kernel_tables,
        "forward": table_fits.fit_forward_tables,
    }[kind]
    report = fit(read, out, _progress)
    if as_json:
        print_json(report)
    else:
        for path in report["written"]:
            print_line(f"wrote {path}")
        print_line(f"errors: jaxlens validate {tables[0]} --profile {out}")
    return 0


def _carried(chips: str, fitted: Sequence["FittedProfile"]) -> list["FittedProfile"]:
    """Returns profiles of `chips` under the default stack, carried over from `fitted`."""
    names = [name.strip() for name in chips.split(",") if name.strip()]
    if not names:
        return []
    from jaxlens.calibration.transfers import transferred
    from jaxlens.profiles import DEFAULT_STACK

    return [transferred(name, fitted, DEFAULT_STACK) for name in names]


def _write(out: Path, profiles: Sequence["FittedProfile"]) -> list[Path]:
    """Writes one profile to a file, or several into a folder; returns their paths."""
    from jaxlens.calibration.results import save
    from jaxlens.fitted_profiles import save_profile

    if out.is_dir() or not out.suffix:
        return save(out, profiles)
    if len(profiles) > 1:
        pairs = ", ".join(f"{p.chip} with {p.stack}" for p in profiles)
        raise ValueError(
            f"calibrate: expected --out to be a folder for several pairs ({pairs}), "
            f"got {out}."
        )
    for profile in profiles:
        save_profile(out, profile)
    return [out]


def _show(report: Mapping[str, Any]) -> None:
    rows = [
        (chip, kind.replace("_", " "), *_errors(errors))
        for kind in ("in_sample", "left_out")
        for chip, errors in report[kind].items()
    ]
    print_table(("chip", "rows", "energy MAPE", "latency MAPE"), rows, left=2)
    held = [
        (chip, *_held(found, "energy"), *_held(found, "latency"))
        for chip, found in report["coverage"].items()
    ]
    heads = ("energy held", "median width", "latency held", "median width")
    print_table(("80 % intervals, left out", *heads), held)
    print_line(
        f"{report['rows']} rows, {report['skipped']} set aside; {report['reason']}"
    )
    print_line(
        f"the data moved {report['scores_moved']} of {report['scores']} scores (took "
        f"half of the prior variance or more); the others lean on their priors"
    )
    shares = sorted(report["identifiability"].items(), key=lambda item: item[1])
    print_line("least identified, with the share of prior variance that went:")
    for name, share in shares[:LEAST]:
        print_line(f"  {share:6.1%}  {name}")
    for path in report["written"]:
        print_line(f"wrote {path}")


def _held(found: Mapping[str, Any], target: str) -> tuple[str, str]:
    """How many unseen rows an interval holds, and how wide it is."""
    part = found.get(target)
    if part is None:
        return "unknown", "unknown"
    return f"{part['coverage']:.0%}", f"{part['median_width']:.0%}"


def _errors(entry: Mapping[str, Any]) -> tuple[str, str]:
    def shown(name: str) -> str:
        mape = entry.get(name, {}).get("mape")
        return "unknown" if mape is None else f"{mape:.1%}"

    return shown("energy"), shown("latency")
