"""The coefficients of one chip under one serving stack, with where they come from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxlens.fitted_profiles import (
    FittedProfile,
    FittedValue,
    read_fitted_profile,
    shipped_profile,
)
from jaxlens.hardware import Chip, Stack
from jaxlens.profile_files import (
    CHIPS,
    STACKS,
    Curve,
    Entry,
    Source,
    known_ids,
    read_entry,
)
from jaxlens.pytrees import pytree

DEFAULT_STACK = "vllm-0.11"

T = TypeVar("T", Chip, Stack)


@pytree
class Profile:
    """One kind of chip and the software that drives it."""

    chip: Chip
    stack: Stack


@dataclasses.dataclass(frozen=True)
class Coefficient:
    """One number of a profile and how far to trust it."""

    value: float
    unit: str
    origin: str  # "datasheet", "prior" or "fitted"
    spread: float | None  # standard deviation of the logarithm; None for datasheets
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ProfileCard:
    """What a profile is made of: sources, uncertainty and warnings."""

    chip: str  # id
    stack: str  # id
    chip_name: str
    stack_name: str
    vendor: str
    architecture: str
    formats: tuple[str, ...]  # of bf16, fp8, fp4: units that the chip really has
    engine: str
    version: str
    fusion: str  # "fused" or "eager"
    coefficients: Mapping[str, Coefficient]  # by "chip.<field>" or "stack.<field>"
    curves: Mapping[str, Curve]  # measured, by quantity
    scatter: Mapping[str, float]  # log residuals that no coefficient explains
    covariance_names: tuple[str, ...]
    covariance: np.ndarray  # of the logarithms of `covariance_names`
    fitted: bool
    fitted_on: tuple[str, ...]
    rows: int
    created: str
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Reading:
    chip: Entry
    stack: Entry
    fitted: FittedProfile | None


def known_chips() -> tuple[str, ...]:
    """Returns the ids of the chips that come with the package."""
    return known_ids(CHIPS)


def known_stacks() -> tuple[str, ...]:
    """Returns the ids of the stacks that come with the package."""
    return known_ids(STACKS)


def load_chip(source: Source) -> Chip:
    """Returns a chip by id, by alias, from a TOML file or from its tables.

    Defaults, without what a calibration found; `load_profile` applies that.

    >>> load_chip("NVIDIA H100 80GB HBM3").tdp_watts
    700.0
    """
    return _build(Chip, read_entry(CHIPS, source), {})


def load_stack(source: Source) -> Stack:
    """Returns a stack by id, by alias, from a TOML file or from its tables.

    >>> load_stack("vllm").memory_share
    0.9
    """
    return _build(Stack, read_entry(STACKS, source), {})


def load_profile(
    gpu: Source,
    stack: Source = DEFAULT_STACK,
    *,
    profile: str | Path | None = None,
    shipped: bool = True,
) -> Profile:
    """Returns chip and stack, with the fitted values where there are any.

    Args:
        gpu: Id, alias, TOML file or tables of a chip.
        stack: The same of a stack.
        profile: A fitted profile of that pair, or a folder of them as `jaxlens calibrate`
            writes it; by default the one that comes with the package, if it has one.
        shipped: False for the priors, without the fit that comes with the package.
    """
    reading = _read(gpu, stack, profile, shipped)
    fitted = reading.fitted
    return Profile(
        chip=_build(Chip, reading.chip, fitted.chip_values if fitted else {}),
        stack=_build(Stack, reading.stack, fitted.stack_values if fitted else {}),
    )


def load_profile_card(
    gpu: Source,
    stack: Source = DEFAULT_STACK,
    profile: str | Path | None = None,
    *,
    shipped: bool = True,
) -> ProfileCard:
    """Returns where each value of `load_profile` with these arguments comes from."""
    reading = _read(gpu, stack, profile, shipped)
    chip, software, fitted = reading.chip, reading.stack, reading.fitted
    coefficients = {
        **_coefficients("chip", chip, fitted.chip_values if fitted else {}, fitted),
        **_coefficients(
            "stack", software, fitted.stack_values if fitted else {}, fitted
        ),
    }
    return ProfileCard(
        chip=chip.id,
        stack=software.id,
        chip_name=chip.identity["name"],
        stack_name=software.identity["name"],
        vendor=chip.identity["vendor"],
        architecture=chip.identity["architecture"],
        formats=tuple(chip.identity["formats"]),
        engine=software.identity["engine"],
        version=software.identity["version"],
        fusion=software.identity["fusion"],
        coefficients=coefficients,
        curves=chip.curves,
        scatter=fitted.scatter if fitted else {},
        covariance_names=fitted.covariance_names if fitted else (),
        covariance=fitted.covariance_matrix() if fitted else np.zeros((0, 0)),
        fitted=fitted is not None and fitted.rows > 0,
        fitted_on=fitted.fitted_on if fitted else (),
        rows=fitted.rows if fitted else 0,
        created=fitted.created if fitted else "",
        provenance=fitted.provenance if fitted else {},
        notes=_notes(reading),
    )


def supported_clocks(chip: Chip) -> np.ndarray:
    """Returns the SM clocks that can be locked, in hertz, ascending."""
    low, high, step = float(chip.min_hz), float(chip.max_hz), float(chip.step_hz)
    return low + step * np.arange(int((high - low) / step + 1e-6) + 1)


def _read(
    gpu: Source, stack: Source, profile: str | Path | None, shipped: bool
) -> _Reading:
    chip, software = read_entry(CHIPS, gpu), read_entry(STACKS, stack)
    if profile is None:
        path = shipped_profile(chip.id, software.id)
        from_package = chip.shipped and software.shipped and path.is_file()
        if not (shipped and from_package):
            return _Reading(chip, software, None)
    else:
        path = Path(profile).expanduser()
        if path.is_dir():
            path = path / f"{chip.id}.{software.id}.toml"
    fitted = read_fitted_profile(path)
    if (fitted.chip, fitted.stack) != (chip.id, software.id):
        raise ValueError(
            f"{path.name} [identity]: expected a fit of {chip.id} with {software.id}, "
            f"got one of {fitted.chip} with {fitted.stack}; "
            f"ask for that pair or fit this one."
        )
    return _Reading(chip, software, fitted)


def _build(cls: type[T], entry: Entry, fitted: Mapping[str, FittedValue]) -> T:
    values = {name: value.value for name, value in entry.values.items()}
    values |= {name: item.value for name, item in fitted.items()}
    return cls(**values)


def _coefficients(
    prefix: str,
    entry: Entry,
    values: Mapping[str, FittedValue],
    fitted: FittedProfile | None,
) -> dict[str, Coefficient]:
    found = {}
    for name, default in entry.values.items():
        origin = "datasheet" if default.spread is None else "prior"
        value, spread, source = default.value, default.spread, default.source
        if fitted and name in values:
            value, spread = values[name].value, values[name].sd
            origin = "fitted" if fitted.rows else "prior"
            evidence = ", ".join(fitted.fitted_on)
            source = f"fitted on {evidence}" if fitted.rows else evidence
            source += f", {fitted.created}"
        found[f"{prefix}.{name}"] = Coefficient(
            value, default.unit, origin, spread, source
        )
    return found


def _notes(reading: _Reading) -> tuple[str, ...]:
    chip, software, fitted = reading.chip.id, reading.stack.id, reading.fitted
    notes = []
    if fitted is not None and not fitted.rows:
        evidence = ", ".join(fitted.fitted_on)
        notes.append(f"no runs of {chip} under {software}: {evidence}")
    if fitted is None or not fitted.chip_values:
        notes.append(f"chip prior: no calibration of {chip} under {software}")
    if fitted is None or not fitted.stack_values:
        notes.append(f"stack prior: no calibration of {software} on {chip}")
    known = fitted.chip_values if fitted is not None and fitted.rows else {}
    if "link_watts" not in known:
        notes.append("communication power is a prior: link_watts is not calibrated")
    return tuple(notes)
