"""Kernels of an eager forward pass: what each element-wise step of a layer expands into.

Eager execution starts a kernel for every tensor operation of the source and sends its result
through memory. A LayerNorm is one kernel, an RMSNorm in fp32 seven; `gelu` and `relu` are one,
the hyperbolic-tangent GELU of GPT-2 eight; a rotary embedding takes five for queries and five
for keys.

Source: modelling classes and activations of HuggingFace transformers 4.57, 2025,
https://github.com/huggingface/transformers/tree/main/src/transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxlens.models import known_models
from jaxlens.shapes import Attention, ModelShape


@dataclass(frozen=True)
class Expansion:
    """Launches of one element-wise step, and their traffic.

    A pass is one read and one write of the step's tensor.
    """

    kernels: float
    passes: float

    def __add__(self, other: "Expansion") -> "Expansion":
        return Expansion(self.kernels + other.kernels, self.passes + other.passes)


PLAIN = Expansion(1.0, 1.0)
RESIDUAL = Expansion(1.0, 1.5)  # two reads
LAYER_NORM = Expansion(1.0, 1.0)
RMS_NORM = Expansion(7.0, 9.0)  # most of them twice as wide, in fp32
HEAD_COPIES = Expansion(4.0, 4.0)  # queries, keys, values and the result, transposed
ROTARY = Expansion(10.0, 8.0)
SCORES = Expansion(3.0, 3.0)  # scale, mask, softmax
WIDENED_SCORES = Expansion(5.0, 7.0)  # softmax in fp32: there and back
TANH_GELU = Expansion(8.0, 9.0)
GATED_ACTIVATION = Expansion(2.0, 1.7)  # activation, product

TANH_GELUS = frozenset({"gpt2", "gptj"})  # model types with `gelu_new`
NARROW_SOFTMAX = frozenset({"gpt2", "bert"})  # in the number format of the scores
PER_PASS = 12.0  # positions, mask, casts
PRODUCTS = 2.0  # of queries and keys, of scores and values
PROJECTIONS = 4.0  # query, key, value, out
PER_MATRIX = 2.0  # a layer with weights costs the host about two launches
REPEATED_HEADS = 2.0  # keys and values, copied for each query head of a group

NORM_BEFORE_MIXER = "attention: norm and residual"
SOFTMAX = "attention: softmax (prefill)"
NORM_BEFORE_FEED = "feed-forward: norm and residual"
ACTIVATION = "feed-forward: activation"


def expansions(shape: ModelShape) -> Mapping[str, Expansion]:
    """Returns what the element-wise steps of `shape` expand into, by item name."""
    kind = model_type(shape.name)
    norm = RESIDUAL + (LAYER_NORM if shape.norm_bias else RMS_NORM)
    mixer = norm + HEAD_COPIES
    if not shape.learned_positions:
        mixer += ROTARY
    gated = any(getattr(feed, "matrices", 2) == 3 for feed in shape.feeds)
    activation = GATED_ACTIVATION if gated else PLAIN
    return {
        NORM_BEFORE_MIXER: mixer,
        SOFTMAX: SCORES if kind in NARROW_SOFTMAX else WIDENED_SCORES,
        NORM_BEFORE_FEED: norm,
        ACTIVATION: TANH_GELU if kind in TANH_GELUS else activation,
    }


def model_type(name: str) -> str:
    """Returns the HuggingFace model type of a catalogue id, empty where not known."""
    entry = known_models().get(name)
    return str(entry.config.get("model_type", "")) if entry else ""


def launches_per_pass(shape: ModelShape) -> float:
    """Returns what the host has to start for one forward pass."""
    steps = expansions(shape)
    total = PER_PASS
    for mixer in shape.mixers:
        grouped = isinstance(mixer, Attention) and mixer.kv_heads < mixer.heads
        count = steps[NORM_BEFORE_MIXER].kernels + steps[SOFTMAX].kernels
        count += PRODUCTS + PER_MATRIX * PROJECTIONS + REPEATED_HEADS * grouped
        total += count * mixer.layers
    for feed in shape.feeds:
        count = steps[NORM_BEFORE_FEED].kernels + steps[ACTIVATION].kernels
        total += (count + PER_MATRIX * feed.matrices) * feed.layers
    return total
