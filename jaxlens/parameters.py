"""Parameter counts of a model shape, by kind of weight."""

from dataclasses import dataclass

from jaxlens.shapes import (
    Attention,
    Experts,
    Feed,
    FeedForward,
    LatentAttention,
    Mamba,
    Mixer,
    ModelShape,
)


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """How many weights of each kind a model has."""

    attention: int  # attention, latent attention and Mamba
    feed_forward: int  # dense layers and shared experts
    experts_total: int  # all routed experts
    experts_active: int  # the routed experts that one token visits
    routers: int
    norms: int
    embedding: int  # token and learned position tables
    head: int  # 0 where the head is the embedding table, or there is none

    @property
    def total(self) -> int:
        """All weights of the model."""
        return self.active - self.experts_active + self.experts_total

    @property
    def active(self) -> int:
        """The weights of a model without the experts that a token does not visit."""
        return (
            self.attention
            + self.feed_forward
            + self.experts_active
            + self.routers
            + self.norms
            + self.embedding
            + self.head
        )


def parameters(shape: ModelShape) -> ParameterCount:
    """Returns how many parameters a model has: weights, biases and norms.

    Left out, below 0.01 % wherever they exist: attention sinks, biases of the language
    head and of routing scores, norms right after the embedding, poolers.
    """
    width, feeds = shape.width, shape.feeds
    experts = [feed for feed in feeds if isinstance(feed, Experts)]
    table = shape.vocabulary * width
    return ParameterCount(
        attention=sum(m.layers * mixer_parameters(m, width) for m in shape.mixers),
        feed_forward=sum(f.layers * dense_parameters(f, width) for f in feeds),
        experts_total=sum(
            e.layers * e.experts * expert_parameters(e, width) for e in experts
        ),
        experts_active=sum(
            e.layers * e.top_k * expert_parameters(e, width) for e in experts
        ),
        routers=sum(e.layers * e.experts * (width + e.bias) for e in experts),
        norms=_norms(shape),
        embedding=table + shape.learned_positions * width,
        head=0 if shape.tied_embeddings or not shape.language_head else table,
    )


def mixer_parameters(mixer: Mixer, width: int) -> int:
    """Returns the weights of one attention, latent attention or Mamba-2 layer."""
    if isinstance(mixer, Attention):
        return _attention(mixer, width)
    if isinstance(mixer, LatentAttention):
        return _latent_attention(mixer, width)
    return _mamba(mixer, width)


def dense_parameters(feed: Feed, width: int) -> int:
    """Returns the weights of one dense feed-forward layer, or of its shared experts."""
    if isinstance(feed, FeedForward):
        return _matrices(width, feed.width, feed.matrices, bias=feed.bias)
    gate = width if feed.shared_gate and feed.shared_width else 0
    return gate + _matrices(width, feed.shared_width, feed.matrices, bias=False)


def expert_parameters(experts: Experts, width: int) -> int:
    """Returns the weights of one routed expert of one layer."""
    return _matrices(width, experts.width, experts.matrices, bias=experts.bias)


def _matrices(width: int, inner: int, matrices: int, *, bias: bool) -> int:
    biases = (matrices - 1) * inner + width if bias else 0
    return matrices * width * inner + biases


def _attention(mixer: Attention, width: int) -> int:
    query = mixer.heads * mixer.head_dim
    key_value = mixer.kv_heads * mixer.head_dim * (1 if mixer.shared_key_value else 2)
    return (
        width * (query + key_value)
        + query * width
        + (query + key_value if mixer.bias else 0)
        + (width if mixer.output_bias else 0)
        + (2 * mixer.head_dim if mixer.query_key_norm else 0)
    )


def _latent_attention(mixer: LatentAttention, width: int) -> int:
    """Down- and up-projections of query and key-value latents, their norms, output."""
    query = mixer.heads * (mixer.nope_dim + mixer.rope_dim)
    if mixer.query_rank is None:
        query_weights = width * query
    else:
        query_weights = mixer.query_rank * (width + query + 1)
    key_value = mixer.heads * (mixer.nope_dim + mixer.value_dim)
    key_value_weights = width * (mixer.kv_rank + mixer.rope_dim) + mixer.kv_rank * (
        key_value + 1
    )
    return query_weights + key_value_weights + mixer.heads * mixer.value_dim * width


def _mamba(mixer: Mamba, width: int) -> int:
    """Mamba-2: input projection, convolution, per-head scalars, norm and output.

    Source: T. Dao, A. Gu, "Transformers are SSMs", ICML 2024,
    https://arxiv.org/abs/2405.21060.
    """
    inner = mixer.heads * mixer.head_dim
    convolved = inner + 2 * mixer.groups * mixer.state
    return (
        width * (inner + convolved + mixer.heads)
        + convolved * (mixer.convolution + 1)
        + 3 * mixer.heads
        + inner
        + inner * width
    )


def _norms(shape: ModelShape) -> int:
    blocks = sum(m.layers for m in shape.mixers) + sum(f.layers for f in shape.feeds)
    norms = blocks * shape.norms_per_layer // 2 + 1
    return norms * shape.width * (2 if shape.norm_bias else 1)
