"""Energy and speed under a power cap, relative to the uncapped run of the same workload.

Two numbers describe a workload whose architecture nobody published: the share a of its time
that goes with 1 / clock, and the share s of its uncapped power P_0 that switches with V^2 f.
The cap sets the clock of the step (`power.capped_slowdown`), and with slowdown x

    tokens/s = uncapped / (1 + a (1/x - 1)),    J/token = uncapped (cap / P_0) (1 + a (1/x - 1))

Both shares are fitted on the other caps of the same series, so each row is predicted without
itself; a series of one capped row has the priors.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.calibration.measured_tables import Table
from jaxlens.hardware import Chip
from jaxlens.power import Draw, capped_slowdown, static_watts, switching
from jaxlens.profiles import load_chip

Scalar = Float[Array, ""] | float

CLOCKED, CLOCKED_SPREAD = 0.3, 0.3  # prior of a
SWITCHING, SWITCHING_SPREAD = 0.6, 0.3  # prior of s
NOISE = 0.04  # log error of two numbers for a workload
GRID = np.linspace(0.02, 0.98, 49)
BINDING = 0.995  # of the uncapped power: caps above do not bind


@dataclass(frozen=True)
class CapPrediction:
    """What is said of every row; NaN where a cap does not bind."""

    joules_per_output_token: np.ndarray
    output_tokens_per_second: np.ndarray


def predict_powercaps(table: Table) -> dict[str, np.ndarray]:
    """Returns J/token and tokens/s of rows whose cap binds, from the uncapped rows."""
    said = capped(table)
    return {
        "joules_per_output_token": said.joules_per_output_token,
        "output_tokens_per_second": said.output_tokens_per_second,
    }


def capped(table: Table) -> CapPrediction:
    """Returns the prediction of every row, series by series."""
    joules, speed = np.full((2, len(table)), np.nan)
    keys = list(
        zip(
            *(table[n].tolist() for n in ("gpu", "stack", "model", "concurrency")),
            strict=True,
        )
    )
    for key in dict.fromkeys(keys):
        rows = np.array([i for i, other in enumerate(keys) if other == key])
        rows = rows[np.argsort(table["power_cap_watts"][rows])]
        reference = rows[-1]
        watts = float(table["watts"][reference])
        bound = rows[table["power_cap_watts"][rows] < BINDING * watts]
        if not len(bound):
            continue
        stretch = _stretches(
            load_chip(key[0]),
            table["power_cap_watts"][bound],
            watts,
            _clock(table, reference),
        )
        share = table["power_cap_watts"][bound] / watts
        energy = table["joules_per_output_token"]
        measured = np.log(energy[bound] / energy[reference] / share)
        picked = _picked(np.log(stretch), measured)
        chosen = stretch.reshape(-1, len(bound))[picked, np.arange(len(bound))]
        joules[bound] = energy[reference] * share * chosen
        speed[bound] = table["output_tokens_per_second"][reference] / chosen
    return CapPrediction(joules, speed)


def stretch(
    clocked: Scalar,
    switched: Scalar,
    cap_watts: Scalar,
    watts: Scalar,
    clock_hz: Scalar,
    chip: Chip,
) -> Scalar:
    """Returns the time of a step under a cap over that of the uncapped one."""
    full = switching(clock_hz, chip) * clock_hz / chip.boost_hz
    static = jnp.minimum(static_watts(clock_hz, chip), (1.0 - switched) * watts)
    busy = replace(chip, busy_watts=switched * watts / full, cap_share=1.0)
    step = Draw(
        seconds=1.0,
        clocked_seconds=clocked,
        active_seconds=1.0,
        flop_joules=0.0,
        memory_joules=(1.0 - switched) * watts - static,
        link_joules=0.0,
    )
    slowdown = capped_slowdown(step, clock_hz, cap_watts, busy)
    return 1.0 + clocked * (1.0 / slowdown - 1.0)


def _clock(table: Table, row: int) -> float:
    if table.has("sm_clock_hz") and np.isfinite(table["sm_clock_hz"][row]):
        return float(table["sm_clock_hz"][row])
    return float(load_chip(str(table["gpu"][row])).boost_hz)


def _stretches(
    chip: Chip, caps: np.ndarray, watts: float, clock_hz: float
) -> np.ndarray:
    """Stretch by a, s and cap, on the grid of both shares."""
    with jax.enable_x64(True):
        over_caps = jax.vmap(stretch, (None, None, 0, None, None, None))
        over_both = jax.vmap(
            jax.vmap(over_caps, (None, 0, None, None, None, None)),
            (0, None, None, None, None, None),
        )
        floats = jax.tree.map(jnp.asarray, chip)
        found = jax.jit(over_both)(
            jnp.asarray(GRID),
            jnp.asarray(GRID),
            jnp.asarray(caps),
            jnp.asarray(watts),
            jnp.asarray(clock_hz),
            floats,
        )
        return np.asarray(found)


def _picked(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """For each cap, the grid point that suits the other caps best, priors included."""
    a, s = np.meshgrid(GRID, GRID, indexing="ij")
    prior = ((a - CLOCKED) / CLOCKED_SPREAD) ** 2
    prior = prior + ((s - SWITCHING) / SWITCHING_SPREAD) ** 2
    misses = ((predicted - measured) / NOISE) ** 2
    others = misses.sum(-1, keepdims=True) - misses + prior[..., None]
    return np.argmin(others.reshape(-1, len(measured)), axis=0)
