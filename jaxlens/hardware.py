"""What a chip can do and what a serving stack makes of it, as traced coefficients.

Two layers, because they are shared differently: *chip* numbers are physics and hold for
every measurement on that chip; *stack* numbers belong to one engine and version. Each field
is a scalar, so that all of them can be batched and differentiated; names, sources, priors
and units stay in the TOML files that `catalog` reads.
"""

from jaxtyping import Array, Float

from jaxlens.pytrees import pytree

Scalar = Float[Array, ""] | float


@pytree
class Chip:
    """One GPU and the network around it. Facts first, fitted coefficients after."""

    # Facts: datasheets.
    sms: Scalar  # streaming multiprocessors (compute units on AMD)
    peak_fp32_flop_per_s: Scalar  # outside the matrix units
    peak_tf32_flop_per_s: Scalar  # dense, at `boost_hz`, like all peaks
    peak_bf16_flop_per_s: Scalar
    peak_fp8_flop_per_s: Scalar  # the bf16 peak where the chip has no fp8 unit
    peak_fp4_flop_per_s: Scalar  # the bf16 peak where the chip has no fp4 unit
    boost_hz: Scalar  # SM clock at which the peaks hold
    min_hz: Scalar  # lowest and highest clock that can be locked, and their step
    max_hz: Scalar
    step_hz: Scalar
    hbm_bytes: Scalar
    hbm_bytes_per_s: Scalar
    l2_bytes: Scalar
    tdp_watts: Scalar
    link_bytes_per_s: Scalar  # to GPUs of the node, per GPU and direction
    node_gpus: Scalar  # GPUs joined by that link
    network_bytes_per_s: Scalar  # between nodes, per GPU and direction

    # Coefficients: defaults from published scales until calibration replaces them.
    knee_hz: Scalar  # voltage is flat below this clock
    voltage_rise: Scalar  # V(boost) / V(flat) - 1
    voltage_bend: Scalar  # share of that rise that goes with the square of the clock
    idle_watts: Scalar  # memory on, no kernel, voltage at its floor
    busy_watts: Scalar  # more while kernels run, at boost clock and voltage
    hbm_j_per_byte: Scalar
    fp32_j_per_flop: Scalar  # at boost voltage, like all energies per flop
    tf32_j_per_flop: Scalar
    bf16_j_per_flop: Scalar
    fp8_j_per_flop: Scalar
    fp4_j_per_flop: Scalar
    link_watts: Scalar  # more while a collective runs on all links, above `busy_watts`
    cap_share: Scalar  # of a power limit that a limited GPU draws on average
    hbm_saturation: Scalar  # share of SMs x clock that saturates HBM
    overlap_contention: Scalar  # part of two kernels side by side that does not overlap
    network_seconds: Scalar  # startup of one message between nodes


@pytree
class Stack:
    """One serving engine and version on one kind of chip. All fields are coefficients."""

    # Reached share of the chip's peak for large sizes, by kind of kernel.
    gemm_flop_efficiency: Scalar
    gemm_byte_efficiency: Scalar
    attention_flop_efficiency: Scalar
    attention_byte_efficiency: Scalar
    experts_flop_efficiency: Scalar
    experts_byte_efficiency: Scalar
    scan_flop_efficiency: Scalar  # state-space mixers
    scan_byte_efficiency: Scalar
    elementwise_byte_efficiency: Scalar
    # Saturation: size at which an efficiency has fallen to one half.
    gemm_half_rows: Scalar  # m
    gemm_half_columns: Scalar  # n
    gemm_half_depth: Scalar  # k
    attention_half_rows: Scalar  # query tokens x heads that share a KV head
    attention_half_columns: Scalar  # keys and head width
    experts_half_rows: Scalar  # rows per active expert: tile floor
    block_rows: Scalar  # the same for block-scaled fp8, on top (tiles of 128 rows)
    ramp_bytes: Scalar  # traffic of a kernel at which HBM reaches half of its rate
    softness: Scalar  # of the roofline: 0 perfect overlap (max), 1 none (sum)
    # Fixed times.
    kernel_seconds: Scalar  # launch and drain of one kernel
    attention_seconds: (
        Scalar  # ... and what attention takes on top: splits and their sum
    )
    passes: Scalar  # kernels that one element-wise step of the model takes
    softmax_passes: Scalar  # ... and a softmax that is not fused
    experts_seconds: Scalar  # routing, sorting and gathering of one expert layer
    experts_wait: Scalar  # share of the busiest rank's excess load that others wait for
    block_expert_flop: Scalar  # block-scaled fp8: padding per local expert and layer
    sampling_seconds_per_logit: Scalar
    host_step_seconds: Scalar  # CPU time of one engine step ...
    host_sequence_seconds: Scalar  # ... per running sequence
    host_prompt_seconds: Scalar  # ... per prompt that a step carries
    host_gpu_seconds: Scalar  # ... per GPU that is driven
    host_exposed: (
        Scalar  # 0: the slower of host and GPU hides the other; 1: they add up
    )
    # Collectives.
    collective_seconds: Scalar  # startup of one collective
    collective_hop_seconds: Scalar  # ... and of each further rank, in a ring
    collective_byte_efficiency: Scalar
    collective_sm_bytes_per_s: Scalar  # that one SM can move
    # Power of the software's making.
    gap_power: Scalar  # share of `busy_watts` that is drawn while no kernel runs
    padding_power: Scalar  # energy of padded rows of a tile, as a share of real ones
    block_watts: Scalar  # above busy, during that padding
    sampling_watts: Scalar  # above busy while sampling
    # Eager execution: unused where kernels are fused and captured in graphs.
    host_launch_seconds: Scalar  # CPU time of one kernel launch
    launch_clocked: Scalar  # share of `kernel_seconds` that goes with 1 / clock
    fp32_reach: Scalar  # efficiency of fp32 products over that of others
    l2_saving: Scalar  # share of the traffic of small tensors that L2 takes
    l2_share: Scalar  # of L2 that one tensor may fill
    elementwise_traffic: Scalar  # of kernels over what their passes count
    attention_half_width: Scalar  # head width at which products reach half their rate
    # Memory and scheduling.
    memory_share: Scalar  # of HBM that the engine may use
    overhead_bytes: Scalar  # CUDA context, graphs, communication buffers
    chunk_tokens: Scalar  # token budget of one step
