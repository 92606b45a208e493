"""Seconds and joules of one kernel: a smooth roofline with saturating efficiencies.

    t = max_w(F (1 + m0/m)(1 + n0/n)(1 + k0/k) / (peak eff c s),
              (B + B0) / (bandwidth eff g(c s))) + t_launch

for F FLOPs on a matrix unit and B bytes of HBM traffic, on a share s of the SMs at a share c
of the boost clock. w is the part of the two engines' work that does not overlap; g saturates
below one, since part of the SMs suffices to saturate HBM. Energy counts the same work:

    E = e_flop (V/V0)^2 F_executed + e_hbm B

Source: S. Williams et al., "Roofline", CACM 52(4), 2009 (hard form).
"""

from dataclasses import replace

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.eager import unfused
from jaxlens.hardware import Chip, Stack
from jaxlens.precisions import Precision
from jaxlens.pytrees import pytree, static
from jaxlens.smooth import smooth_max, smooth_min
from jaxlens.works import Work

Scalar = Float[Array, ""] | float

HBM_SOFTNESS = 0.02


@pytree
class Machine:
    """A chip and its stack, at one clock and with a share of the SMs."""

    chip: Chip
    stack: Stack
    clock_share: Scalar  # SM clock / boost clock
    sm_share: Scalar
    fused: bool = static(default=True)


@pytree
class Limits:
    """Efficiencies and half-sizes of one kind of kernel; half-sizes may be zero."""

    flop_efficiency: Scalar
    byte_efficiency: Scalar
    half_rows: Scalar = 0.0
    half_columns: Scalar = 0.0
    half_depth: Scalar = 0.0
    block_rows: Scalar = 0.0  # more rows, if weights are block-scaled
    launch_seconds: Scalar = 0.0  # beyond `kernel_seconds`


@pytree
class KernelCost:
    """What one launch of a kernel takes."""

    seconds: Scalar
    clocked_seconds: Scalar  # the part that goes with 1 / clock
    launch_seconds: Scalar  # the part in which nothing is computed
    flop_joules: Scalar  # at boost voltage
    hbm_joules: Scalar
    kv_joules: Scalar


def limits(role: str, stack: Stack) -> Limits:
    """Returns what a stack reaches on kernels of `role`."""
    if role == "gemm":
        return Limits(
            flop_efficiency=stack.gemm_flop_efficiency,
            byte_efficiency=stack.gemm_byte_efficiency,
            half_rows=stack.gemm_half_rows,
            half_columns=stack.gemm_half_columns,
            half_depth=stack.gemm_half_depth,
        )
    if role == "attention":
        return Limits(
            flop_efficiency=stack.attention_flop_efficiency,
            byte_efficiency=stack.attention_byte_efficiency,
            half_rows=stack.attention_half_rows,
            half_columns=stack.attention_half_columns,
            launch_seconds=stack.attention_seconds,
        )
    if role == "experts":
        return Limits(
            flop_efficiency=stack.experts_flop_efficiency,
            byte_efficiency=stack.experts_byte_efficiency,
            half_rows=stack.experts_half_rows,
            block_rows=stack.block_rows,
        )
    if role == "scan":
        return Limits(
            flop_efficiency=stack.scan_flop_efficiency,
            byte_efficiency=stack.scan_byte_efficiency,
        )
    return Limits(
        flop_efficiency=1.0, byte_efficiency=stack.elementwise_byte_efficiency
    )


def kernel(work: Work, machine: Machine) -> KernelCost:
    """Returns the cost of `work`; scalar in, scalar out."""
    stack = machine.stack
    rate = getattr(stack, work.rate) if work.rate else 0.0
    repeats = getattr(stack, work.repeat) if work.repeat else 1.0
    if not machine.fused:
        elementwise, attention = (
            float(work.role == role) for role in ("elementwise", "attention")
        )
        work = unfused(work, machine.chip, stack, elementwise, attention)
    within = limits(work.role, stack)
    if work.role == "elementwise" and not work.rate:
        moved = _traffic(work, within, repeats, machine)
        return replace(moved, seconds=moved.seconds + moved.launch_seconds)
    return price(work, within, rate, repeats, machine)


def price(
    work: Work, limits: Limits, rate: Scalar, repeats: Scalar, machine: Machine
) -> KernelCost:
    """Returns the cost of `work` within `limits`; element-wise, so arrays do as well.

    Args:
        work: FLOPs, bytes and shape of the product.
        limits: Efficiencies of its kind.
        rate: Seconds per visit (sampling), 0 for others.
        repeats: Launches that the kernel stands for, each with its traffic.
        machine: Chip, stack, clock and SM share.
    """
    chip, stack = machine.chip, machine.stack
    moved = _traffic(work, limits, repeats, machine)
    executed = work.flop * _padding(work, limits)
    # Factors of all kernels of a kind first: they are computed once.
    pace = seconds_per_flop(work.mix, chip) / limits.flop_efficiency
    pace = pace * (1.0 / (machine.clock_share * machine.sm_share))
    visiting = work.visits * rate
    compute_seconds = executed * pace + visiting
    charged = work.flop + (executed - work.flop) * stack.padding_power
    flop_joules = charged * joules_per_flop(work.mix, chip)
    body = smooth_max(compute_seconds, moved.seconds, stack.softness)
    launch_seconds = moved.launch_seconds + limits.launch_seconds
    return replace(
        moved,
        seconds=body + launch_seconds,
        launch_seconds=launch_seconds,
        clocked_seconds=_part(compute_seconds, moved.seconds, body, stack.softness),
        flop_joules=flop_joules + visiting * stack.sampling_watts,
    )


def seconds_per_flop(mix: Precision, chip: Chip) -> Scalar:
    """Returns the mean time of a FLOP of `mix` at the datasheet peaks."""
    return (
        mix.fp32_share / chip.peak_fp32_flop_per_s
        + mix.tf32_share / chip.peak_tf32_flop_per_s
        + mix.bf16_share / chip.peak_bf16_flop_per_s
        + mix.fp8_share / chip.peak_fp8_flop_per_s
        + mix.fp4_share / chip.peak_fp4_flop_per_s
    )


def joules_per_flop(mix: Precision, chip: Chip) -> Scalar:
    """Returns the mean energy of a FLOP of `mix` at boost voltage."""
    return (
        mix.fp32_share * chip.fp32_j_per_flop
        + mix.tf32_share * chip.tf32_j_per_flop
        + mix.bf16_share * chip.bf16_j_per_flop
        + mix.fp8_share * chip.fp8_j_per_flop
        + mix.fp4_share * chip.fp4_j_per_flop
    )


def _padding(work: Work, limits: Limits) -> Scalar:
    """Executed over useful FLOPs: (m + m0)(n + n0)(k + k0) / (m n k)."""
    half_rows = limits.half_rows + limits.block_rows * work.block_scaled
    return (
        (1.0 + half_rows / work.rows)
        * (1.0 + limits.half_columns / work.columns)
        * (1.0 + limits.half_depth / work.depth)
    )


def _traffic(
    work: Work, limits: Limits, repeats: Scalar, machine: Machine
) -> KernelCost:
    """What the traffic of `work` takes, without the launch in its seconds."""
    chip, stack = machine.chip, machine.stack
    driven = machine.sm_share * machine.clock_share / chip.hbm_saturation
    reach = smooth_min(1.0, driven, HBM_SOFTNESS)
    pace = (1.0 / (chip.hbm_bytes_per_s * limits.byte_efficiency)) * (1.0 / reach)
    hbm_bytes = work.hbm_bytes * repeats
    moved = hbm_bytes + work.kv_bytes + stack.ramp_bytes * repeats
    return KernelCost(
        seconds=moved * pace,
        clocked_seconds=0.0,
        launch_seconds=stack.kernel_seconds * repeats,
        flop_joules=0.0,
        hbm_joules=hbm_bytes * chip.hbm_j_per_byte,
        kv_joules=work.kv_bytes * chip.hbm_j_per_byte,
    )


def _part(a: Scalar, b: Scalar, largest: Scalar, softness: Scalar) -> Scalar:
    """The part of max_w(a, b) that goes with a, by its elasticity: a d max / d a."""
    # The floor matters at a hard tie and where there is no work at all.
    root = elementary.maximum(2.0 * largest - a - b, 1e-15)
    return 0.5 * a * (root + a - b + 2.0 * softness * b) / root
