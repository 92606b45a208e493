"""The commands that run a deployment: the server, and clock and power of its GPUs.

Source: vLLM documentation, "Engine Arguments", "Data Parallel Deployment" and "Expert
Parallel Deployment", v0.11, 2025, https://docs.vllm.ai; nvidia-smi manual, 2024,
https://docs.nvidia.com/deploy/nvidia-smi; ROCm SMI CLI manual, 2024,
https://rocm.docs.amd.com/projects/rocm_smi_lib.
"""

import math
import shlex
from dataclasses import dataclass

from jaxtyping import Array, Float

from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.hardware import Chip, Stack

Scalar = Float[Array, ""] | float
LENGTH_STEP = 256  # tokens; context limits are rounded up to it


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a server is asked to load."""

    name: str  # HuggingFace id or path
    routed: bool = False  # has experts
    max_context: int | None = None
    weights: str | None = None  # number format to convert to; None keeps the published
    kv: str | None = None


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
    words = ["vllm", "serve", shlex.quote(checkpoint.name)]
    options = [
        *_parallel_options(checkpoint, chip, deployment),
        *_format_options(checkpoint),
        _option("max-num-seqs", deployment.batch / deployment.data_parallel),
        _option("max-num-batched-tokens", _chunk_tokens(stack, deployment)),
        _option("max-model-len", _longest(checkpoint, workload)),
        f"--gpu-memory-utilization {float(stack.memory_share):g}",
    ]
    remarks = _remarks(checkpoint, deployment)
    return "\n".join([*remarks, " \\\n  ".join([" ".join(words), *options])])


def gpu_commands(vendor: str, chip: Chip, deployment: Deployment) -> list[str]:
    """Returns the lines that set clock and power limit, none for what is the default.

    They are for the GPUs of one node, numbered from 0, and need administrator rights.
    """
    gpus = math.prod(
        float(degree)
        for degree in (
            deployment.tensor_parallel,
            deployment.pipeline_parallel,
            deployment.data_parallel,
        )
    )
    numbers = [str(n) for n in range(round(min(gpus, float(chip.node_gpus))))]
    clock, cap = float(deployment.clock_hz), float(deployment.power_cap_watts)
    lines = []
    if clock < float(chip.max_hz):
        megahertz = round(clock / 1e6)
        lines.append(
            f"sudo rocm-smi -d {' '.join(numbers)} --setperfdeterminism {megahertz}"
            if vendor == "AMD"
            else f"sudo nvidia-smi -i {','.join(numbers)} -lgc {megahertz},{megahertz}"
        )
    if cap < float(chip.tdp_watts):
        watts = math.floor(cap)
        lines.append(
            f"sudo rocm-smi -d {' '.join(numbers)} --setpoweroverdrive {watts}"
            if vendor == "AMD"
            else f"sudo nvidia-smi -i {','.join(numbers)} -pl {watts}"
        )
    return lines


def _parallel_options(
    checkpoint: Checkpoint, chip: Chip, deployment: Deployment
) -> list[str]:
    node = float(chip.node_gpus)
    replica = deployment.tensor_parallel * deployment.pipeline_parallel
    shared = _shared_replicas(checkpoint, deployment)
    options = [_option("tensor-parallel-size", deployment.tensor_parallel)]
    if deployment.pipeline_parallel > 1.0:
        options.append(_option("pipeline-parallel-size", deployment.pipeline_parallel))
    if shared > 1.0:
        options.append(_option("data-parallel-size", shared))
    if deployment.expert_parallel > 1.0:
        options.append("--enable-expert-parallel")
    if replica > node:
        options.append("--distributed-executor-backend ray")
    elif shared * replica > node:
        options.append("--data-parallel-backend ray")
    return options


def _shared_replicas(checkpoint: Checkpoint, deployment: Deployment) -> float:
    """Replicas that one server drives.

    vLLM spreads experts over all replicas of a server, expert parallel or not: replicas
    that share no experts are servers of their own.
    """
    apart = checkpoint.routed and deployment.expert_parallel == 1.0
    return 1.0 if apart else float(deployment.data_parallel)


def _remarks(checkpoint: Checkpoint, deployment: Deployment) -> list[str]:
    remarks = []
    servers = float(deployment.data_parallel) / _shared_replicas(checkpoint, deployment)
    if servers > 1.0:
        remarks.append(f"# {servers:.0f} servers behind a load balancer, each with:")
    if checkpoint.weights not in (None, "fp8"):
        remarks.append(f"# needs a checkpoint with {checkpoint.weights} weights")
    return remarks


def _format_options(checkpoint: Checkpoint) -> list[str]:
    options = []
    if checkpoint.weights == "fp8":  # the one format that vLLM converts to on loading
        options.append("--quantization fp8")
    if checkpoint.kv is not None:
        options.append(f"--kv-cache-dtype {shlex.quote(checkpoint.kv)}")
    return options


def _chunk_tokens(stack: Stack, deployment: Deployment) -> float:
    return min(float(stack.chunk_tokens), float(deployment.chunk_tokens), UNLIMITED)


def _longest(checkpoint: Checkpoint, workload: Workload) -> float:
    spread = 1.0 + 3.0 * float(workload.output_tokens_cv)
    tokens = float(workload.prompt_tokens) + float(workload.output_tokens) * spread
    rounded = math.ceil(tokens / LENGTH_STEP) * LENGTH_STEP
    return min(rounded, checkpoint.max_context or rounded)


def _option(name: str, value: Scalar) -> str:
    return f"--{name} {round(float(value))}"
