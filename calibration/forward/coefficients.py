"""Which coefficients forward passes may move, and those that only eager passes have.

Coefficients of `Chip` and `Stack` keep their names and priors; those of `EagerCosts` come with
priors of their own, shared by all chips under a stack.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.calibration.clock_curves import chip_voltage
from jaxlens.calibration.forward.prices import EagerCosts
from jaxlens.calibration.parameters import (
    Freedom,
    Parameters,
    Score,
    coefficients,
    parameters,
)
from jaxlens.hardware import Chip, Stack

RowScores = Float[Array, "row coefficient"]

CHIP = Freedom(chip=1.0)
SOFTWARE = Freedom(stack=1.0, pair=0.5)
FREEDOM: Mapping[str, Freedom] = {
    **{
        f"chip.{name}": CHIP
        for name in (
            "voltage_rise",
            "idle_watts",
            "busy_watts",
            "hbm_j_per_byte",
            "bf16_j_per_flop",
            "fp32_j_per_flop",
            "hbm_saturation",
        )
    },
    **{
        f"stack.{name}": SOFTWARE
        for name in (
            "gemm_flop_efficiency",
            "gemm_byte_efficiency",
            "gemm_half_rows",
            "gemm_half_columns",
            "gemm_half_depth",
            "attention_flop_efficiency",
            "attention_byte_efficiency",
            "attention_half_rows",
            "elementwise_byte_efficiency",
            "ramp_bytes",
            "softness",
            "kernel_seconds",
            "host_step_seconds",
            "gap_power",
        )
    },
    "stack.host_exposed": Freedom(stack=1.0),
}


@dataclass(frozen=True)
class Prior:
    """A coefficient of eager passes before any measurement."""

    value: float
    spread: float  # of the logarithm; of the log odds where it is a share
    unit: str
    share: bool = False


EAGER: Mapping[str, Prior] = {
    "host_launch_seconds": Prior(2e-5, 0.3, "s"),
    "launch_clocked": Prior(0.5, 0.5, "1", share=True),
    "fp32_reach": Prior(1.3, 0.2, "1"),
    "l2_saving": Prior(0.6, 0.4, "1", share=True),
    "l2_share": Prior(0.5, 0.5, "1"),
    "traffic": Prior(0.8, 0.3, "1"),
    "head_half": Prior(64.0, 0.7, "1"),
}

# Products with narrow heads and unfused scores run out of SMs before they run out of HBM:
# what they lose goes with the clock. A measured curve says more about idle power than a fit.
NARROWED: Mapping[str, tuple[float | None, float]] = {
    "stack.attention_byte_efficiency": (0.85, 0.05),
}
IDLE_SPREAD = 0.02  # where a chip has a measured idle curve


def forward_parameters(gpus: Sequence[str], stacks: Sequence[str]) -> Parameters:
    """Returns the parameters of rows on `gpus` under `stacks`, eager ones included."""
    known = parameters(gpus, stacks, FREEDOM)
    prior, spread = np.array(known.prior), np.array(known.spread)
    for name, (value, width) in NARROWED.items():
        column = known.coefficients.index(name)
        prior[:, column], spread[:, column] = value, width
    idle = known.coefficients.index("chip.idle_watts")
    curves = [chip_voltage(gpu) for gpu in gpus]
    measured = np.array([curve.flat_volts != 1.0 for curve in curves])
    spread[:, idle] = np.where(measured, IDLE_SPREAD, spread[:, idle])
    rise = known.coefficients.index("chip.voltage_rise")
    prior[:, rise] = [curve.rise for curve in curves]
    fixed = {
        **known.fixed,
        "eager.knee_hz": np.array([curve.knee_hz for curve in curves]),
        "eager.voltage_bend": np.array([curve.bend for curve in curves]),
    }
    widened = replace(known, prior=prior, spread=spread, fixed=fixed)
    return _with_eager(widened, list(map(str, stacks)))


def eager_coefficients(
    known: Parameters, u: RowScores
) -> tuple[Chip, Stack, EagerCosts]:
    """Returns chip, stack and eager costs of every row."""
    chip, stack = coefficients(known, u)
    values = {
        name: known.fixed[f"eager.{name}"] for name in ("knee_hz", "voltage_bend")
    }
    for name, prior in EAGER.items():
        column = known.coefficients.index(f"eager.{name}")
        values[name] = shifted(prior, prior.spread * u[:, column])
    return chip, stack, EagerCosts(**{k: jnp.asarray(v) for k, v in values.items()})


def shifted(prior: Prior, shift: Array) -> Array:
    """Returns the coefficient `shift` away from its prior, on its own scale."""
    if not prior.share:
        return prior.value * jnp.exp(shift)
    odds = prior.value / (1.0 - prior.value) * jnp.exp(shift)
    return odds / (1.0 + odds)


def _with_eager(known: Parameters, stacks: list[str]) -> Parameters:
    owners = dict.fromkeys(stacks)
    rows, width = len(stacks), len(known.coefficients)
    names = tuple(f"eager.{name}" for name in EAGER)
    scores = [
        Score(coefficient=name, owner=owner, weight=1.0)
        for name in names
        for owner in owners
    ]
    member = [[float(stack == score.owner) for stack in stacks] for score in scores]
    chosen = np.zeros((len(scores), width + len(names)))
    for row, score in enumerate(scores):
        chosen[row, width + names.index(score.coefficient)] = 1.0
    wide = np.pad(np.asarray(known.selector), ((0, 0), (0, len(names))))
    values = np.array([prior.value for prior in EAGER.values()])
    spreads = np.array([prior.spread for prior in EAGER.values()])
    return replace(
        known,
        scores=(*known.scores, *scores),
        coefficients=(*known.coefficients, *names),
        membership=np.concatenate([np.asarray(known.membership), member]),
        selector=np.concatenate([wide, chosen]),
        prior=np.concatenate([known.prior, np.tile(values, (rows, 1))], axis=1),
        spread=np.concatenate([known.spread, np.tile(spreads, (rows, 1))], axis=1),
    )
