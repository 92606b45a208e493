"""`jaxlens coreset`: which configurations are worth measuring."""

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlens.cli.options import Json
from jaxlens.cli.tables import print_json, print_line, print_table

if TYPE_CHECKING:
    from jaxlens.calibration.coresets import Coreset
    from jaxlens.calibration.measured_tables import Table

EXAMPLES = """
[bold]Examples[/bold]

jaxlens coreset candidates.csv --budget 4h --out plan.csv

jaxlens coreset candidates.csv --runs 20 --json

Candidates are rows of a serving table that need no results: gpu, stack, model,
weight_dtype, tensor_parallel, prompt_tokens, output_tokens and max_num_seqs or
concurrency. A column cost_seconds says what a run takes; without it, three lifetimes of a
sequence as predicted, after --setup.
"""
UNITS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
# Columns of the answer, and what the table for people calls them.
SHOWN = {
    "model": "model",
    "gpu": "gpu",
    "tensor_parallel": "TP",
    "data_parallel": "DP",
    "expert_parallel": "EP",
    "concurrency": "batch",
    "prompt_tokens": "prompt",
    "output_tokens": "output",
    "weight": "weight",
    "cost_seconds": "cost s",
    "row": "row",
}


def command(
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV or Parquet file of candidate configurations.", show_default=False
        ),
    ],
    budget: Annotated[
        str | None,
        typer.Option(help="Time for all runs, such as 4h or 90min.", metavar="TIME"),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(help="Number of runs, instead of a budget.", min=1)
    ] = None,
    setup: Annotated[
        str, typer.Option(help="Time to start an engine.", metavar="TIME")
    ] = "5min",
    gpu: Annotated[
        str | None, typer.Option(help="Chip of rows that name none.")
    ] = None,
    stack: Annotated[
        str | None, typer.Option(help="Stack of rows that name none.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the clustering.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose the configurations whose measurement teaches most.

    Candidates are clustered by what the model's coefficients do to their predictions. The
    medoid of each cluster is worth a run, and its weight is the size of the cluster.
    """
    import jax
    import numpy as np

    from jaxlens.calibration import coresets

    if (budget is None) == (runs is None):
        raise ValueError("coreset: expected either --budget or --runs; give one.")
    limit = _seconds(budget, "--budget") if budget is not None else None
    starting = _seconds(setup, "--setup")
    candidates, given = coresets.read_candidates(table, gpu=gpu, stack=stack)
    with jax.enable_x64(True):
        evidence, lifetimes = coresets.evidence_of(candidates)
        features = coresets.gradients(evidence)
    seconds = coresets.run_seconds(lifetimes, starting)
    seconds = np.where(np.isfinite(given), given, seconds)
    found = (
        coresets.coreset(features, min(runs, len(features)), seed)
        if runs is not None
        else coresets.coreset_within(features, seconds, limit or 0.0, seed)
    )
    chosen = _records(candidates, found, seconds)
    if out is not None:
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(chosen[0]))
            writer.writeheader()
            writer.writerows(chosen)
    report = {
        "candidates": len(candidates),
        "skipped": len(candidates.skipped),
        "runs": len(chosen),
        "seconds": float(seconds[found.rows].sum()),
        "spread": found.spread,
        "spread_of_one": found.spread_of_one,
        "chosen": chosen,
    }
    if as_json:
        print_json(report)
    else:
        _show(report, out)


def _seconds(text: str, name: str) -> float:
    """Returns a time such as 4h, 90min or 600 in seconds."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", text)
    if match is None or match[2] not in UNITS:
        raise ValueError(
            f"coreset: expected {name} to be a time such as 4h, 90min or 600s, "
            f"got {text!r}."
        )
    return float(match[1]) * UNITS[match[2]]


def _records(table: "Table", found: "Coreset", seconds: Any) -> list[dict[str, Any]]:
    names = [name for name in SHOWN if name in table.columns]
    records = []
    for row, weight in zip(found.rows.tolist(), found.weights.tolist(), strict=True):
        cells = {name: table[name][row].item() for name in names}
        plain = {k: None if v != v else v for k, v in cells.items()}
        records.append(
            {
                "row": int(table.row_numbers[row]),
                **plain,
                "weight": weight,
                "cost_seconds": round(float(seconds[row]), 1),
            }
        )
    return records


def _show(report: dict[str, Any], out: Path | None) -> None:
    names = [name for name in SHOWN if name in report["chosen"][0]]
    rows = [[_cell(run[name]) for name in names] for run in report["chosen"]]
    print_table([SHOWN[name] for name in names], rows, left=2)
    hours = report["seconds"] / 3600.0
    print_line(
        f"{report['runs']} of {report['candidates']} candidates, {hours:.1f} h; "
        f"{report['skipped']} rows set aside"
    )
    print_line(
        f"distance to the nearest run, in log predictions: {report['spread']:.3f} "
        f"({report['spread_of_one']:.3f} with one run)"
    )
    if out is not None:
        print_line(f"wrote {out}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
