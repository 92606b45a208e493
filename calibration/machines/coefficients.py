"""Which coefficients a run may move: physics of the chip, and how torch's kernels fill it."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from jaxlens.calibration.parameters import Freedom, Parameters, parameters
from jaxlens.profiles import load_profile_card
from jaxlens.requests import PROCESSOR as PROCESSOR_VENDOR

CHIP = Freedom(chip=1.0)
SOFTWARE = Freedom(stack=1.0)
FREEDOM: Mapping[str, Freedom] = {
    **{
        f"chip.{name}": CHIP
        for name in (
            "knee_hz",
            "voltage_rise",
            "idle_watts",
            "busy_watts",
            "hbm_j_per_byte",
            "bf16_j_per_flop",
            "fp32_j_per_flop",
            "tf32_j_per_flop",
            "fp8_j_per_flop",
            "fp4_j_per_flop",
            "hbm_saturation",
            "link_watts",
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
            "attention_half_columns",
            "attention_seconds",
            "experts_flop_efficiency",
            "experts_byte_efficiency",
            "experts_half_rows",
            "experts_seconds",
            "elementwise_byte_efficiency",
            "passes",
            "softmax_passes",
            "ramp_bytes",
            "softness",
            "kernel_seconds",
            "collective_seconds",
            "collective_hop_seconds",
            "collective_byte_efficiency",
            "gap_power",
            "padding_power",
        )
    },
}
ENERGIES = frozenset(
    {
        "chip.knee_hz",
        "chip.voltage_rise",
        "chip.idle_watts",
        "chip.busy_watts",
        "chip.hbm_j_per_byte",
        "chip.bf16_j_per_flop",
        "chip.fp32_j_per_flop",
        "chip.tf32_j_per_flop",
        "chip.fp8_j_per_flop",
        "chip.fp4_j_per_flop",
        "chip.link_watts",
        "stack.gap_power",
        "stack.padding_power",
    }
)
SATURATION = "chip.hbm_saturation"  # shows on a part of the SMs or at a low clock alone
# A processor: its peaks are rates that products reached, tiles are small, and loads wait for
# arithmetic (torch 2.13 on one thread of an AMD EPYC, 2026).
PROCESSOR: Mapping[str, tuple[float, float]] = {  # value, spread of the logarithm
    "stack.gemm_flop_efficiency": (0.97, 0.02),
    "stack.gemm_byte_efficiency": (0.4, 0.5),
    "stack.gemm_half_rows": (1.0, 1.0),
    "stack.gemm_half_columns": (4.0, 1.0),
    "stack.gemm_half_depth": (8.0, 1.0),
    "stack.attention_flop_efficiency": (0.6, 0.4),
    "stack.attention_byte_efficiency": (0.3, 0.7),
    "stack.attention_half_rows": (0.5, 1.0),
    "stack.attention_half_columns": (64.0, 1.0),
    "stack.experts_flop_efficiency": (0.9, 0.1),
    "stack.experts_byte_efficiency": (0.4, 0.5),
    "stack.experts_half_rows": (1.0, 1.0),
    "stack.softness": (0.8, 0.5),
}
# Bytes that are in flight while memory answers: its latency times its bandwidth.
LATENCY_SECONDS = 3e-7


def machine_parameters(gpu: str, stack: str, rows: int, *, limited: bool) -> Parameters:
    """Returns the parameters of `rows` rows of one chip under one stack.

    Args:
        gpu: Id of a chip, or the file that describes it.
        stack: Id of a stack.
        rows: How many there are.
        limited: Whether any had less than all SMs or than the full clock.
    """
    freedom = {k: v for k, v in FREEDOM.items() if limited or k != SATURATION}
    known = parameters([gpu] * rows, [stack] * rows, freedom)
    prior, spread = np.array(known.prior), np.array(known.spread)
    ramp = LATENCY_SECONDS * np.asarray(known.fixed["chip.hbm_bytes_per_s"])
    prior[:, known.coefficients.index("stack.ramp_bytes")] = ramp
    vendor = load_profile_card(gpu, stack, shipped=False).vendor
    own = PROCESSOR if vendor == PROCESSOR_VENDOR else {}
    for name, (value, width) in own.items():
        column = known.coefficients.index(name)
        prior[:, column], spread[:, column] = value, width
    return replace(known, prior=prior, spread=spread)
