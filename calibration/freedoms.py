"""Which coefficients serving runs may move, and how strongly chips and stacks share them.

Chip physics is common to all tables of a chip. Stack coefficients are common to all chips that
run the stack, up to a deviation of each pair: kernels are tuned per architecture. What is not
listed keeps its prior: steady-state runs cannot tell it apart (the Gauss-Newton spectrum of a
fit says so).
"""

from collections.abc import Mapping

from jaxlens.calibration.parameters import Freedom

CHIP = Freedom(chip=1.0)
SOFTWARE = Freedom(stack=1.0, pair=0.5)

SERVING: Mapping[str, Freedom] = {
    **{
        f"chip.{name}": CHIP
        for name in (
            "idle_watts",
            "busy_watts",
            "hbm_j_per_byte",
            "bf16_j_per_flop",
            "fp8_j_per_flop",
            "fp4_j_per_flop",
            "link_watts",
            "cap_share",
        )
    },
    **{
        f"stack.{name}": SOFTWARE
        for name in (
            "gemm_flop_efficiency",
            "gemm_byte_efficiency",
            "gemm_half_rows",
            "attention_flop_efficiency",
            "attention_byte_efficiency",
            "experts_flop_efficiency",
            "experts_byte_efficiency",
            "experts_half_rows",
            "experts_seconds",
            "experts_wait",
            "block_rows",
            "block_expert_flop",
            "block_watts",
            "ramp_bytes",
            "softness",
            "kernel_seconds",
            "sampling_seconds_per_logit",
            "sampling_watts",
            "host_step_seconds",
            "host_sequence_seconds",
            "host_prompt_seconds",
            "host_gpu_seconds",
            "host_exposed",
            "collective_seconds",
            "collective_hop_seconds",
            "collective_byte_efficiency",
            "gap_power",
            "padding_power",
        )
    },
}
