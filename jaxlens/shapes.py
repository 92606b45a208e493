"""What a model is made of: layer kinds, how many of each, and their widths.

A `ModelShape` is plain Python: integers read from a model's configuration, checked
once. `transformers` turns it into einsums; nothing here knows about JAX, chips or
costs. Layers are counted per kind and not listed in order, because costs add up.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Multi-head, grouped-query or multi-query attention with a KV cache per head."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None  # tokens a query can see; None sees the whole context
    bias: bool = False  # on the query, key and value projections
    output_bias: bool = False
    query_key_norm: bool = False  # a norm of `head_dim` weights on queries and on keys
    shared_key_value: bool = False  # values are the keys: one projection and cache
    causal: bool = True


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2/V3): one small KV latent per token."""

    layers: int
    heads: int
    query_rank: int | None  # None: the query is projected directly
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, kw_only=True)
class Mamba:
    """Mamba-2 selective state space mixer: a fixed-size state per sequence."""

    layers: int
    heads: int
    head_dim: int
    state: int
    groups: int
    convolution: int  # width of the causal convolution


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Dense feed-forward layer of `matrices` weight matrices (3 if gated, else 2)."""

    layers: int
    width: int
    matrices: int = 3
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Mixture-of-experts feed-forward: `top_k` of `experts`, plus shared experts."""

    layers: int
    experts: int
    top_k: int
    width: int  # of one routed expert
    matrices: int = 3
    shared_width: int = 0  # all shared experts of a layer together; 0 if there are none
    shared_gate: bool = False
    bias: bool = False  # on the experts and their router


Mixer = Attention | LatentAttention | Mamba
Feed = FeedForward | Experts


@dataclass(frozen=True, kw_only=True)
class WeightFormats:
    """Number format of each kind of weight; names as in `precisions.FORMATS`.

    Where a checkpoint mixes formats within a kind, the one most of its layers use:
    routers and norms stay in 16 bits and are too small to list.
    """

    attention: str = "bf16"  # also Mamba and latent attention
    feed_forward: str = "bf16"  # dense layers and shared experts
    experts: str = "bf16"  # routed experts
    head: str = "bf16"  # embedding table and language-model head
    block_scaled: bool = False  # fp8 with one scale per 128 x 128 block


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A language model as its layer kinds, widths and number formats."""

    name: str
    width: int  # of the residual stream, `d` in the einsums
    vocabulary: int
    mixers: tuple[Mixer, ...]
    feeds: tuple[Feed, ...]
    tied_embeddings: bool = False
    learned_positions: int = 0  # rows of a learned position table (GPT-2, OPT, BERT)
    norms_per_layer: int = 2  # around a mixer + feed pair; half of them if one is alone
    norm_bias: bool = False  # LayerNorm with a bias instead of RMSNorm
    tanh_gelu: bool = False  # an activation that takes eight kernels where not fused
    narrow_softmax: bool = False  # in the number format of the scores, where not fused
    parallel_blocks: bool = False  # mixer and feed read one input, their outputs add up
    max_context: int | None = None
    language_head: bool = True  # False for encoders (BERT)
    truncated_sampling: bool = (
        True  # top-p or top-k by default: the vocabulary is sorted
    )
    formats: WeightFormats = field(default_factory=WeightFormats)
    kv_format: str = "bf16"
