"""What eager execution asks for beyond its products: launches, and traffic between kernels.

Every tensor operation of the source is a kernel that the host starts, and its result goes
through memory. A LayerNorm is one kernel, an RMSNorm in fp32 seven; `gelu` and `relu` are one,
the hyperbolic-tangent GELU of GPT-2 eight; a rotary embedding takes five for queries and five
for keys. Activations that fit into the L2 cache save part of their traffic, and the unfused
products of narrow heads fill the matrix units badly:

    bytes = bytes (1 - saving / (1 + (bytes / (share L2))^2))
    flop = flop (1 + half / depth)(1 + half / columns)

Source: modelling classes and activations of HuggingFace transformers 4.57, 2025,
https://github.com/huggingface/transformers/tree/main/src/transformers.
"""

from collections.abc import Mapping
from dataclasses import replace

from jaxtyping import Array, Float

from jaxlens.hardware import Chip, Stack
from jaxlens.pytrees import pytree
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
from jaxlens.works import Work

Scalar = Float[Array, "..."] | float


@pytree
class Expansion:
    """Kernels of one element-wise step, and their traffic.

    A pass is one read and one write of the step's tensor.
    """

    kernels: Scalar
    passes: Scalar


PLAIN = Expansion(kernels=1.0, passes=1.0)
RESIDUAL = Expansion(kernels=1.0, passes=1.5)  # two reads
LAYER_NORM = Expansion(kernels=1.0, passes=1.0)
RMS_NORM = Expansion(kernels=7.0, passes=9.0)  # most of them twice as wide, in fp32
HEAD_COPIES = Expansion(kernels=4.0, passes=4.0)  # queries, keys, values, the result
ROTARY = Expansion(kernels=10.0, passes=8.0)
SCORES = Expansion(kernels=3.0, passes=3.0)  # scale, mask, softmax
WIDENED_SCORES = Expansion(kernels=5.0, passes=7.0)  # softmax in fp32: there and back
TANH_GELU = Expansion(kernels=8.0, passes=9.0)
GATED_ACTIVATION = Expansion(kernels=2.0, passes=1.7)  # activation, product

PER_PASS = 12.0  # positions, mask, casts
PRODUCTS = 2.0  # of queries and keys, of scores and values
PER_MATRIX = 2.0  # a layer with weights costs the host about two launches
REPEATED_HEADS = 2.0  # keys and values, copied for each query head of a group
SCAN = 10.0  # convolution, discretisation and scan of a state-space mixer
PER_EXPERT = 4.0  # which tokens, gather, weigh, scatter: one expert after the other

NORM, SOFTMAX, ACTIVATION = "norm and residual", "softmax", "activation"


def mixer_expansions(mixer: Mixer, shape: ModelShape) -> dict[str, Expansion]:
    """Returns what the element-wise steps of a mixer expand into, by operation."""
    if isinstance(mixer, Mamba):
        return {NORM: _norm(shape)}
    before = _sum(_norm(shape), HEAD_COPIES)
    if not shape.learned_positions:
        before = _sum(before, ROTARY)
    if isinstance(mixer, LatentAttention):
        return {NORM: before}
    scores = SCORES if shape.narrow_softmax else WIDENED_SCORES
    return {NORM: before, SOFTMAX: scores}


def feed_expansions(feed: Feed, shape: ModelShape) -> dict[str, Expansion]:
    """Returns what the element-wise steps of a feed-forward layer expand into."""
    name = ACTIVATION if isinstance(feed, FeedForward) else f"experts {ACTIVATION}"
    plain = TANH_GELU if shape.tanh_gelu else PLAIN
    return {NORM: _norm(shape), name: GATED_ACTIVATION if feed.matrices == 3 else plain}


def launches_per_pass(shape: ModelShape) -> float:
    """Returns what the host has to start for one forward pass."""
    mixers = sum(_mixer_launches(m, shape) * m.layers for m in shape.mixers)
    feeds = sum(_feed_launches(f, shape) * f.layers for f in shape.feeds)
    return PER_PASS + mixers + feeds


def unfused(
    work: Work, chip: Chip, stack: Stack, elementwise: Scalar, attention: Scalar
) -> Work:
    """Returns `work` with what reaches HBM and what narrow heads multiply, unfused.

    Args:
        work: One kernel, or arrays of them.
        chip: For the size of its L2.
        stack: Coefficients of eager execution.
        elementwise: 1 for an element-wise kernel, 0 for others.
        attention: 1 for a product of attention, 0 for others.
    """
    filled = work.activation_bytes / (chip.l2_bytes * stack.l2_share)
    kept = stack.l2_saving / (1.0 + filled * filled)
    moved = work.hbm_bytes - kept * work.activation_bytes
    half = stack.attention_half_width
    narrow = (1.0 + half / work.depth) * (1.0 + half / work.columns)
    return replace(
        work,
        hbm_bytes=moved * (1.0 + elementwise * (stack.elementwise_traffic - 1.0)),
        flop=work.flop * (1.0 + attention * (narrow - 1.0)),
    )


def expanded(work: Work, by: Expansion) -> Work:
    """Returns one of the kernels that an element-wise step of one pass expands into."""
    traffic = work.hbm_bytes * (by.passes / by.kernels)
    return replace(work, repeat="", hbm_bytes=traffic, activation_bytes=traffic)


def _norm(shape: ModelShape) -> Expansion:
    return _sum(RESIDUAL, LAYER_NORM if shape.norm_bias else RMS_NORM)


def _sum(one: Expansion, other: Expansion) -> Expansion:
    return Expansion(
        kernels=one.kernels + other.kernels, passes=one.passes + other.passes
    )


def _kernels(steps: Mapping[str, Expansion]) -> float:
    return sum(float(step.kernels) for step in steps.values())


def _mixer_launches(mixer: Mixer, shape: ModelShape) -> float:
    elementwise = _kernels(mixer_expansions(mixer, shape))
    if isinstance(mixer, Mamba):
        return elementwise + 2.0 * PER_MATRIX + SCAN
    if isinstance(mixer, LatentAttention):
        projections = 4.0 if mixer.query_rank is None else 5.0
        return elementwise + PRODUCTS + PER_MATRIX * projections
    grouped = isinstance(mixer, Attention) and mixer.kv_heads < mixer.heads
    return elementwise + PRODUCTS + PER_MATRIX * 4.0 + REPEATED_HEADS * grouped


def _feed_launches(feed: Feed, shape: ModelShape) -> float:
    steps = feed_expansions(feed, shape)
    matrices = PER_MATRIX * feed.matrices
    if not isinstance(feed, Experts):
        return _kernels(steps) + matrices
    each = float(steps[f"experts {ACTIVATION}"].kernels) + matrices
    shared = each if feed.shared_width else 0.0
    routed = feed.experts * (each + PER_EXPERT)
    return float(steps[NORM].kernels) + PER_MATRIX + shared + routed
