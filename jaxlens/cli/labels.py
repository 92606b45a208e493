"""What the inputs of a prediction are called in words."""

LABELS = {
    "deployment.batch": "batch",
    "deployment.clock_hz": "SM clock",
    "deployment.power_cap_watts": "power cap",
    "deployment.communication_sms": "SMs for communication",
    "deployment.chunk_tokens": "tokens per step (chunk budget)",
    "deployment.stages": "overlap stages",
    "workload.prompt_tokens": "prompt length",
    "workload.output_tokens": "output length",
    "workload.output_tokens_cv": "spread of output lengths",
    "chip.sms": "SMs",
    "chip.boost_hz": "boost clock (where peaks hold)",
    "chip.max_hz": "highest clock",
    "chip.hbm_bytes_per_s": "HBM bandwidth",
    "chip.tdp_watts": "TDP",
    "chip.link_bytes_per_s": "link bandwidth",
    "chip.node_gpus": "GPUs of a node",
    "chip.network_bytes_per_s": "network bandwidth",
    "chip.idle_watts": "idle power",
    "chip.busy_watts": "busy power",
    "chip.hbm_j_per_byte": "energy of an HBM byte",
    "chip.link_watts": "power of communication",
    "chip.knee_hz": "clock at which voltage rises",
    "chip.voltage_rise": "rise of voltage to boost clock",
    "chip.cap_share": "share of the cap that is drawn",
    "stack.host_step_seconds": "host time of a step",
    "stack.host_sequence_seconds": "host time of a sequence",
    "stack.host_gpu_seconds": "host time of a GPU",
    "stack.host_exposed": "exposed share of host time",
    "stack.kernel_seconds": "time to launch a kernel",
    "stack.softness": "softness of the roofline",
    "stack.gap_power": "busy power in launch gaps",
    "stack.padding_power": "energy of padded rows",
    "stack.chunk_tokens": "the stack's chunk budget",
    "stack.ramp_bytes": "bytes to reach full HBM rate",
    "stack.collective_seconds": "startup of a collective",
    "stack.collective_hop_seconds": "startup of a further rank",
    "stack.sampling_watts": "power of sampling",
    "stack.experts_seconds": "fixed time of an expert layer",
}
UNITS = ("_hz", "_watts", "_seconds", "_bytes", "_flop_per_s", "_bytes_per_s")


def label(name: str) -> str:
    """Returns a dotted input in words.

    >>> label("chip.bf16_j_per_flop")
    'energy of a bf16 FLOP'
    """
    if name in LABELS:
        return LABELS[name]
    short = name.partition(".")[2]
    if short.startswith("peak_"):
        unit = short.removeprefix("peak_").removesuffix("_flop_per_s")
        return f"{unit} peak"
    if short.endswith("_j_per_flop"):
        return f"energy of a {short.removesuffix('_j_per_flop')} FLOP"
    for unit in UNITS:
        short = short.removesuffix(unit)
    words = short.replace("_", " ")
    return words.replace("flop efficiency", "FLOP efficiency").replace(
        "byte efficiency", "bandwidth efficiency"
    )
