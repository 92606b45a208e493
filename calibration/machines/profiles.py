"""The fitted profile of a run: chip and torch's kernels, with what is known of its errors."""

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlens.calibration.machines.chips import measured_names
from jaxlens.calibration.machines.fitting import STACK, MachineFit, short
from jaxlens.calibration.machines.runs import Run
from jaxlens.fitted_profiles import FittedProfile, FittedValue
from jaxlens.intervals import NORMAL_80

SHARED = ("driver", "cuda", "version", "device_name", "clock_setting", "ranks")


def profile(
    fitted: MachineFit, run: Run, chip: str, errors: Mapping[str, Any]
) -> FittedProfile:
    """Returns the profile of `chip` under torch's kernels.

    Args:
        fitted: The fit.
        run: What it was fitted to.
        chip: Id of the chip.
        errors: By family, to keep with it.
    """
    measured, own = measured_names(fitted), fitted.problem.own_priors
    # What was fitted beside a prior of the fit's own is wrong without it.
    names = tuple(name for name in fitted.informed if name in measured or name in own)
    covariance = fitted.log_covariance(names)
    deviations = np.sqrt(np.diag(covariance))
    kept = fitted.apart | {
        name: FittedValue(value=short(fitted.values[name]), sd=short(sd))
        for name, sd in zip(names, deviations, strict=True)
    }

    def layer(prefix: str) -> dict[str, FittedValue]:
        return {k[len(prefix) :]: v for k, v in kept.items() if k.startswith(prefix)}

    return FittedProfile(
        chip=chip,
        stack=STACK,
        created=datetime.date.today().isoformat(),
        fitted_on=tuple(path.name for path in run.paths),
        rows=fitted.problem.fitted_rows,
        chip_values=layer("chip."),
        stack_values=layer("stack."),
        scatter=_scatter(fitted),
        covariance_names=names,
        covariance=tuple(covariance.ravel().tolist()),
        provenance={**provenance(run), "errors": _flat(errors)},
    )


def provenance(run: Run) -> dict[str, Any]:
    """Returns where the rows come from: files, device, software, clocks and dates."""
    files = [
        f"{path.name} sha256 {digest[:16]}"
        for path, digest in zip(run.paths, run.sha256, strict=True)
    ]
    dates = sorted(str(row["measured_at"]) for row in run.rows if "measured_at" in row)
    found: dict[str, Any] = {"tables": files, "gpu": run.gpu}
    if dates:
        found["measured_from"], found["measured_to"] = dates[0], dates[-1]
    for name in SHARED:
        values = dict.fromkeys(str(row[name]) for row in run.rows if name in row)
        if values:
            found[name] = ", ".join(values)
    clocks = [float(row["sm_clock_hz"]) for row in run.rows if "sm_clock_hz" in row]
    if clocks:
        found["sm_clock_hz"] = [min(clocks), max(clocks)]
    return found


def _scatter(fitted: MachineFit) -> dict[str, float]:
    """Standard deviation that makes 80 % intervals cover 80 % of cases left out."""
    chosen = fitted.problem.weights > 0.0
    left_out = np.where(chosen, fitted.left_out, np.nan)
    sizes = np.abs(np.log(left_out / fitted.problem.measured))
    found = {}
    for name, column in zip(("latency", "energy"), sizes.T, strict=True):
        known = column[np.isfinite(column)]
        if len(known):
            found[name] = short(np.quantile(known, 0.8) / NORMAL_80)
    return found


def _flat(errors: Mapping[str, Any]) -> dict[str, Any]:
    """`family, target, scheme MAPE` to error, in one level that a TOML line holds."""
    return {
        f"{family}, {target}, {scheme} MAPE": short(part[target][scheme])
        for family, part in errors.items()
        for target in ("time", "energy")
        for scheme in ("in_sample", "held_out")
        if part[target].get(scheme) is not None
    }
