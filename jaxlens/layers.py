"""Layers of a transformer in einsum notation: attention, mixers, feed-forward, experts.

Axes: t tokens of a step on one replica, d residual width, f feed-forward width, g KV heads,
r query heads per KV head, e head width, n sequences of a phase, q their query tokens,
s their cached tokens, k routed copies of a token, x experts that are read, o sequences that
emit a token, v vocabulary, w words that are looked up. Ranks: tp = kv x group, ep, etp.
"""

from jaxlens.einsums import Einsum

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
    Einsum(
        "o v -> o",
        name="sampling",
        times=("sorting",),
        rate="sampling_seconds_per_logit",
    ),
)
