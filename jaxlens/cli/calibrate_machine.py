"""What `jaxlens calibrate` says of a machine that `jaxlens measure` has measured."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlens.cli.tables import print_json, print_line, print_notes, print_table, share

TARGETS = ("time", "energy")


def calibrate_run(
    tables: Sequence[Path],
    out: Path,
    gpu: str | None,
    held_out: Sequence[Path],
    plot: Path | None,
    *,
    kernels: bool,
    as_json: bool,
) -> int:
    """Fits the machine of a run and prints how far the fit is from it; returns 0."""
    from jaxlens.calibration.machines.calibrating import calibrate_machine

    if plot is not None:
        from jaxlens.cli.pictures import check_picture

        check_picture(plot)
    with _stages(quiet=as_json) as progress:
        found = calibrate_machine(
            tables,
            out,
            gpu=gpu,
            held_out=held_out,
            kernels=kernels,
            progress=progress,
        )
    report = found.report
    if plot is not None:
        _draw(found.fitted, plot)
        report = {**report, "written": [*report["written"], str(plot)]}
    if as_json:
        print_json(report)
    else:
        _show(report)
    return 0


@contextmanager
def _stages(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows the present stage on stderr: a spinner on a terminal, lines where piped."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    spinning = console.is_terminal and not quiet
    columns = (
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}"),
        rich.TimeElapsedColumn(),
    )
    bars = rich.Progress(*columns, console=console, disable=not spinning)
    task = bars.add_task("reading", total=None)

    def show(stage: str) -> None:
        bars.update(task, description=stage)
        if not spinning and not quiet:
            print(f"{stage} …", file=sys.stderr)

    with bars:
        yield show


def _show(report: Mapping[str, Any]) -> None:
    families = report["families"]
    targets = [
        t for t in TARGETS if any(map(_known, (f[t] for f in families.values())))
    ]
    formulas = any("formulas_held_out" in part["time"] for part in families.values())
    rows = [
        (
            family,
            part["rows"],
            *(cell for target in targets for cell in _errors(part[target])),
            *([_cell(part["time"].get("formulas_held_out"))] if formulas else []),
        )
        for family, part in families.items()
    ]
    names = [
        f"{t}: {head}" for t in targets for head in ("fitted", "left out", "noise")
    ]
    names += ["formulas: left out"] if formulas else []
    print_table(("operations", "rows", *names), rows, title=_title(report))
    if report["held_out"]:
        _show_held_out(report["held_out"])
    if report["steps"]:
        _show_steps(report["steps"])
    _show_coefficients(report["coefficients"])
    print_line(
        "MAPE; left out: a fifth of the cases at a time; noise: what measurements of one "
        "case differ by among themselves"
    )
    print_notes(report["notes"])
    for path in report["written"]:
        print_line(f"wrote {path}")
    if report["has_power"]:
        print_line(f"next: jaxlens predict MODEL --gpu {report['written'][0]}")


def _title(report: Mapping[str, Any]) -> str:
    return f"{report['chip']} under {report['stack']}: {report['rows']} rows"


def _show_held_out(families: Mapping[str, Any]) -> None:
    rows = [
        (
            family,
            part["rows"],
            *(
                _cell(part[target][name])
                for target in TARGETS
                for name in ("profile", "kernels")
            ),
        )
        for family, part in families.items()
    ]
    names = [f"{t}: {name}" for t in TARGETS for name in ("profile", "formulas")]
    title = "cases of other runs that the fit did not see"
    print_table(("operations", "rows", *names), rows, title=title)


def _show_steps(steps: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            f"{step['model']} {step['phase']}",
            step["mode"],
            f"{step['batch']:g} x {step['prompt_tokens']:g}",
            f"{1e3 * step['measured_seconds']:.4g} ms",
            _signed(step["seconds_error"]),
            _signed(step["joules_error"]),
        )
        for step in steps
    ]
    names = ("step", "mode", "batch x tokens", "measured", "time error", "energy error")
    title = "whole steps, predicted from operations alone"
    print_table(names, rows, title=title, left=3)


def _show_coefficients(coefficients: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            found["name"],
            f"{found['value']:.4g}",
            found["unit"],
            f"{found['prior']:.4g}",
            f"± {found['sd']:.0%}",
        )
        for found in coefficients
        if found["measured"]
    ]
    print_table(("coefficient", "measured", "unit", "prior", "known to"), rows)
    kept = [found["name"] for found in coefficients if not found["measured"]]
    if kept:
        print_line(f"priors kept, the run says nothing of them: {', '.join(kept)}")


def _known(part: Mapping[str, float | None]) -> bool:
    return part["in_sample"] is not None


def _errors(part: Mapping[str, float | None]) -> tuple[str, str, str]:
    repeated = part["repeatability"]
    noise = part["spread"] if repeated is None else repeated
    return _cell(part["in_sample"]), _cell(part["held_out"]), _cell(noise)


def _cell(value: float | None) -> str:
    return "-" if value is None else share(value)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:+.1f} %"


def _draw(fitted: Any, path: Path) -> None:
    """Draws predicted against measured, and residuals by family: left out where fitted."""
    import numpy as np

    from jaxlens import residual_plots

    task = fitted.problem
    said = np.where(np.isfinite(fitted.left_out), fitted.left_out, fitted.predicted)
    known = np.isfinite(task.measured)
    columns = [i for i in (0, 1) if known[:, i].any()]
    groups = len(set(task.families.tolist()))
    figure, axes = residual_plots.panels(len(columns), 1, groups)
    for row, column in zip(axes, columns, strict=True):
        chosen = known[:, column]
        predicted, measured = said[chosen, column], task.measured[chosen, column]
        labels = task.families[chosen]
        residual_plots.predicted_against_measured(
            row[0],
            predicted,
            measured,
            name=("time (seconds)", "energy (joules)")[column],
            groups=labels,
        )
        residual_plots.residuals_by(
            row[1], np.log(predicted / measured), labels, factor="family"
        )
    residual_plots.title(
        figure,
        f"Predicted against measured: {task.measured.shape[0]} rows",
        "each by a fit that did not see its case",
    )
    figure.savefig(path)
