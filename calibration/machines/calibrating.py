"""From the file that `jaxlens measure` wrote to a chip and a stack for `jaxlens predict`.

A folder gets `<chip>.toml` (for any stack), `<chip>.torch.toml` (a profile: the chip under
torch's kernels), `kernels/` (formulas of single kernels) and `report.json`. Each file is
written as a whole.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration.machines import chips, errors
from jaxlens.calibration.machines.fitting import (
    STACK,
    MachineFit,
    Problem,
    fit_machine,
    problem,
    short,
)
from jaxlens.calibration.machines.kernel_tables import (
    fit_run_kernels,
    left_out_errors,
    predict_rows,
)
from jaxlens.calibration.machines.profiles import profile, provenance
from jaxlens.calibration.machines.runs import IDLE, Row, Run, read_run
from jaxlens.fitted_profiles import save_profile
from jaxlens.profile_files import CHIPS, Entry, read_entry
from jaxlens.profile_values import unit_of
from jaxlens.requests import PROCESSOR

Progress = Callable[[str], None]
LOWERED = 0.98  # power limit over TDP that counts as lowered
MOST_LISTED = 3  # rows that were set aside


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated:
    """A fitted machine, and the report that lies beside its files."""

    report: dict[str, Any]
    fitted: MachineFit


def calibrate_machine(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    gpu: str | None = None,
    held_out: Sequence[str | Path] = (),
    kernels: bool = True,
    progress: Progress = lambda text: None,
) -> Calibrated:
    """Fits one machine to its runs, writes the folder `out` and returns what was found.

    Args:
        paths: What `jaxlens measure` wrote on one machine.
        out: Folder for what is found.
        gpu: Chip id or file, where neither the catalogue nor a file beside the run has it.
        held_out: Runs on the same machine whose other cases are only predicted.
        kernels: Whether to fit formulas of single kernels as well.
        progress: Takes one line for each stage.
    """
    folder = _folder(Path(out))
    run = read_run(paths)
    source = chips.facts_of(run, gpu)
    entry = read_entry(CHIPS, Path(source) if source.endswith(".toml") else source)
    progress("reading rows")
    task = problem(run, source, _unseen(run, held_out))
    progress("fitting the machine")
    fitted = fit_machine(task)
    report = _report(run, fitted, entry)
    written = _chip_and_profile(folder, run, fitted, entry, report["families"])
    if kernels:
        written += _formulas(folder / "kernels", run, source, fitted, report, progress)
    written.append(folder / "report.json")
    report["written"] = [str(path) for path in written]
    _save(written[-1], report)
    return Calibrated(report=report, fitted=fitted)


def _report(run: Run, fitted: MachineFit, entry: Entry) -> dict[str, Any]:
    """What is said of a fit, before kernel formulas and files."""
    task = fitted.problem
    power = fitted.has_energy or entry.identity["vendor"] != PROCESSOR
    return {
        "chip": chips.identifier(entry),
        "stack": STACK,
        "provenance": provenance(run),
        "rows": task.fitted_rows,
        "failed": run.failed,
        "set_aside": len(task.set_aside),
        "converged": fitted.converged,
        "has_power": power,
        "noise": dict(zip(errors.TARGETS, fitted.noise, strict=True)),
        "families": errors.families(fitted),
        "held_out": errors.judged(fitted),
        "steps": errors.steps(fitted),
        "coefficients": _coefficients(fitted, entry),
        "notes": [*_notes(fitted, task, run), *_capped(run, entry)],
    }


def _chip_and_profile(
    folder: Path,
    run: Run,
    fitted: MachineFit,
    entry: Entry,
    families: Mapping[str, Any],
) -> list[Path]:
    chip = chips.identifier(entry)
    remarks = _remarks(run, fitted)
    tables = chips.chip_tables(fitted, entry, remarks[0])
    path = folder / f"{chip}.{STACK}.toml"
    written = [chips.save_chip(folder, tables, remarks), path]
    save_profile(path, profile(fitted, run, chip, families))
    return written


def _formulas(
    folder: Path,
    run: Run,
    source: str,
    fitted: MachineFit,
    report: dict[str, Any],
    progress: Progress,
) -> list[Path]:
    """Fits formulas of kernels, adds their errors to `report`, returns their files."""
    found, notes = fit_run_kernels(run, source, folder, progress)
    report["notes"] += notes
    if found is None:
        return []
    for kind, error in left_out_errors(found, list(found.provenance)).items():
        if kind in report["families"]:
            report["families"][kind]["time"]["formulas_held_out"] = error
    task = fitted.problem
    unseen = np.flatnonzero(task.weights.sum(axis=1) == 0.0)
    said, notes = predict_rows([(int(i), task.rows[i]) for i in unseen], found)
    report["notes"] += notes
    report["held_out"] = errors.judged(fitted, said)
    return sorted(folder.glob("*.toml"))


def _folder(out: Path) -> Path:
    if out.suffix and not out.is_dir():
        raise ValueError(
            f"calibrate: expected --out to be a folder for a run of `jaxlens measure`, "
            f"got {out}; such as --out mine/."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"calibrate: expected --out to be a folder, got {out} ({error.strerror}); "
            "choose another."
        ) from None
    return out


def _unseen(run: Run, paths: Sequence[str | Path]) -> list[Row]:
    """Rows of other runs on the same chip whose case the fit does not see."""
    if not paths:
        return []
    other = read_run(paths)
    if other.gpu != run.gpu:
        raise ValueError(
            f"--held-out: expected a run on {run.gpu}, got one on {other.gpu}; "
            "what is judged must be of the machine that is fitted."
        )
    seen = {row["case"] for row in run.rows}
    return [
        row for row in other.rows if row["case"] not in seen and row["kind"] not in IDLE
    ]


def _remarks(run: Run, fitted: MachineFit) -> list[str]:
    known = provenance(run)
    parts = [run.name, f"{fitted.problem.fitted_rows} rows"]
    parts += [str(known["measured_to"])[:10]] if "measured_to" in known else []
    parts += [
        f"{name} {known[key]}"
        for name, key in (("driver", "driver"), ("torch", "version"))
        if key in known
    ]
    remarks = [", ".join(parts)]
    return remarks if fitted.has_energy else [*remarks, chips.TIME_ONLY]


def _coefficients(fitted: MachineFit, entry: Entry) -> list[dict[str, Any]]:
    """Every coefficient that the fit may move: value, prior and what the run knows of it."""
    names = chips.measured_names(fitted)
    known = fitted.problem.parameters
    spreads = fitted.spreads
    return [
        {
            "name": name,
            "value": short(fitted.values[name]),
            "unit": unit_of(name.partition(".")[2]),
            "prior": short(np.asarray(known.prior)[0, known.coefficients.index(name)]),
            "sd": spreads[name],
            "informed": share,
            "measured": name in names,
        }
        for name, share in fitted.informed.items()
    ] + [
        {
            "name": name,
            "value": found.value,
            "unit": unit_of(name.partition(".")[2]),
            "prior": entry.values[name.partition(".")[2]].value,
            "sd": found.sd,
            "informed": None,
            "measured": True,
        }
        for name, found in fitted.apart.items()
    ]


def _notes(fitted: MachineFit, task: Problem, run: Run) -> list[str]:
    notes = []
    if not fitted.has_energy:
        notes.append(chips.TIME_ONLY)
    if not fitted.converged:
        notes.append("the fit has not converged: its coefficients are the best it saw")
    if run.failed:
        notes.append(f"{run.failed} rows failed while measuring and are left out")
    notes += [f"set aside: {reason}" for reason in task.set_aside[:MOST_LISTED]]
    if len(task.set_aside) > MOST_LISTED:
        notes.append(f"and {len(task.set_aside) - MOST_LISTED} more rows set aside")
    return notes


def _capped(run: Run, entry: Entry) -> list[str]:
    """Says that a power limit held while measuring, which predictions do not assume."""
    limits = [row["power_cap_watts"] for row in run.rows if "power_cap_watts" in row]
    tdp = entry.values["tdp_watts"].value
    if not limits or min(limits) > LOWERED * tdp:
        return []
    return [
        f"measured under a power limit of {min(limits):.0f} W of {tdp:.0f} W: the clocks "
        "of the rows show it; predict with --power-cap to meet it"
    ]


def _save(path: Path, report: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
