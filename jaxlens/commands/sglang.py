"""SGLang's server for a deployment.

Source: SGLang documentation v0.5, 2025, "Server Arguments",
https://docs.sglang.io/advanced_features/server_arguments.html; limits on requests and chunk
are those of all replicas under attention data parallelism: SGLang v0.5, server_args.py, 2025,
https://github.com/sgl-project/sglang.
"""

import math
import shlex

from jaxlens.commands.settings import (
    Checkpoint,
    Settings,
    command_text,
    formats_remarks,
    servers_behind_a_balancer,
    settings,
    shared_groups,
)
from jaxlens.deployments import Deployment, Workload
from jaxlens.hardware import Chip, Stack
from jaxlens.memory import Memory

CONVERTED = ("fp8",)
KV = {"fp8": "fp8_e4m3", "bf16": "bfloat16", "fp16": "auto", "mxfp4": "fp4_e2m1"}
LEAST_SHARE, MOST_SHARE = 0.05, 0.97


def serve_command(
    checkpoint: Checkpoint,
    chip: Chip,
    stack: Stack,
    deployment: Deployment,
    workload: Workload,
    held: Memory,
) -> str:
    """Returns the command of SGLang's server, one option per line.

    Its share of memory is that of weights and KV cache alone: `held` says what else there
    is. Replicas that share experts are attention data parallel: ranks of one
    tensor-parallel group.
    """
    told = settings(checkpoint, chip, stack, deployment, workload)
    sharing = shared_groups(checkpoint, told)
    together = sharing if sharing > 1 else _plain_replicas(told)
    options = [
        *_parallel_options(told, sharing, together),
        *_format_options(checkpoint),
        # Counted over all replicas of the server; so is the chunk where they share ranks.
        f"--max-running-requests {told.sequences * together}",
        f"--chunked-prefill-size {told.chunk_tokens * sharing}",
        f"--context-length {told.longest_tokens}",
        f"--mem-fraction-static {_static_share(told, chip, held):g}",
        *([] if deployment.fused else ["--disable-cuda-graph"]),
    ]
    remarks = [
        *servers_behind_a_balancer(told.data // together),
        *formats_remarks(checkpoint, CONVERTED),
        *_remarks(checkpoint, told, deployment, together),
    ]
    words = ["python", "-m", "sglang.launch_server"]
    model = f"--model-path {shlex.quote(checkpoint.name)}"
    return "\n".join([*remarks, command_text([*words, model], options)])


def _plain_replicas(told: Settings) -> int:
    """Replicas that share nothing: one server drives those of one node."""
    fit = max(1, told.node_gpus // told.replica_gpus)
    return told.data if told.data <= fit else math.gcd(told.data, fit)


def _parallel_options(told: Settings, sharing: int, together: int) -> list[str]:
    options = [f"--tp-size {told.tensor * sharing}"]
    if told.pipeline > 1:
        options.append(f"--pp-size {told.pipeline}")
    if together > 1:
        options.append(f"--dp-size {together}")
    if sharing > 1:
        options.append("--enable-dp-attention")
    if told.expert > 1:
        options.append(f"--ep-size {told.expert}")
    nodes = _nodes(told, sharing)
    if nodes > 1:
        options.append(f'--nnodes {nodes} --node-rank "$NODE_RANK"')
        options.append('--dist-init-addr "$FIRST_NODE:50000"')
    return options


def _nodes(told: Settings, sharing: int) -> int:
    return math.ceil(told.replica_gpus * sharing / told.node_gpus)


def _format_options(checkpoint: Checkpoint) -> list[str]:
    options = []
    if checkpoint.weights in CONVERTED:
        options.append(f"--quantization {checkpoint.weights}")
    if checkpoint.kv in KV:
        options.append(f"--kv-cache-dtype {KV[checkpoint.kv]}")
    return options


def _static_share(told: Settings, chip: Chip, held: Memory) -> float:
    """Share of memory for weights and KV cache, rounded down to 1/1000."""
    rest = (float(held.activation_bytes) + float(held.overhead_bytes)) / float(
        chip.hbm_bytes
    )
    share = math.floor(1000.0 * (told.memory_share - rest)) / 1000.0
    return min(max(share, LEAST_SHARE), MOST_SHARE)


def _remarks(
    checkpoint: Checkpoint, told: Settings, deployment: Deployment, together: int
) -> list[str]:
    remarks = []
    if checkpoint.kv is not None and checkpoint.kv not in KV:
        remarks.append(
            f"# SGLang has no KV cache in {checkpoint.kv}: it keeps its default"
        )
    if deployment.sequence_parallel:
        remarks.append("# SGLang has no option for sequence parallelism of norms")
    if deployment.overlap:
        remarks.append(
            "# SGLang has no option for overlap of products with tensor-parallel "
            "collectives"
        )
    if _nodes(told, shared_groups(checkpoint, told)) > 1:
        remarks.append("# on every node, with its rank in NODE_RANK:")
    return remarks
