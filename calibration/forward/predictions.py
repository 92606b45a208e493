"""Seconds and joules of a table of forward passes, by fitted profiles."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.calibration.clock_curves import chip_voltage
from jaxlens.calibration.forward.coefficients import EAGER
from jaxlens.calibration.forward.prices import EagerCosts, price
from jaxlens.calibration.forward.rows import forward_rows, impossible
from jaxlens.calibration.measured_tables import Table
from jaxlens.profiles import load_profile, load_profile_card

PROVENANCE = "eager"  # where a profile keeps coefficients of eager passes


def predict_forward(
    table: Table, profile_for: str | Path | None = None
) -> dict[str, np.ndarray]:
    """Returns seconds and joules of every row; NaN for rows that no chip can have run.

    Args:
        table: Rows of the kind `forward`.
        profile_for: A fitted profile; by default the shipped one of each row's pair.
    """
    with jax.enable_x64(True):
        rows = forward_rows([table])
        pairs = list(zip(table["gpu"].tolist(), table["stack"].tolist(), strict=True))
        loaded = {pair: _coefficients(pair, profile_for) for pair in set(pairs)}
        chip, stack, eager = jax.tree.map(
            lambda *leaves: jnp.asarray(leaves, float), *[loaded[p] for p in pairs]
        )
        said = jax.jit(price)(rows, chip, stack, eager)
        seconds, joules = np.array(said.seconds), np.array(said.joules)
    broken = impossible(table)
    seconds[broken], joules[broken] = np.nan, np.nan
    return {"seconds": seconds, "joules": joules}


def _coefficients(pair: tuple[str, str], profile: str | Path | None):
    found = load_profile(*pair, profile=profile)
    card = load_profile_card(*pair, profile=profile)
    curve = chip_voltage(card.chip)
    values = {name: prior.value for name, prior in EAGER.items()}
    values |= {"knee_hz": curve.knee_hz, "voltage_bend": curve.bend}
    kept = dict(card.provenance.get(PROVENANCE, {}))
    rise = kept.pop("voltage_rise", curve.rise)
    values |= {name: float(value) for name, value in kept.items() if name in values}
    chip = jax.tree.map(float, found.chip)
    chip = type(chip)(**{**vars(chip), "voltage_rise": float(rise)})
    return chip, jax.tree.map(float, found.stack), EagerCosts(**values)
