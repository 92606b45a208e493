"""What a server is told, in whole numbers, whatever the engine calls it."""

import math
from dataclasses import dataclass

from jaxtyping import Array, Float

from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.hardware import Chip, Stack
from jaxlens.shapes import Experts, ModelShape

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


def checkpoint(
    name: str, shape: ModelShape, weights: str | None = None, kv: str | None = None
) -> Checkpoint:
    """Returns the checkpoint `name` of a model of that shape."""
    return Checkpoint(
        name=name,
        routed=any(isinstance(feed, Experts) for feed in shape.feeds),
        max_context=shape.max_context,
        weights=weights,
        kv=kv,
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A deployment in whole numbers."""

    tensor: int
    expert: int
    pipeline: int
    data: int
    node_gpus: int
    sequences: int  # in flight, of one replica
    chunk_tokens: int
    longest_tokens: int
    memory_share: float  # of GPU memory: weights, KV cache, activations and overhead

    @property
    def replica_gpus(self) -> int:
        """GPUs of one replica."""
        return self.tensor * self.pipeline


def settings(
    checkpoint: Checkpoint,
    chip: Chip,
    stack: Stack,
    deployment: Deployment,
    workload: Workload,
) -> Settings:
    """Returns what any server is told.

    The context limit leaves room for outputs three standard deviations above the mean.
    """
    data = round(float(deployment.data_parallel))
    chunk = min(float(stack.chunk_tokens), float(deployment.chunk_tokens), UNLIMITED)
    return Settings(
        tensor=round(float(deployment.tensor_parallel)),
        expert=round(float(deployment.expert_parallel)),
        pipeline=round(float(deployment.pipeline_parallel)),
        data=data,
        node_gpus=round(float(chip.node_gpus)),
        sequences=max(1, round(float(deployment.batch) / data)),
        chunk_tokens=round(chunk),
        longest_tokens=round(_longest(checkpoint, workload)),
        memory_share=float(stack.memory_share),
    )


def servers_behind_a_balancer(servers: int) -> list[str]:
    """Returns the remark that a command is run several times, if it is."""
    if servers == 1:
        return []
    return [f"# {servers} servers behind a load balancer, each with:"]


def formats_remarks(checkpoint: Checkpoint, converted: tuple[str, ...]) -> list[str]:
    """Returns the remark that a server cannot convert weights on loading, if it cannot."""
    if checkpoint.weights is None or checkpoint.weights in converted:
        return []
    return [f"# needs a checkpoint with {checkpoint.weights} weights"]


def command_text(words: list[str], options: list[str]) -> str:
    """Returns a command with one option a line."""
    return " \\\n  ".join([" ".join(words), *options])


def shared_groups(checkpoint: Checkpoint, told: Settings) -> int:
    """Returns how many replicas share experts: they step together, in one server.

    Experts split over no more than the tensor-parallel ranks stay within a replica.
    """
    return max(1, told.expert // told.tensor) if checkpoint.routed else 1


def _longest(checkpoint: Checkpoint, workload: Workload) -> float:
    spread = 1.0 + 3.0 * float(workload.output_tokens_cv)
    tokens = float(workload.prompt_tokens) + float(workload.output_tokens) * spread
    rounded = math.ceil(tokens / LENGTH_STEP) * LENGTH_STEP
    return min(rounded, checkpoint.max_context or rounded)
