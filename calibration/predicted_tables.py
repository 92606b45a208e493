"""What coefficients say of every row of a measured table, of whatever kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.run_chips import chip_source
from jaxlens.calibration.serving_rows import predict_rows, serving_rows
from jaxlens.intervals import SCATTER, deviation
from jaxlens.profiles import Profile, load_profile, load_profile_card, load_stack

Pair = tuple[str | Path, str]  # chip, by id or by file, and stack
Predictions = Mapping[str, Any]  # arrays by quantity, NaN where nothing is said; notes
# Kinds that formulas fitted to kernels cover ...
KERNELS = ("gemm", "attention_prefill", "attention_decode", "moe", "collectives")
# ... and those that only the prices of predictions do.
PRICED = ("copy", "elementwise", "sm_share", "overlap", "loaded_idle", "run")


def predict_table(table: Table, profile: str | Path | None = None) -> Predictions:
    """Returns what the shipped coefficients, or `profile`, say of every row."""
    if table.kind == "serving":
        return predict_serving(table, profile)
    if _is_priced(table, profile):
        from jaxlens.calibration.operation_predictions import predict_operations

        return predict_operations(table, profile)
    if table.kind == "forward":
        from jaxlens.calibration.forward.validation import predict_forward

        return predict_forward(table, profile)
    if table.kind.startswith("clocks"):
        from jaxlens.calibration.clock_curves import clock_curve_prediction

        return clock_curve_prediction(table)
    if table.kind == "powercap":
        from jaxlens.calibration.powercaps import predict_powercaps

        return predict_powercaps(table)
    from jaxlens.calibration.kernels import load_kernel_fits
    from jaxlens.calibration.kernels import predict_table as predict_kernels

    fits = None if profile is None else load_kernel_fits(folder=profile)
    own = {gpu: chip_source(table.source, gpu) for gpu in set(table["gpu"].tolist())}
    own = {gpu: source for gpu, source in own.items() if isinstance(source, Path)}
    return _trusted(table, predict_kernels(table, fits, own))


def _is_priced(table: Table, profile: str | Path | None) -> bool:
    """Whether rows are priced as predictions price them, not by formulas of their kind.

    Formulas are fitted to chips of the catalogue and to eager passes; what `jaxlens calibrate`
    makes of a machine are prices.
    """
    if table.kind in PRICED or table.kind.startswith("clock_"):
        return True
    if table.kind in ("alltoall", "clocks_voltage", "powercap"):
        return False
    from jaxlens.calibration import operation_predictions as operations

    formulas = profile is not None and not operations.is_of_machine(profile)
    if operations.uncatalogued(table):
        return table.kind not in KERNELS or not formulas
    if table.kind == "forward" and operations.of_torch(table):
        return True
    return table.kind != "clocks_idle" and operations.is_of_machine(profile)


def _trusted(table: Table, said: Predictions) -> Predictions:
    """Leaves out the energy of launches too short for their power to be their own."""
    from jaxlens.calibration.kernels import trustworthy_power

    joules = said.get("joules")
    if joules is None or not table.has("watts"):
        return said
    trusted = trustworthy_power(table.kind)(table.columns)
    return {**said, "joules": np.where(trusted, np.asarray(joules, float), np.nan)}


def predict_serving(table: Table, profile: str | Path | None = None) -> Predictions:
    """Returns energy and latency of serving runs, each under the profile of its pair."""
    sources = {
        gpu: chip_source(table.source, gpu) for gpu in set(table["gpu"].tolist())
    }
    pairs = [
        _pair(sources[gpu], stack, profile)
        for gpu, stack in zip(
            table["gpu"].tolist(), table["stack"].tolist(), strict=True
        )
    ]
    profiles = {pair: _profile(pair, profile) for pair in dict.fromkeys(pairs)}
    cards = {pair: load_profile_card(*pair, profile) for pair in profiles}
    with jax.enable_x64(True):
        stacks = {name: load_stack(name) for name in dict.fromkeys(table["stack"])}
        rows = serving_rows(table, stacks)
        per_row: Profile = jax.tree.map(
            lambda *leaves: jnp.asarray(leaves, float), *[profiles[p] for p in pairs]
        )
        said = jax.jit(predict_rows)(rows, per_row.chip, per_row.stack)
        return {
            "joules_per_output_token": np.asarray(said.joules_per_output_token),
            "latency_seconds": np.asarray(said.seconds_per_step),
            "watts": np.asarray(said.watts),
            "deviations": {
                name: np.array([deviation(cards[pair], name) for pair in pairs])
                for name in SCATTER.values()
            },
        }


def _pair(gpu: str | Path, stack: str, profile: str | Path | None) -> Pair:
    if profile is not None or isinstance(gpu, Path):
        return gpu, stack
    card = load_profile_card(gpu, stack, shipped=False)
    return card.chip, card.stack


def _profile(pair: Pair, profile: str | Path | None) -> Profile:
    return load_profile(*pair, profile=profile)
