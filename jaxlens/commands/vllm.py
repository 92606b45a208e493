"""`vllm serve` for a deployment.

Source: vLLM documentation v0.11, 2025, "Engine Arguments", "Data Parallel Deployment" and
"Expert Parallel Deployment", https://docs.vllm.ai/en/v0.11.2/cli/serve.
"""

import json
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

CONVERTED = ("fp8",)  # formats that it converts weights to on loading
KV = {"fp8": "fp8", "bf16": "bfloat16", "fp16": "auto"}


def serve_command(
    checkpoint: Checkpoint,
    chip: Chip,
    stack: Stack,
    deployment: Deployment,
    workload: Workload,
) -> str:
    """Returns the `vllm serve` command of a deployment, one option per line.

    The context limit leaves room for outputs three standard deviations above the mean.
    """
    told = settings(checkpoint, chip, stack, deployment, workload)
    together = _replicas_of_a_server(checkpoint, told)
    options = [
        *_parallel_options(checkpoint, told, together),
        *_format_options(checkpoint),
        f"--max-num-seqs {told.sequences}",
        f"--max-num-batched-tokens {told.chunk_tokens}",
        f"--max-model-len {told.longest_tokens}",
        f"--gpu-memory-utilization {told.memory_share:g}",
        *_program_options(deployment),
    ]
    remarks = [
        *servers_behind_a_balancer(told.data // together),
        *formats_remarks(checkpoint, CONVERTED),
        *_remarks(checkpoint, told, deployment),
    ]
    words = ["vllm", "serve", shlex.quote(checkpoint.name)]
    return "\n".join([*remarks, command_text(words, options)])


def _replicas_of_a_server(checkpoint: Checkpoint, told: Settings) -> int:
    """Replicas that one server drives.

    vLLM spreads experts over all replicas of a server, expert parallel or not: replicas
    that share no experts are servers of their own.
    """
    return shared_groups(checkpoint, told) if checkpoint.routed else told.data


def _parallel_options(
    checkpoint: Checkpoint, told: Settings, together: int
) -> list[str]:
    options = [f"--tensor-parallel-size {told.tensor}"]
    if told.pipeline > 1:
        options.append(f"--pipeline-parallel-size {told.pipeline}")
    if together > 1:
        options.append(f"--data-parallel-size {together}")
    if told.expert > 1:
        options.append("--enable-expert-parallel")
    if told.replica_gpus > told.node_gpus:
        options.append("--distributed-executor-backend ray")
    elif together * told.replica_gpus > told.node_gpus:
        options.append("--data-parallel-backend ray")
    return options


def _format_options(checkpoint: Checkpoint) -> list[str]:
    options = []
    if checkpoint.weights in CONVERTED:
        options.append(f"--quantization {checkpoint.weights}")
    if checkpoint.kv in KV:
        options.append(f"--kv-cache-dtype {KV[checkpoint.kv]}")
    return options


def _program_options(deployment: Deployment) -> list[str]:
    """What changes the program: eager kernels, sequence parallelism, overlap."""
    options = [] if deployment.fused else ["--enforce-eager"]
    passes = {}
    if deployment.sequence_parallel or deployment.overlap:
        passes["enable_sequence_parallelism"] = True
    if deployment.overlap:
        passes["enable_async_tp"] = True
    if passes:
        config = json.dumps({"pass_config": passes})
        options.append(f"--compilation-config {shlex.quote(config)}")
    return options


def _remarks(
    checkpoint: Checkpoint, told: Settings, deployment: Deployment
) -> list[str]:
    remarks = []
    if 1 < told.expert < told.tensor:
        remarks.append(
            f"# vLLM spreads experts over all {told.tensor} tensor-parallel ranks: "
            f"expert parallel {told.expert} becomes {told.tensor}"
        )
    if checkpoint.kv is not None and checkpoint.kv not in KV:
        remarks.append(
            f"# vLLM has no KV cache in {checkpoint.kv}: it keeps its default"
        )
    if deployment.overlap:
        remarks.append("# vLLM chooses stages and SMs of the overlap itself")
    return remarks
