"""`jaxlens calibrate`: coefficients from measured runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxlens.cli.options import Json
from jaxlens.cli.tables import print_json, print_line, print_table

EXAMPLES = """
[bold]Examples[/bold]

jaxlens calibrate runs.csv --out profile.toml

jaxlens calibrate a.csv b.csv --out profiles/    one file for each chip and stack

jaxlens predict MODEL --gpu h100-sxm --profile profile.toml

Rows are steady-state serving runs, as `jaxlens validate` reads them. Coefficients that
the runs cannot tell apart keep their priors. Errors are reported on architectures that
were left out of the fit.
"""


def command(
    tables: Annotated[
        list[Path],
        typer.Argument(
            help="CSV, Parquet or JSON files of serving runs.",
            metavar="TABLE…",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Profile to write, or a folder for several pairs."),
    ] = Path("profile.toml"),
    gpu: Annotated[
        str | None, typer.Option(help="Chip of tables without that column.")
    ] = None,
    stack: Annotated[
        str | None, typer.Option(help="Stack of tables without that column.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the starting points.")] = 0,
    starts: Annotated[int, typer.Option(help="Starting points.", min=1)] = 2,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse tables with bad rows.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fit chip and stack coefficients to measured serving runs."""
    from jaxlens.calibration.calibrate import calibrate
    from jaxlens.calibration.fits import Options
    from jaxlens.calibration.results import save
    from jaxlens.fitted_profiles import save_profile

    found = calibrate(
        tables,
        options=Options(seed=seed, starts=starts),
        gpu=gpu,
        stack=stack,
        strict=strict,
        progress=lambda stage: print(f"{stage} …", file=sys.stderr),
    )
    several = len(found.profiles) > 1 or out.is_dir() or not out.suffix
    if several and out.suffix:
        pairs = ", ".join(f"{p.chip} with {p.stack}" for p in found.profiles)
        raise ValueError(
            f"calibrate: expected --out to be a folder for several pairs ({pairs}), "
            f"got {out}."
        )
    if several:
        written = save(out, found.profiles)
    else:
        save_profile(out, found.profiles[0])
        written = [out]
    report = {**found.report, "written": [str(path) for path in written]}
    if as_json:
        print_json(report)
        return
    rows = [
        (chip, kind, *_errors(report[kind][chip]))
        for kind in ("in_sample", "left_out")
        for chip in report[kind]
    ]
    print_table(("chip", "rows", "energy MAPE", "latency MAPE"), rows)
    print_line(
        f"{report['rows']} rows, {report['skipped']} set aside; {report['reason']}"
    )
    for path in written:
        print_line(f"wrote {path}")


def _errors(entry: dict) -> tuple[str, str]:
    def shown(name: str) -> str:
        mape = entry.get(name, {}).get("mape")
        return "unknown" if mape is None else f"{mape:.1%}"

    return shown("energy"), shown("latency")
