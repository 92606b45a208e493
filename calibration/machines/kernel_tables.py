"""Kernel formulas of a run: its rows as op tables, fitted and evaluated kind by kind."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration.kernels import Options, fit_kernels, predict_table
from jaxlens.calibration.kernels.kernel_fits import KernelFits, load_kernel_fits
from jaxlens.calibration.machines.runs import Row, Run
from jaxlens.calibration.measured_tables import Table, build_table
from jaxlens.calibration.raw_tables import from_records
from jaxlens.calibration.schemas import schema_of
from jaxlens.profile_files import CHIPS, read_entry
from jaxlens.requests import PROCESSOR

KINDS = ("gemm", "attention_prefill", "attention_decode", "moe", "collectives")
FEWEST = 4  # rows that a formula can be fitted to
# A processor is no relative of the GPUs that the pools are of: they say less of it.
# Measured: one thread of an AMD EPYC, left-out error of 29 products 10.8 -> 8.7 % and of 27
# decode attentions 13.8 -> 8.3 % against the options for GPUs.
STRANGER = Options(few_spread=2.5, few_noise=0.03)


def kernel_table(kind: str, rows: Sequence[Row], source: str, sha256: str) -> Table:
    """Returns rows of one kind as the op table that formulas are fitted to."""
    names = schema_of(kind, where=source).names
    records = [{k: v for k, v in row.items() if k in names} for row in rows]
    raw = replace(from_records(records, source=source, data=b""), sha256=sha256)
    return build_table(
        raw,
        kind=kind,
        known_gpu=lambda name: True,
        chip_watts=lambda name: None,
    )


def fit_run_kernels(
    run: Run,
    gpu: str,
    folder: Path,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[KernelFits | None, list[str]]:
    """Fits formulas to the kinds of a run, writes them, and says which could not be.

    The formulas of the package are their priors. A kind that fails takes nothing from the
    others. `gpu` is the id of the run's chip, or the file that describes it.
    """
    found: list[tuple[str, KernelFits]] = []
    notes: list[str] = []
    chips = {run.gpu: gpu} if gpu.endswith(".toml") else None
    vendor = read_entry(CHIPS, gpu).identity["vendor"]
    options = STRANGER if vendor == PROCESSOR else Options()
    for kind in KINDS:
        rows = [row for row in run.rows if row["kind"] == kind]
        if not rows:
            continue
        if len(rows) < FEWEST:
            notes.append(f"kernels: {kind}: {len(rows)} rows are too few for a formula")
            continue
        progress(f"kernel formulas: {kind.replace('_', ' ')}")
        try:
            table = kernel_table(kind, rows, run.name, run.sha256[0])
            priors = load_kernel_fits()
            fits = fit_kernels([table], options=options, priors=priors, chips=chips)
            found.append((kind, fits))
        except Exception as error:  # whatever it is, the fitted chip is worth keeping
            notes.append(f"kernels: {kind}: no formula: {_line(error)}")
    if not found:
        return None, notes
    fits = _joined(found)
    try:
        fits.save(folder)
    except Exception as error:
        notes.append(f"kernels: not written: {_line(error)}")
    return fits, notes


def _joined(found: Sequence[tuple[str, KernelFits]]) -> KernelFits:
    """Returns each kind from the fit that was made to it, and pools of the others."""
    levels: dict[str, dict[str, Any]] = {}
    for kind, fits in found:
        for target, kinds in fits.levels.items():
            of_kind = levels.setdefault(target, {})
            for other, groups in kinds.items():
                if other == kind or other not in of_kind:
                    of_kind[other] = groups
    last = found[-1][1]
    provenance: dict[str, Any] = {}
    for _, fits in found:
        provenance |= fits.provenance
    return replace(last, levels=levels, provenance=provenance)


def left_out_errors(fits: KernelFits, kinds: Sequence[str]) -> dict[str, float]:
    """Returns the mean error of time on cases that formulas left out, by kind.

    Args:
        fits: Formulas.
        kinds: Those that they were fitted to here.
    """
    result = {}
    for kind in kinds:
        levels = fits.levels.get("seconds", {}).get(kind, {})
        own = [
            (group.rows, group.held_out_mape)
            for labels, level in levels.items()
            if "gpu" in labels
            for group in level.values()
            if group.held_out_mape is not None and group.rows
        ]
        if own:
            rows, mapes = zip(*own, strict=True)
            result[kind] = float(np.average(mapes, weights=rows))
    return result


def predict_rows(
    rows: Sequence[tuple[int, Row]], fits: KernelFits | None
) -> tuple[dict[int, tuple[float, float]], list[str]]:
    """Returns seconds and joules by the formulas, by the position that rows come with."""
    result: dict[int, tuple[float, float]] = {}
    notes: list[str] = []
    if fits is None:
        return result, notes
    for kind in KINDS:
        own = [(position, row) for position, row in rows if row["kind"] == kind]
        if not own or kind not in fits.levels.get("seconds", {}):
            continue
        try:
            table = kernel_table(kind, [row for _, row in own], "held out", "")
            said = predict_table(table, fits)
        except Exception as error:
            notes.append(f"kernels: {kind}: no prediction: {_line(error)}")
            continue
        seconds = np.asarray(said["seconds"], float)
        joules = said.get("joules")
        joules = np.full(len(seconds), np.nan) if joules is None else joules
        for place, number in enumerate(table.row_numbers.tolist()):
            position = own[number - 1][0]
            result[position] = (float(seconds[place]), float(np.asarray(joules)[place]))
    return result, notes


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
