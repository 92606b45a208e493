"""Which coefficients forward passes may move: those of eager execution among them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxlens.calibration.parameters import Freedom, Parameters, parameters
from jaxlens.profiles import load_profile_card

CHIP = Freedom(chip=1.0)
SOFTWARE = Freedom(stack=1.0, pair=0.5)
SHARED = Freedom(stack=1.0)  # by all chips
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
    **{
        f"stack.{name}": SHARED
        for name in (
            "host_exposed",
            "host_launch_seconds",
            "launch_clocked",
            "fp32_reach",
            "l2_saving",
            "l2_share",
            "elementwise_traffic",
            "attention_half_width",
        )
    },
}

# Products with narrow heads and unfused scores run out of SMs before they run out of HBM:
# what they lose goes with the clock. A measured curve says more about idle power than a fit.
NARROWED: Mapping[str, tuple[float, float]] = {
    "stack.attention_byte_efficiency": (0.85, 0.05),
}
IDLE_SPREAD = 0.02  # where a chip has a measured idle curve


def forward_parameters(gpus: Sequence[str], stacks: Sequence[str]) -> Parameters:
    """Returns the parameters of rows on `gpus` under `stacks`."""
    known = parameters(gpus, stacks, FREEDOM)
    prior, spread = np.array(known.prior), np.array(known.spread)
    for name, (value, width) in NARROWED.items():
        column = known.coefficients.index(name)
        prior[:, column], spread[:, column] = value, width
    idle = known.coefficients.index("chip.idle_watts")
    cards = {gpu: load_profile_card(gpu, shipped=False) for gpu in dict.fromkeys(gpus)}
    measured = np.array(["voltage" in cards[gpu].curves for gpu in gpus])
    spread[:, idle] = np.where(measured, IDLE_SPREAD, spread[:, idle])
    return replace(known, prior=prior, spread=spread)
