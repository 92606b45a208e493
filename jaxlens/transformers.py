"""Transformers as blocks of einsums: from layer kinds and widths to sizes and structure."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from jaxtyping import Array, Float

from jaxlens.eager import (
    Expansion,
    feed_expansions,
    launches_per_pass,
    mixer_expansions,
)
from jaxlens.einsums import Einsum
from jaxlens.layers import (
    DENSE,
    EMBEDDING,
    GROUPED_QUERY,
    HEAD,
    LATENT,
    ROUTED,
    ROUTER,
    SHARED,
    STATE_SPACE,
)
from jaxlens.precisions import FORMATS, precision
from jaxlens.pytrees import pytree, static
from jaxlens.shapes import (
    Attention,
    Experts,
    FeedForward,
    LatentAttention,
    Mamba,
    ModelShape,
)
from jaxlens.works import Formats

Scalar = Float[Array, ""] | float
# Passes over the logits without a sort (softmax, noise, maximum: about 50 B per logit), as a
# share of those with one (a radix sort of keys and indices on top: about 250 B).
UNSORTED_SAMPLING = 0.2
NO_WINDOW = 1e12  # tokens; wider than any context


@pytree
class Block:
    """One kind of layer: its operations (static), its widths and how often it occurs."""

    label: str = static()
    operations: tuple[Einsum, ...] = static()
    layers: Scalar
    sizes: Mapping[str, Scalar]
    # Element-wise operations where nothing is fused.
    eager: Mapping[str, Expansion] = field(default_factory=dict)


@pytree
class Model:
    """A model as blocks, with the number formats of its weights and KV cache."""

    blocks: tuple[Block, ...]
    width: Scalar
    vocabulary: Scalar
    formats: Formats
    launches: Scalar = 0.0  # of one forward pass where nothing is fused


def attention(layer: Attention) -> Block:
    """Returns grouped-query attention (multi-head and multi-query are its limits)."""
    operations = GROUPED_QUERY
    if layer.shared_key_value:
        operations = tuple(
            replace(e, operands=("activation", "reused")) if e.name == "values" else e
            for e in operations
        )
    return Block(
        label="attention" if layer.window is None else "windowed attention",
        operations=operations,
        layers=float(layer.layers),
        sizes={
            "g": float(layer.kv_heads),
            "r": layer.heads / layer.kv_heads,
            "e": float(layer.head_dim),
            "kv_tensors": 1.0 if layer.shared_key_value else 2.0,
            "window": NO_WINDOW if layer.window is None else float(layer.window),
            "causal": float(layer.causal),
        },
    )


def latent_attention(layer: LatentAttention) -> Block:
    """Returns multi-head latent attention with absorbed decode and expanded prefill."""
    operations = LATENT
    if layer.query_rank is None:
        direct = Einsum(
            "t d, d h e -> t h e",
            name="query up",
            weights="attention",
            shard={"h": "tp"},
        )
        operations = (LATENT[0], LATENT[2], direct, *LATENT[4:])
    return Block(
        label="latent attention",
        operations=operations,
        layers=float(layer.layers),
        sizes={
            "a": float(layer.query_rank or 0),
            "c": float(layer.kv_rank + layer.rope_dim),
            "e": float(layer.nope_dim + layer.rope_dim),
            "h": float(layer.heads),
            "i": float(layer.nope_dim),
            "j": float(layer.value_dim),
            "l": float(layer.kv_rank),
            "window": NO_WINDOW,
            "causal": 1.0,
        },
    )


def state_space(layer: Mamba) -> Block:
    """Returns a Mamba-2 mixer: its state takes the place of a KV cache."""
    inner = layer.heads * layer.head_dim
    mixed = inner + 2 * layer.groups * layer.state
    return Block(
        label="state space",
        operations=STATE_SPACE,
        layers=float(layer.layers),
        sizes={
            "h": float(layer.heads),
            "p": float(layer.head_dim),
            "m": float(layer.state),
            "y": float(inner + mixed + layer.heads),
            "z": float(mixed),
        },
    )


def feed_forward(layer: FeedForward) -> Block:
    """Returns a dense feed-forward layer."""
    sizes = {"f": float(layer.width), "up_matrices": layer.matrices - 1.0}
    return Block(
        label="feed-forward",
        operations=DENSE,
        layers=float(layer.layers),
        sizes=sizes,
    )


def experts(layer: Experts) -> Block:
    """Returns a mixture-of-experts layer, with its shared experts if it has any."""
    shared = SHARED if layer.shared_width else ()
    return Block(
        label="experts",
        operations=(*ROUTER, *shared, *ROUTED),
        layers=float(layer.layers),
        sizes={
            "z": float(layer.experts),
            "top_k": float(layer.top_k),
            "f": float(layer.width),
            "h": float(layer.shared_width),
            "up_matrices": layer.matrices - 1.0,
        },
    )


BUILDERS: dict[type, Any] = {
    Attention: attention,
    LatentAttention: latent_attention,
    Mamba: state_space,
    FeedForward: feed_forward,
    Experts: experts,
}


def model(shape: ModelShape) -> Model:
    """Returns the einsum description of `shape`: sizes are floats, structure is static."""
    blocks = [
        replace(BUILDERS[type(mixer)](mixer), eager=mixer_expansions(mixer, shape))
        for mixer in shape.mixers
    ] + [
        replace(BUILDERS[type(feed)](feed), eager=feed_expansions(feed, shape))
        for feed in shape.feeds
    ]
    table = float(shape.vocabulary + shape.learned_positions)
    blocks.append(
        Block(
            label="embedding", operations=EMBEDDING, layers=1.0, sizes={"table": table}
        )
    )
    if shape.language_head:
        head = tuple(replace(e, stored=not shape.tied_embeddings) for e in HEAD)
        sorting = 1.0 if shape.truncated_sampling else UNSORTED_SAMPLING
        sizes = {"sorting": sorting}
        blocks.append(Block(label="head", operations=head, layers=1.0, sizes=sizes))
    names = shape.formats
    kinds = ("attention", "feed_forward", "experts", "head")
    formats = {kind: precision(getattr(names, kind)) for kind in kinds}
    return Model(
        blocks=tuple(blocks),
        width=float(shape.width),
        vocabulary=float(shape.vocabulary),
        formats=Formats(
            weights={**formats, "router": precision("bf16")},
            block_scaled=float(names.block_scaled),
            kv_bytes=FORMATS[shape.kv_format],
        ),
        launches=launches_per_pass(shape),
    )
