"""Formulas evaluated on many rows, each with the coefficients of its group."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from jaxlens.calibration.kernels.formulas import Family

AT_ONCE = 65_536


def log_predictions(
    family: Family,
    values: Mapping[str, ArrayLike],
    features: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Returns the formula of every row; `values` are arrays of one number per row."""
    rows = len(next(iter(features.values())))
    found = [np.empty(0)]
    with jax.enable_x64(True):
        for first in range(0, rows, AT_ONCE):
            part = slice(first, first + AT_ONCE)
            own = {name: jnp.asarray(value)[part] for name, value in values.items()}
            inputs = {name: jnp.asarray(x[part]) for name, x in features.items()}
            found.append(np.asarray(family.log_target(own, inputs)))
    return np.concatenate(found)
