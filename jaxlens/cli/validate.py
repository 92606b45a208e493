"""`jaxlens validate`: predictions against measured runs."""

import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxlens.cli.options import Json
from jaxlens.cli.tables import (
    print_json,
    print_line,
    print_notes,
    print_table,
    share,
    signed_share,
)

EXAMPLES = """
[bold]Examples[/bold]

jaxlens validate runs.csv --by model,gpu

jaxlens validate runs.csv more.parquet --profile mine.toml --json

jaxlens validate my_gemms.parquet --kind gemm --gpu h100-sxm

jaxlens validate run.parquet --by kind --profile mine/     (what `jaxlens measure` wrote)

jaxlens validate runs.csv --plot errors.png

A row is one steady-state serving run, with columns such as gpu, stack, model,
tensor_parallel, prompt_tokens, output_tokens, concurrency, output_tokens_per_second
and joules_per_output_token or watts. Tables of forward passes, kernels, collectives,
clocks, power caps and whole runs of `jaxlens measure` are told by their columns, or by
--kind.
"""

ERRORS = ("mape", "median_ape", "bias")
USUAL = ("energy", "latency")  # what is judged of serving runs
LARGE_BYTES = 1_000_000
FACTORS = ("model", "gpu", "gpus")  # by which residuals are drawn
BATCH = "concurrency"
UNITS = ("seconds", "watts", "volts")


def command(
    tables: Annotated[
        list[Path],
        typer.Argument(
            help="CSV, Parquet or JSON files of measured runs.",
            metavar="TABLE…",
            show_default=False,
        ),
    ],
    by: Annotated[
        str,
        typer.Option(
            help="Errors also by these columns, such as model,gpu.", metavar="COLUMNS"
        ),
    ] = "",
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Fitted profile; default: those of the package.", metavar="FILE"
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Kind of table, where columns do not tell.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Chip of tables without that column.")
    ] = None,
    stack: Annotated[
        str | None, typer.Option(help="Stack of tables without that column.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse tables with bad rows.")
    ] = False,
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
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Picture of predicted against measured, and of residuals by model, "
            "GPU, number of GPUs and batch.",
            metavar="FILE",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Errors of predictions against measured runs, kernels or clocks.

    Latency is concurrency / output tokens per second. Rows that cannot be used are set
    aside and counted, each with its reason.
    """
    columns = tuple(name.strip() for name in by.split(",") if name.strip())
    validation = importlib.import_module("jaxlens.calibration.validation")
    asked = {
        "kind": kind,
        "gpu": gpu,
        "stack": stack,
        "strict": strict or None,
        "power": power,
        "tensor_parallel": tensor_parallel,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if plot is not None:
        from jaxlens.cli.pictures import check_picture

        check_picture(plot)
    _announce(tables)
    if plot is None:
        found = validation.validate(tables, profile=profile, by=columns, **given)
    else:
        found = _drawn(validation, tables, profile, columns, plot, **given)
    if as_json:
        print_json(_plain(found))
    else:
        _show(found)


def _drawn(
    validation: Any,
    paths: Sequence[Path],
    profile: Path | None,
    by: Sequence[str],
    picture: Path,
    **given: Any,
) -> dict[str, Any]:
    """Returns what `validate` does, and draws the same predictions."""
    read = validation.read_tables(paths, **given)
    predicted = [validation.predict_table(table, profile) for table in read]
    found = validation.report(read, predicted, by)
    comparisons = validation.compared(read, predicted)
    if not comparisons:
        raise ValueError(
            "validate: expected rows to draw, got none that have both a prediction and "
            "a measurement; leave out --plot to see why."
        )
    _draw(validation, read, comparisons, found, picture)
    return {**found, "plot": str(picture)}


def _draw(
    validation: Any,
    tables: Sequence[Any],
    comparisons: Mapping[str, Any],
    found: Mapping[str, Any],
    picture: Path,
) -> None:
    """Draws every target: predicted against measured, then residuals by each factor."""
    import numpy as np

    from jaxlens import residual_plots

    labels = _factors(validation, tables)
    most = max((len(set(values)) for values in labels.values()), default=1)
    figure, axes = residual_plots.panels(len(comparisons), len(labels), most)
    for row, (target, said) in zip(axes, comparisons.items(), strict=True):
        residual_plots.predicted_against_measured(
            row[0],
            said.predicted,
            said.measured,
            name=f"{target} ({_unit(said.column)})",
            groups=labels["gpu"][said.known] if "gpu" in labels else None,
        )
        residuals = np.log(said.predicted / said.measured)
        for panel, (factor, values) in zip(row[1:], labels.items(), strict=True):
            residual_plots.residuals_by(
                panel, residuals, values[said.known], factor=factor
            )
    drawn = max(len(said.measured) for said in comparisons.values())
    errors = ", ".join(f"{name} {share(found[name]['mape'])}" for name in comparisons)
    residual_plots.title(
        figure,
        f"Predicted against measured: {drawn} of {found['rows']} rows",
        f"mean absolute error: {errors}",
    )
    figure.savefig(picture)


def _unit(column: str) -> str:
    """What a column is measured in, by the SI unit in its name."""
    words = column.replace("_", " ")
    return next((unit for unit in UNITS if words.endswith(unit)), words)


def _factors(validation: Any, tables: Sequence[Any]) -> dict[str, Any]:
    """Labels of all rows by factor, of the factors that the tables have."""
    import numpy as np

    labels = {
        name: validation.labels(tables, name)
        for name in FACTORS
        if validation.has_column(tables, name)
    }
    if validation.has_column(tables, BATCH):
        sizes = np.concatenate([np.asarray(table[BATCH], float) for table in tables])
        labels["batch (tenths)"] = validation.decile_labels(sizes)
    return labels


def _announce(tables: Sequence[Path]) -> None:
    """Says on stderr that large tables take a while."""
    large = [t for t in tables if t.is_file() and t.stat().st_size > LARGE_BYTES]
    for table in large:
        size = table.stat().st_size / 1e6
        print(f"reading {table} ({size:.0f} MB): this takes a while …", file=sys.stderr)


def _show(found: Mapping[str, Any]) -> None:
    targets = _targets(found)
    rows = [_errors("all", "", found, targets)]
    for column, groups in found.get("by", {}).items():
        rows += [
            _errors(str(group), column, part, targets) for group, part in groups.items()
        ]
    heads = [f"{name} {error}" for name in targets for error in ERRORS]
    title = f"{found['kind']} tables" if "kind" in found else None
    print_table(("runs", "by", "rows", *heads), rows, title=title, left=2)
    rank = found.get("spearman")
    if isinstance(rank, Mapping):
        for name, value in rank.items():
            print_line(f"rank correlation of {name}: {_number(value)}")
    elif rank is not None:
        print_line(f"rank correlation: {_number(rank)}")
    for name in targets:
        part = found.get(name) or {}
        if "coverage" in part:
            print_line(
                f"80 % intervals of {name} hold {share(part['coverage'])} of rows, "
                f"median width {share(part['median_width'])}"
            )
    print_line(f"rows used {found['rows']}, set aside {_count(found['skipped'])}")
    if "plot" in found:
        print_line(f"picture: {found['plot']}")
    print_notes(str(note) for note in found.get("notes", ()))


def _targets(found: Mapping[str, Any]) -> tuple[str, ...]:
    """What was judged: energy and latency of serving runs, time of kernels and so on."""
    judged = (
        name
        for name, part in found.items()
        if isinstance(part, Mapping) and "mape" in part
    )
    return tuple(judged) or USUAL


def _errors(
    name: str, column: str, found: Mapping[str, Any], targets: Sequence[str]
) -> tuple[str, ...]:
    cells = []
    for quantity in targets:
        errors = found.get(quantity) or {}
        for error in ERRORS:
            value = errors.get(error, math.nan)
            show = signed_share if error == "bias" else share
            cells.append("-" if value is None or math.isnan(value) else show(value))
    return name, column, str(found.get("rows", "")), *cells


def _count(skipped: Any) -> int:
    return skipped if isinstance(skipped, int) else len(skipped)


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _plain(found: Any) -> Any:
    """Numbers, words, lists and dicts; NaN, which JSON has no word for, is null."""
    if isinstance(found, Mapping):
        return {str(key): _plain(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_plain(value) for value in found]
    if isinstance(found, str | bool | int) or found is None:
        return found
    number = float(found)
    return number if abs(number) < float("inf") else None
