"""What one step carries, and the extents that every axis of a program takes in it.

What is not a product of sizes becomes a derived extent here: the visible part of a context
under a mask and a window, active experts, ranks that share a KV head.
"""

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.deployments import Deployment
from jaxlens.expert_ranks import Placement, placement
from jaxlens.experts import active, routing
from jaxlens.pytrees import pytree
from jaxlens.transformers import NO_WINDOW, Block, Model

Scalar = Float[Array, ""] | float
Extents = dict[str, Scalar]

SCAN_CHUNK_TOKENS = 256.0  # tokens between two states that a prefill scan writes


@pytree
class Load:
    """Tokens of one step on one replica and pipeline stage: decode and prefill parts."""

    decode_sequences: Scalar = 0.0
    decode_context: Scalar = 0.0  # mean tokens in the cache of a decoding sequence
    prefill_sequences: Scalar = 0.0
    prefill_tokens: Scalar = 1.0  # of one sequence in this step
    prefill_past: Scalar = 0.0  # tokens of it that earlier chunks have cached
    emitting: Scalar = 1.0  # sequences whose next token is sampled


def tokens(load: Load) -> Scalar:
    """Returns tokens of the step on one replica."""
    return load.decode_sequences + load.prefill_sequences * load.prefill_tokens


def mesh(block: Block, deployment: Deployment) -> Extents:
    """Returns the degree of every mesh axis: how many parts an axis is split into."""
    tp, ep = deployment.tensor_parallel, deployment.expert_parallel
    # Kinks at the number of KV heads and at one expert rank per tensor rank are real.
    kv = elementary.minimum(tp, block.sizes["g"]) if "g" in block.sizes else 1.0
    return {
        "tp": tp,
        "kv": kv,
        "group": tp / kv,
        "ep": ep,
        "etp": elementary.maximum(1.0, tp / ep),
    }


def expert_span(deployment: Deployment) -> Scalar:
    """Returns how many data-parallel replicas share one set of experts, at least 1."""
    return elementary.maximum(
        1.0, deployment.expert_parallel / deployment.tensor_parallel
    )


def expert_placement(block: Block, deployment: Deployment, *loads: Load) -> Placement:
    """Returns how tokens pick the experts of a block and where those are.

    The same for every one of `loads`, of whose type its numbers are.
    """
    sizes = block.sizes
    experts, top_k, skew, ranks, *_ = elementary.lifted(
        sizes["z"],
        sizes["top_k"],
        deployment.routing_skew,
        deployment.expert_parallel,
        *(tokens(load) for load in loads),
    )
    return placement(routing(experts, top_k, skew), ranks)


def step_extents(
    block: Block,
    model: Model,
    deployment: Deployment,
    load: Load,
    placed: Placement | None = None,
) -> Extents:
    """Returns extents of the axes that do not depend on the phase.

    `placed` is the `expert_placement` of the block, found here where not given.
    """
    extents = {
        **block.sizes,
        **mesh(block, deployment),
        "d": model.width,
        "v": model.vocabulary,
        "t": tokens(load),
        "o": load.emitting,
        "w": tokens(load),
    }
    if "top_k" in block.sizes:
        placed = placed or expert_placement(block, deployment, load)
        span = expert_span(deployment)
        extents["k"] = block.sizes["top_k"] * span
        extents["x"] = active(tokens(load) * span, placed.routing)
    return extents


def decode_extents(block: Block, load: Load) -> Extents:
    """Returns extents of the decode part: one query token for each sequence."""
    window = block.sizes.get("window", NO_WINDOW)
    return {
        "n": load.decode_sequences,
        "q": 1.0,
        "s": elementary.minimum(load.decode_context, window),
        "seen": 1.0,
        "u": 1.0,
        "per_chunk": 1.0,
    }


def prefill_extents(block: Block, load: Load) -> Extents:
    """Returns extents of the prefill part.

    Query i of a chunk sees min(past + i, window) tokens (all of them without a causal
    mask): the mean over i, as a share of what is read, is the density of the products.
    """
    window = block.sizes.get("window", NO_WINDOW)
    causal = block.sizes.get("causal", 1.0)
    queries, past = load.prefill_tokens, load.prefill_past
    # No wider than what is there: gradients would be differences of huge numbers.
    window = elementary.minimum(window, past + queries)
    read = elementary.minimum(past + queries, window + queries)
    growing = elementary.clip(
        window - past, 0.0, queries
    )  # queries before the window is full
    seen = growing * (past + 0.5 * (growing + 1.0)) + (queries - growing) * window
    seen = causal * seen / queries + (1.0 - causal) * window
    chunks = elementary.maximum(1.0, queries / SCAN_CHUNK_TOKENS)
    return {
        "n": load.prefill_sequences,
        "q": queries,
        "s": read,
        "seen": seen / read,
        "u": chunks,
        "per_chunk": 1.0 / chunks,
    }
