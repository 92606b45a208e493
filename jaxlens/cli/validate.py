"""`jaxlens validate`: predictions against measured runs."""

import importlib
import math
from collections.abc import Mapping
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

A row is one steady-state serving run, with columns such as gpu, stack, model,
tensor_parallel, prompt_tokens, output_tokens, concurrency, output_tokens_per_second
and joules_per_output_token or watts.
"""

ERRORS = ("mape", "median_ape", "bias")


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
    as_json: Json = False,
) -> None:
    """Errors of predictions against measured serving runs.

    Latency is concurrency / output tokens per second. Rows that cannot be used are set
    aside and counted, each with its reason.
    """
    columns = tuple(name.strip() for name in by.split(",") if name.strip())
    validation = importlib.import_module("jaxlens.calibration.validation")
    found = validation.validate(tables, profile=profile, by=columns)
    if as_json:
        print_json(_plain(found))
    else:
        _show(found)


def _show(found: Mapping[str, Any]) -> None:
    rows = [_errors("all", "", found)]
    for column, groups in found.get("by", {}).items():
        rows += [_errors(str(group), column, part) for group, part in groups.items()]
    heads = [f"{name} {error}" for name in ("energy", "latency") for error in ERRORS]
    print_table(("runs", "by", "rows", *heads), rows, left=2)
    rank = found.get("spearman")
    if isinstance(rank, Mapping):
        for name, value in rank.items():
            print_line(f"rank correlation of {name}: {_number(value)}")
    elif rank is not None:
        print_line(f"rank correlation: {_number(rank)}")
    print_line(f"rows used {found['rows']}, set aside {_count(found['skipped'])}")
    print_notes(str(note) for note in found.get("notes", ()))


def _errors(name: str, column: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    cells = []
    for quantity in ("energy", "latency"):
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
