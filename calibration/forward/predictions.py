"""Seconds and joules of a table of forward passes, by fitted profiles."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.calibration.forward.prices import price
from jaxlens.calibration.forward.rows import forward_rows, impossible
from jaxlens.calibration.measured_tables import Table
from jaxlens.profiles import load_profile


def predict_forward(
    table: Table, profile_for: str | Path | None = None
) -> dict[str, np.ndarray]:
    """Returns seconds and joules of every row, and which rows no chip can have run.

    Predictions of such rows are NaN.

    Args:
        table: Rows of the kind `forward`.
        profile_for: A fitted profile; by default the shipped one of each row's pair.
    """
    with jax.enable_x64(True):
        rows = forward_rows([table])
        pairs = list(zip(table["gpu"].tolist(), table["stack"].tolist(), strict=True))
        loaded = {p: load_profile(*p, profile=profile_for) for p in set(pairs)}
        per_row = jax.tree.map(
            lambda *leaves: jnp.asarray(leaves, float), *[loaded[p] for p in pairs]
        )
        said = jax.jit(price)(rows, per_row.chip, per_row.stack)
        seconds, joules = np.array(said.seconds), np.array(said.joules)
    broken = impossible(table, rows)
    seconds[broken], joules[broken] = np.nan, np.nan
    return {"seconds": seconds, "joules": joules, "impossible": broken}
