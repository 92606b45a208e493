"""Columns that follow from others, and what measured columns say about each other."""

from collections.abc import Callable

import numpy as np

from jaxlens.calibration.row_checks import (
    JOULES_UNITS,
    Findings,
    check_power,
    watts_units,
)

ChipWatts = Callable[[str], tuple[float, float] | None]
Columns = dict[str, np.ndarray]

SHOWN = 5  # rows that a note lists
DISAGREEMENT = 0.2  # of watts against joules per token x tokens per second
QUEUE = 1.05  # running requests above the limit by more than this were waiting


def complete(kind: str, columns: Columns, findings: Findings) -> None:
    """Adds the columns that follow from others."""
    if kind == "serving":
        _complete_layout(columns, findings)
    if {"concurrency", "output_tokens_per_second"} <= columns.keys():
        columns["latency_seconds"] = (
            columns["concurrency"] / columns["output_tokens_per_second"]
        )
    if kind == "forward" and "joules" in columns:
        columns["watts"] = columns["joules"] / columns["seconds"]
    elif kind != "run" and "watts" in columns:
        seconds = columns.get("seconds", columns.get("limited_seconds"))
        if seconds is not None:
            columns["joules"] = columns["watts"] * seconds
    if kind == "run":
        _one_time(columns)
    if "sm_limit" in columns and "joules" in columns:
        # What an occupier draws beside a kernel is not the kernel's.
        alone = columns["sm_limit"] != "occupier"
        columns["joules"] = np.where(alone, columns["joules"], np.nan)
    if "backend" in columns and "stack" not in columns:
        versions = columns.get("version", np.full(len(columns["backend"]), ""))
        pairs = zip(columns["backend"].tolist(), versions.tolist(), strict=True)
        columns["stack"] = np.array([f"{b}-{v}".strip("-") for b, v in pairs], np.str_)


def _one_time(columns: Columns) -> None:
    """Fills the time of rows that keep theirs apart: of less than the whole GPU.

    A product beside a copy has no time of its own; its slowdown is what is measured.
    """
    unknown = np.full(len(columns["gpu"]), np.nan)
    seconds, limited = (
        columns.get(name, unknown) for name in ("seconds", "limited_seconds")
    )
    own = np.isnan(seconds) & (columns["kind"] != "overlap")
    columns["seconds"] = np.where(own, limited, seconds)


def _complete_layout(columns: Columns, findings: Findings) -> None:
    """Fills GPU counts and degrees from each other and checks that they agree.

    gpus = tensor_parallel x data_parallel x pipeline_parallel
    """
    others = columns["data_parallel"] * columns["pipeline_parallel"]
    unknown = np.full(len(others), np.nan)
    tensor = columns.get("tensor_parallel", unknown)
    gpus = columns.get("gpus", unknown)
    with np.errstate(divide="ignore", invalid="ignore"):
        tensor = np.where(np.isnan(tensor), gpus / others, tensor)
        tensor = np.where(np.isnan(tensor), 1.0, tensor)
        gpus = np.where(np.isnan(gpus), tensor * others, gpus)
        separate = (
            tensor * others * columns["replicas"]
        )  # replicas on GPUs of their own
        odd = (tensor * others != gpus) & (separate != gpus)
    reason = "expected tensor_parallel x data_parallel x pipeline_parallel"
    findings.add_where(odd, "gpus", gpus, reason)
    columns["tensor_parallel"], columns["gpus"] = tensor, gpus


def check_watts(
    kind: str, columns: Columns, chip_watts: ChipWatts, findings: Findings
) -> None:
    """Checks every column that implies power against idle and TDP of the row's chip."""
    chips = columns["gpu"]
    gpus = columns["gpus"] if kind == "serving" else np.ones(len(chips))
    known = {name: chip_watts(name) for name in set(chips.tolist()) if name}
    limits = np.array(
        [known.get(name) or (np.nan, np.nan) for name in chips.tolist()]
    ).reshape(-1, 2)
    others = {"clocks_idle": "idle_watts", "loaded_idle": "loaded_idle_watts"}
    power = None if kind == "forward" else others.get(kind, "watts")
    bounds = (limits[:, 0], limits[:, 1])
    if power is not None and power in columns:
        values = columns[power]
        check_power(power, values, values / gpus, watts_units(gpus), bounds, findings)
    if kind == "forward" and "joules" in columns:
        joules, watts = columns["joules"], columns["watts"]
        check_power("joules", joules, watts, JOULES_UNITS, bounds, findings)
    if "joules_per_output_token" in columns:
        joules = columns["joules_per_output_token"]
        watts = joules * columns["output_tokens_per_second"] / gpus
        column = "joules_per_output_token"
        check_power(column, joules, watts, JOULES_UNITS, bounds, findings)


def note_disagreements(columns: Columns, findings: Findings, notes: list[str]) -> None:
    """Notes good rows whose power, energy, batch and limits contradict each other."""
    good, row_numbers = findings.good, findings.row_numbers
    if {"watts", "joules_per_output_token"} <= columns.keys():
        tokens_per_second = columns["output_tokens_per_second"]
        implied = columns["joules_per_output_token"] * tokens_per_second
        apart = np.abs(implied / columns["watts"] - 1.0) > DISAGREEMENT
        what = "watts and joules_per_output_token x output_tokens_per_second"
        _note_rows(good & apart, row_numbers, f"{what} differ by more than 20 %", notes)
    if "max_num_seqs" in columns:
        engines = columns["data_parallel"] * columns["pipeline_parallel"]
        limit = columns["max_num_seqs"] * engines * columns["replicas"]
        waiting = columns["concurrency"] > QUEUE * limit
        text = "more running requests than max_num_seqs allows (was a queue counted?)"
        _note_rows(good & waiting, row_numbers, text, notes)


def _note_rows(
    mask: np.ndarray, row_numbers: np.ndarray, text: str, notes: list[str]
) -> None:
    if mask.any():
        lines = ", ".join(str(line) for line in row_numbers[mask][:SHOWN])
        more = ", ..." if mask.sum() > SHOWN else ""
        notes.append(f"{text}: {int(mask.sum())} rows ({lines}{more}).")


def fill_energy(columns: Columns) -> None:
    """Fills watts and joules per token from each other: watts = J/token x tokens/s."""
    rate = columns["output_tokens_per_second"]
    unknown = np.full(len(rate), np.nan)
    watts = columns.get("watts", unknown)
    joules = columns.get("joules_per_output_token", unknown)
    columns["watts"] = np.where(np.isnan(watts), joules * rate, watts)
    columns["joules_per_output_token"] = np.where(
        np.isnan(joules), watts / rate, joules
    )
