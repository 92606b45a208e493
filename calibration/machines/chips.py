"""The chip of a run: where its facts come from, and the file that a fit makes of it."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlens.calibration.machines.coefficients import ENERGIES
from jaxlens.calibration.machines.fitting import MachineFit, short
from jaxlens.calibration.machines.runs import Run
from jaxlens.fitted_profiles import FittedValue, toml_text
from jaxlens.profile_files import (
    CHIPS,
    Entry,
    aliases,
    known_ids,
    normalised,
    read_entry,
)
from jaxlens.profile_values import Value, unit_of

INFORMED = 0.1  # share of the prior variance that a run takes from what it measured
TIME_ONLY = (
    "time only: no energy was measured; idle power, joules per FLOP and per byte, and all "
    "watts that follow from them are priors"
)
LEAST_SPREAD = 1e-3


def facts_of(run: Run, given: str | None = None) -> str:
    """Returns the id of the run's chip, or the file that describes it.

    Raises:
        ValueError: a chip that neither the catalogue nor a file beside the run knows.
    """
    if given is not None:
        return given
    name = normalised(run.gpu)
    name = aliases(CHIPS).get(name, name)
    if name in known_ids(CHIPS):
        return name
    beside = [path.with_name(f"{path.stem}.chip.toml") for path in run.paths]
    for path in beside:
        if path.is_file():
            return str(path)
    raise ValueError(
        f"{run.name}: expected a chip of the catalogue or its facts in "
        f"{beside[0].name} beside the run, got {run.gpu!r} and no such file; measure "
        "again, which writes it, or name a chip file: --gpu FILE.toml."
    )


def identifier(entry: Entry) -> str:
    """Returns the id of a chip as a file name can hold it.

    >>> re.sub("[^a-z0-9.]+", "-", "cpu: AMD EPYC, 2 threads".lower()).strip("-")
    'cpu-amd-epyc-2-threads'
    """
    return re.sub(r"[^a-z0-9.]+", "-", entry.id.lower()).strip("-")


def measured_names(fitted: MachineFit) -> tuple[str, ...]:
    """Returns the coefficients that the run says something about."""
    energy = fitted.has_energy
    return tuple(
        name
        for name, share in fitted.informed.items()
        if share > INFORMED and (energy or name not in ENERGIES)
    )


def measured_values(fitted: MachineFit) -> dict[str, FittedValue]:
    """Returns those coefficients, and the ones that one kind of row tells alone."""
    spreads = fitted.spreads
    together = {
        name: FittedValue(value=short(fitted.values[name]), sd=short(spreads[name]))
        for name in measured_names(fitted)
    }
    return together | fitted.apart


def chip_tables(fitted: MachineFit, entry: Entry, source: str) -> dict[str, Any]:
    """Returns the tables of a chip file: facts as they were, coefficients as measured."""
    found = measured_values(fitted)
    facts, coefficients = {}, {}
    for name, known in entry.values.items():
        full = f"chip.{name}"
        if known.spread is None:
            facts[name] = _entry(name, known)
        elif full in found:
            coefficients[name] = {
                "value": found[full].value,
                "unit": unit_of(name),
                "spread": max(LEAST_SPREAD, found[full].sd),
                "source": f"measured: {source}",
            }
        else:
            coefficients[name] = _entry(name, known)
    identity = {
        "id": identifier(entry),
        "name": entry.identity["name"],
        "vendor": entry.identity["vendor"],
        "architecture": entry.identity["architecture"],
        "aliases": [],
        "formats": list(entry.identity["formats"]),
    }
    tables: dict[str, Any] = {
        "identity": identity,
        "facts": facts,
        "coefficients": coefficients,
    }
    if entry.curves:
        tables["curves"] = {
            name: {
                **vars(curve),
                "clock_hz": [*curve.clock_hz],
                "values": [*curve.values],
            }
            for name, curve in entry.curves.items()
        }
    return tables


def save_chip(folder: Path, tables: Mapping[str, Any], remarks: Sequence[str]) -> Path:
    """Writes a chip file as a whole, `remarks` on top, and returns its path."""
    read_entry(CHIPS, tables)
    path = folder / f"{tables['identity']['id']}.toml"
    remarked = "".join(f"# {remark}\n" for remark in remarks)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(f"{remarked}\n{toml_text(tables)}", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(
            f"calibrate: expected a folder to write to, got {str(folder)!r} "
            f"({error.strerror}); choose another --out."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def _entry(name: str, known: Value) -> dict[str, Any]:
    entry: dict[str, Any] = {"value": known.value, "unit": unit_of(name)}
    if known.spread is not None:
        entry["spread"] = known.spread
    return entry | {"source": known.source}
