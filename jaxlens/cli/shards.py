"""`jaxlens shards`: what a folder of full output holds."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxlens.cli.options import Json
from jaxlens.cli.tables import print_json, print_line, print_table, scaled, share
from jaxlens.shards import look
from jaxlens.shards.manifests import Manifest

MOST_RANGES = 8

EXAMPLES = """
[bold]Examples[/bold]

jaxlens shards sweep/

jaxlens shards sweep/ --verify --json     (reads every value, compares checksums)
"""


def command(
    folder: Annotated[
        Path, typer.Argument(help="Full output of a sweep.", show_default=False)
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every value and compare the checksums."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Says what a folder with the full output of a sweep holds, and what is missing.

    Missing shards are no error: the same sweep, run again, evaluates them alone.
    """
    found = look(folder, verify=verify)
    if as_json:
        print_json(_content(found, verify))
    else:
        _show(found, verify)


def _content(found: Manifest, verify: bool) -> dict[str, Any]:
    plan = found.plan
    return {
        "folder": str(found.folder),
        "complete": found.complete,
        "verified": verify,
        "rows": found.rows,
        "rows_wanted": plan.rows,
        "shard_rows": plan.shard_rows,
        "missing": list(found.missing),
        "file_bytes": found.file_bytes,
        "function": plan.function,
        "fingerprint": plan.fingerprint,
        "version": plan.version,
        "profiles": list(plan.profiles),
        "created": plan.created,
        "axes": [asdict(axis) for axis in plan.axes],
        "columns": [asdict(column) for column in plan.columns],
        "shards": [
            {
                "index": shard.index,
                "first": shard.first,
                "rows": shard.rows,
                "file": shard.path.name,
                "complete": shard.complete,
                "file_bytes": shard.file_bytes,
                "checksum": shard.checksum,
            }
            for shard in found.shards
        ],
    }


def _show(found: Manifest, verify: bool) -> None:
    plan, there = found.plan, len(found.shards) - len(found.missing)
    state = "complete" if found.complete else "incomplete"
    print_line(
        f"{found.folder}: {state}{', checksums fit' if verify else ''}", style="bold"
    )
    print_table(
        ("full output", ""),
        [
            ("rows", f"{found.rows:,} of {plan.rows:,}"),
            ("shards", f"{there:,} of {len(found.shards):,}, {plan.shard_rows:,} rows"),
            ("done", share(found.rows / plan.rows)),
            ("size", scaled(float(found.file_bytes), "B")),
            ("model", f"{plan.function}, jaxlens {plan.version}"),
            ("profiles", ", ".join(plan.profiles) or "not stated"),
            ("begun", plan.created),
        ],
    )
    print_table(("axis", "values"), [(axis.name, axis.count) for axis in plan.axes])
    print_table(
        ("column", "unit", "type"),
        [(column.name, column.unit, column.type) for column in plan.columns],
    )
    if not found.complete:
        ranges = _ranges(found.missing)
        more = len(ranges) - MOST_RANGES
        rest = f" and {more} more ranges" if more > 0 else ""
        print_line(
            f"missing shards: {', '.join(ranges[:MOST_RANGES])}{rest}; "
            f"run the same sweep again to fill the gap"
        )


def _ranges(indices: tuple[int, ...]) -> list[str]:
    """Neighbours together: 1, 2, 3, 7 as 1-3, 7."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return [f"{low}-{high}" if high > low else str(low) for low, high in ranges]
