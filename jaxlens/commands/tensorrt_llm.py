"""`trtllm-serve` for a deployment, and the YAML file of options that it reads.

Source: NVIDIA TensorRT-LLM documentation v1.0 to v1.2, 2025, "trtllm-serve",
https://nvidia.github.io/TensorRT-LLM/commands/trtllm-serve; "Parallelism in TensorRT LLM",
https://nvidia.github.io/TensorRT-LLM/features/parallel-strategy.html.
"""

import math
import shlex
from typing import Any

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

KV = {"fp8": "fp8", "nvfp4": "nvfp4", "bf16": "auto", "fp16": "auto"}
FILE = "trtllm.yaml"
LEAST_SHARE, MOST_SHARE = 0.05, 0.97


def serve_command(
    checkpoint: Checkpoint,
    chip: Chip,
    stack: Stack,
    deployment: Deployment,
    workload: Workload,
    held: Memory,
) -> str:
    """Returns the lines that write the file of options and start `trtllm-serve`.

    Its share of memory is that of the KV cache in what weights, activations and overhead
    leave: `held` says how much that is.
    """
    told = settings(checkpoint, chip, stack, deployment, workload)
    sharing = shared_groups(checkpoint, told)
    spread = sharing > 1 and told.tensor == 1  # attention data parallel
    ranks = sharing if spread else told.tensor
    share = _kv_share(told, chip, held)
    experts = min(told.expert, ranks)
    options = [
        f"--tp_size {ranks}",
        *([f"--pp_size {told.pipeline}"] if told.pipeline > 1 else []),
        *([f"--ep_size {experts}"] if checkpoint.routed else []),
        f"--max_batch_size {told.sequences}",
        f"--max_num_tokens {told.chunk_tokens}",
        f"--max_seq_len {told.longest_tokens}",
        f"--kv_cache_free_gpu_memory_fraction {share:g}",
        "--enable_chunked_prefill",
        f"--extra_llm_api_options {FILE}",
    ]
    nodes = math.ceil(ranks * told.pipeline / told.node_gpus)
    words = ["trtllm-serve", shlex.quote(checkpoint.name)]
    if nodes > 1:
        words = [*_launch(ranks * told.pipeline, nodes), *words]
    remarks = [
        *servers_behind_a_balancer(told.data // (sharing if spread else 1)),
        *formats_remarks(checkpoint, ()),
        *_remarks(checkpoint, told, deployment, sharing, spread),
    ]
    return "\n".join(
        [
            *remarks,
            f"cat > {FILE} <<'END'",
            *_yaml(_options(checkpoint, told, deployment, share, spread)),
            "END",
            command_text(words, options),
        ]
    )


def _launch(ranks: int, nodes: int) -> list[str]:
    """Several nodes are started by MPI, here under Slurm."""
    return [f"srun --mpi=pmix -N {nodes} -n {ranks}", "trtllm-llmapi-launch"]


def _options(
    checkpoint: Checkpoint,
    told: Settings,
    deployment: Deployment,
    share: float,
    spread: bool,
) -> dict[str, Any]:
    cache: dict[str, Any] = {"free_gpu_memory_fraction": share}
    if checkpoint.kv in KV:
        cache["dtype"] = KV[checkpoint.kv]
    graphs = {"enable_padding": True, "max_batch_size": told.sequences}
    return {
        "enable_attention_dp": spread,
        "kv_cache_config": cache,
        "cuda_graph_config": graphs if deployment.fused else None,
    }


def _yaml(options: dict[str, Any], indent: str = "") -> list[str]:
    words = {True: "true", False: "false", None: "null"}
    lines = []
    for name, value in options.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_yaml(value, f"{indent}  ")]
        else:
            plain = isinstance(value, bool) or value is None
            lines.append(f"{indent}{name}: {words[value] if plain else value}")
    return lines


def _kv_share(told: Settings, chip: Chip, held: Memory) -> float:
    """Share of free memory for the KV cache, rounded down to 1/1000."""
    taken = sum(
        float(part)
        for part in (held.weights_bytes, held.activation_bytes, held.overhead_bytes)
    )
    total = float(chip.hbm_bytes)
    free = max(total - taken, 1.0)
    share = math.floor(1000.0 * (total * told.memory_share - taken) / free) / 1000.0
    return min(max(share, LEAST_SHARE), MOST_SHARE)


def _remarks(
    checkpoint: Checkpoint,
    told: Settings,
    deployment: Deployment,
    sharing: int,
    spread: bool,
) -> list[str]:
    remarks = []
    if sharing > 1 and not spread:
        remarks.append(
            f"# TensorRT-LLM cannot share experts among {sharing} replicas of {told.tensor} "
            f"tensor-parallel ranks each: here every replica holds all of them"
        )
    if checkpoint.kv is not None and checkpoint.kv not in KV:
        remarks.append(
            f"# TensorRT-LLM has no KV cache in {checkpoint.kv}: it keeps its default"
        )
    if deployment.sequence_parallel or deployment.overlap:
        remarks.append(
            "# TensorRT-LLM has no option for sequence parallelism or staged overlap"
        )
    return remarks
