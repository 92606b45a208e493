"""Which layouts of a model over GPUs an engine accepts, and what is wrong with others."""

from collections.abc import Iterable

from jaxlens.deployments import Deployment
from jaxlens.hardware import Chip
from jaxlens.shapes import Attention, Experts, FeedForward, Mamba, ModelShape


def check_layout(
    shape: ModelShape, chip: Chip, deployment: Deployment, *, network: bool = True
) -> list[str]:
    """Returns what keeps an engine from laying a model out so; empty if nothing does.

    Args:
        shape: The model.
        chip: Its node size counts.
        deployment: Whole degrees of parallelism and the batch, as plain numbers.
        network: Whether replicas may span nodes.
    """
    tp, ep, pp, dp = (
        round(float(degree))
        for degree in (
            deployment.tensor_parallel,
            deployment.expert_parallel,
            deployment.pipeline_parallel,
            deployment.data_parallel,
        )
    )
    return [
        *_tensor_problems(shape, tp),
        *_expert_problems(shape, tp, ep, dp),
        *_pipeline_problems(shape, pp, dp, float(deployment.batch)),
        *([] if network else _node_problems(chip, tp, ep, pp)),
    ]


def tensor_degrees(shape: ModelShape, most: int = 64) -> tuple[int, ...]:
    """Returns the tensor-parallel degrees up to `most` that divide the model's heads."""
    return tuple(tp for tp in range(1, most + 1) if not _split_heads(shape, tp))


def expert_degrees(shape: ModelShape, tp: int, dp: int) -> tuple[int, ...]:
    """Returns the expert-parallel degrees that fit `tp` x `dp` ranks."""
    ranks = range(1, tp * dp + 1)
    return tuple(ep for ep in ranks if not _split_experts(shape, tp, ep, dp))


def _tensor_problems(shape: ModelShape, tp: int) -> list[str]:
    problem = _split_heads(shape, tp)
    if not problem:
        return []
    return [f"tp: expected {problem}, got {tp}; {_choose(tensor_degrees(shape))}."]


def _split_heads(shape: ModelShape, tp: int) -> str:
    """What `tp` should be, if it is not."""
    for mixer in shape.mixers:
        kind = "state-space" if isinstance(mixer, Mamba) else "attention"
        if mixer.heads % tp:
            return f"a divisor of {mixer.heads} {kind} heads"
        if isinstance(mixer, Attention) and mixer.kv_heads % tp and tp % mixer.kv_heads:
            return f"a divisor or a multiple of {mixer.kv_heads} KV heads"
    for feed in shape.feeds:
        width = feed.width if isinstance(feed, FeedForward) else feed.shared_width
        if width % tp:
            return f"a divisor of the feed-forward width {width}"
    return ""


def _expert_problems(shape: ModelShape, tp: int, ep: int, dp: int) -> list[str]:
    problem = _split_experts(shape, tp, ep, dp)
    if not problem:
        return []
    choice = _choose(expert_degrees(shape, tp, dp))
    return [f"ep: expected {problem}, got {ep}; {choice}."]


def _split_experts(shape: ModelShape, tp: int, ep: int, dp: int) -> str:
    """What `ep` should be, if it is not."""
    layers = [feed for feed in shape.feeds if isinstance(feed, Experts)]
    if not layers and ep > 1:
        return "1 for a model without experts"
    for layer in layers:
        if layer.experts % ep:
            return f"a divisor of {layer.experts} experts"
        if (tp * dp) % ep:
            return f"a divisor of tp x dp = {tp * dp} ranks"
        if tp % ep and ep % tp:
            return f"a divisor or a multiple of tp = {tp}"
        if layer.width % max(1, tp // ep):
            return f"one with tp / ep dividing the experts' width {layer.width}"
    return ""


def _pipeline_problems(shape: ModelShape, pp: int, dp: int, batch: float) -> list[str]:
    layers = max(
        sum(mixer.layers for mixer in shape.mixers),
        sum(feed.layers for feed in shape.feeds),
    )
    problems = []
    if pp > layers:
        problems.append(
            f"pp: expected at most the {layers} layers, got {pp}; reduce it."
        )
    if batch < dp * pp:
        problems.append(
            f"batch: expected at least one sequence for each of dp x pp = {dp * pp} "
            f"groups, got {batch:g}; use {dp * pp} or more, or fewer groups."
        )
    return problems


def _node_problems(chip: Chip, tp: int, ep: int, pp: int) -> list[str]:
    """Replicas that share nothing need no network; the ranks of one do."""
    node = round(float(chip.node_gpus))
    span = max(tp, ep) * pp
    if span <= node:
        return []
    return [
        f"gpus: expected at most the {node} of a node, as this GPU comes without a known "
        f"network, got {span} that work together; reduce tp, pp or ep, or state the "
        f"network (--network 400Gb/s)."
    ]


def _choose(degrees: Iterable[int]) -> str:
    listed = [str(degree) for degree in degrees]
    if not listed:
        return "choose another tp"
    *most, last = listed
    return f"choose {', '.join(most)} or {last}" if most else f"choose {last}"
