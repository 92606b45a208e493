"""Transformers in einsum notation: from layer kinds and widths to blocks of operations.

Axes: t tokens of a step on one replica, d residual width, f feed-forward width, g KV heads,
r query heads per KV head, e head width, n sequences of a phase, q their query tokens,
s their cached tokens, k routed copies of a token, x experts that are read, o sequences that
emit a token, v vocabulary, w words that are looked up. Ranks: tp = kv x group, ep, etp.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Array, Float

from jaxlens.einsums import Einsum
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
NO_WINDOW = 1e12  # tokens; wider than any context


@pytree
class Block:
    """One kind of layer: its operations (static), its widths and how often it occurs."""

    label: str = static()
    operations: tuple[Einsum, ...] = static()
    layers: Scalar
    sizes: Mapping[str, Scalar]


@pytree
class Model:
    """A model as blocks, with the number formats of its weights and KV cache."""

    blocks: tuple[Block, ...]
    width: Scalar
    vocabulary: Scalar
    formats: Formats


NORM = Einsum("t d -> t d", name="norm and residual", repeat="passes")

GROUPED_QUERY = (
    NORM,
    Einsum(
        "t d, d g r e -> t g r e",
        name="query",
        weights="attention",
        shard={"g": "kv", "r": "group"},
        fuse="query key value",
    ),
    Einsum(
        "t d, d g e -> t g e",
        name="key value",
        weights="attention",
        shard={"g": "kv"},
        times=("kv_tensors",),
        result="kv",
        fuse="query key value",
    ),
    Einsum(
        "n q g r e, n s g e -> n q g r s",
        name="scores",
        operands=("activation", "kv"),
        shard={"g": "kv", "r": "group"},
        density="seen",
        fuse="attention",
    ),
    Einsum(
        "n q g r s -> n q g r s",
        name="softmax",
        shard={"g": "kv", "r": "group"},
        repeat="softmax_passes",
        density="seen",
        fuse="attention",
    ),
    Einsum(
        "n q g r s, n s g e -> n q g r e",
        name="values",
        operands=("activation", "kv"),
        shard={"g": "kv", "r": "group"},
        density="seen",
        fuse="attention",
    ),
    Einsum(
        "t g r e, g r e d -> t d",
        name="attention out",
        weights="attention",
        shard={"g": "kv", "r": "group"},
    ),
)

# Decode multiplies the query into the latent space ("absorbed"); prefill expands keys and
# values of each cached token instead, which takes fewer FLOPs for many queries.
# Source: DeepSeek-AI, "DeepSeek-V2", 2024, https://arxiv.org/abs/2405.04434, section 2.1.
LATENT = (
    NORM,
    Einsum("t d, d a -> t a", name="query down", weights="attention", fuse="latents"),
    Einsum(
        "t d, d c -> t c",
        name="key value down",
        weights="attention",
        result="kv",
        fuse="latents",
    ),
    Einsum(
        "t a, a h e -> t h e", name="query up", weights="attention", shard={"h": "tp"}
    ),
    Einsum(
        "n q h i, h i l -> n q h l",
        name="absorb keys",
        weights="attention",
        shard={"h": "tp"},
        phase="decode",
    ),
    Einsum(
        "n q h c, n s c -> n q h s",
        name="scores",
        operands=("activation", "kv"),
        shard={"h": "tp"},
        density="seen",
        fuse="latent attention",
        phase="decode",
    ),
    Einsum(
        "n q h s, n s l -> n q h l",
        name="values",
        operands=("activation", "reused"),
        shard={"h": "tp"},
        density="seen",
        fuse="latent attention",
        phase="decode",
    ),
    Einsum(
        "n q h l, h l j -> n q h j",
        name="expand values",
        weights="attention",
        shard={"h": "tp"},
        phase="decode",
    ),
    Einsum(
        "n s l, h i l -> n s h i",
        name="expand keys",
        operands=("kv", "weight"),
        weights="attention",
        shard={"h": "tp"},
        stored=False,
        fuse="expand keys and values",
        phase="prefill",
    ),
    Einsum(
        "n s l, h l j -> n s h j",
        name="expand values",
        operands=("reused", "weight"),
        weights="attention",
        shard={"h": "tp"},
        stored=False,
        fuse="expand keys and values",
        phase="prefill",
    ),
    Einsum(
        "n q h e, n s h e -> n q h s",
        name="scores",
        operands=("activation", "activation"),
        shard={"h": "tp"},
        density="seen",
        fuse="attention",
        phase="prefill",
    ),
    Einsum(
        "n q h s, n s h j -> n q h j",
        name="values",
        operands=("activation", "activation"),
        shard={"h": "tp"},
        density="seen",
        fuse="attention",
        phase="prefill",
    ),
    Einsum(
        "t h j, h j d -> t d",
        name="attention out",
        weights="attention",
        shard={"h": "tp"},
    ),
)

# Mamba-2: every sequence keeps a state of heads x head width x state width in fp32, read and
# written once a step (in prefill: once a chunk, axis u).
# Source: T. Dao and A. Gu, 2024, https://arxiv.org/abs/2405.21060.
STATE_SPACE = (
    NORM,
    Einsum("t d, d y -> t y", name="mixer in", weights="attention", shard={"y": "tp"}),
    Einsum("t z -> t z", name="convolution", shard={"z": "tp"}),
    Einsum(
        "n q h p, n u h p m -> n q h p m",
        name="state update",
        operands=("activation", "state"),
        shard={"h": "tp"},
        density="per_chunk",
        fuse="scan",
    ),
    Einsum(
        "n q h p m, n u h p m -> n q h p",
        name="state readout",
        operands=("activation", "state"),
        shard={"h": "tp"},
        density="per_chunk",
        fuse="scan",
    ),
    Einsum(
        "t h p, h p d -> t d", name="mixer out", weights="attention", shard={"h": "tp"}
    ),
)

DENSE = (
    NORM,
    Einsum("t d, d f -> t f", name="up", shard={"f": "tp"}, times=("up_matrices",)),
    Einsum("t f -> t f", name="activation", shard={"f": "tp"}, times=("up_matrices",)),
    Einsum("t f, f d -> t d", name="down", shard={"f": "tp"}),
)

ROUTER = (
    NORM,
    Einsum("t d, d z -> t z", name="router", weights="router"),
)

# The shared experts leave their partial sums to the routed ones: one all-reduce for both.
SHARED = (
    Einsum(
        "t d, d h -> t h", name="shared up", shard={"h": "tp"}, times=("up_matrices",)
    ),
    Einsum("t h, h d -> t d", name="shared down", shard={"h": "tp"}, partial=True),
)

ROUTED = (
    Einsum(
        "t k d, x d f -> t k f",
        name="experts up",
        weights="experts",
        select="x",
        shard={"k": "ep", "x": "ep", "f": "etp"},
        times=("up_matrices",),
    ),
    Einsum(
        "t k f -> t k f",
        name="experts activation",
        shard={"k": "ep", "f": "etp"},
        times=("up_matrices",),
    ),
    Einsum(
        "t k f, x f d -> t k d",
        name="experts down",
        weights="experts",
        select="x",
        shard={"k": "ep", "x": "ep", "f": "etp"},
        partial=True,
    ),
    Einsum("t k d -> t d", name="experts out", shard={"k": "ep"}),
)

EMBEDDING = (
    Einsum(
        "t w, w d -> t d",
        name="embedding",
        operands=("reused", "weight"),
        weights="head",
        select="w",
        shard={"w": "tp"},
    ),
)

HEAD = (
    Einsum("o d -> o d", name="last norm"),
    Einsum(
        "o d, d v -> o v",
        name="language head",
        weights="head",
        shard={"v": "tp"},
        gather=("v",),
    ),
    Einsum("o v -> o", name="sampling", rate="sampling_seconds_per_logit"),
)


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
    blocks = [BUILDERS[type(layer)](layer) for layer in (*shape.mixers, *shape.feeds)]
    table = float(shape.vocabulary + shape.learned_positions)
    blocks.append(
        Block(
            label="embedding", operations=EMBEDDING, layers=1.0, sizes={"table": table}
        )
    )
    if shape.language_head:
        head = tuple(replace(e, stored=not shape.tied_embeddings) for e in HEAD)
        blocks.append(Block(label="head", operations=head, layers=1.0, sizes={}))
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
    )
