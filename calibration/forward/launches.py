"""Kernels of an eager forward pass: what each element-wise step of a layer expands into.

Eager execution starts a kernel for every tensor operation of the source and sends its result
through memory. A LayerNorm is one kernel, an RMSNorm in fp32 seven; `gelu` and `relu` are one,
the hyperbolic-tangent GELU of GPT-2 eight; a rotary embedding takes five for queries and five
for keys. `Expansion.kernels` counts launches; `Expansion.passes` their traffic, in units of
one read and one write of the tensor.

Source: modelling classes and activations of HuggingFace transformers 4.57, 2025,
https://github.com/huggingface/transformers/tree/main/src/transformers.
"""

from dataclasses import dataclass

from jaxlens.models import known_models
from jaxlens.shapes import Attention, ModelShape


@dataclass(frozen=True)
class Expansion:
    """Launches of one element-wise step, and their traffic in reads plus writes."""

    kernels: float
    passes: float

    def __add__(self, other: "Expansion") -> "Expansion":
        return Expansion(self.kernels + other.kernels, self.passes + other.passes)


RESIDUAL = Expansion(1.0, 1.5)
LAYER_NORM = Expansion(1.0, 1.0)
RMS_NORM = Expansion(7.0, 9.0)  # half of the traffic is twice as wide
HEAD_COPIES = Expansion(4.0, 4.0)  # queries, keys, values and the result, transposed
ROTARY = Expansion(10.0, 8.0)
SCORES = Expansion(3.0, 3.0)  # scale, mask, softmax
WIDENED_SCORES = Expansion(5.0, 7.0)  # softmax in fp32 and back
PLAIN_ACTIVATION = Expansion(1.0, 1.0)
TANH_GELU = Expansion(8.0, 9.0)
GATED_ACTIVATION = Expansion(2.0, 1.7)
PLAIN = Expansion(1.0, 1.0)
TANH_GELUS = frozenset({"gpt2", "gptj"})  # model types with `gelu_new`
NARROW_SOFTMAX = frozenset({"gpt2", "bert"})  # softmax in the format of the scores
PROJECTIONS = 4.0  # query, key, value, out; each costs the host two launches
ONCE = 12.0  # positions, mask, casts


def expansions(shape: ModelShape) -> dict[str, Expansion]:
    """Returns what the element-wise steps of `shape` expand into, by name."""
    kind = model_type(shape.name)
    norm = RESIDUAL + (LAYER_NORM if shape.norm_bias else RMS_NORM)
    mixer = norm + HEAD_COPIES
    if not shape.learned_positions:
        mixer += ROTARY
    gated = any(getattr(feed, "matrices", 2) == 3 for feed in shape.feeds)
    activation = GATED_ACTIVATION if gated else PLAIN_ACTIVATION
    return {
        "attention: norm and residual": mixer,
        "attention: softmax (prefill)": SCORES if kind in NARROW_SOFTMAX else WIDENED_SCORES,
        "feed-forward: norm and residual": norm,
        "feed-forward: activation": TANH_GELU if kind in TANH_GELUS else activation,
    }


def model_type(name: str) -> str:
    """Returns the HuggingFace model type of a catalogue id, empty where not known."""
    entry = known_models().get(name)
    return str(entry.config.get("model_type", "")) if entry else ""


def launches_per_pass(shape: ModelShape) -> float:
    """Returns kernels of one forward pass."""
    steps = expansions(shape)
    total = ONCE
    for mixer in shape.mixers:
        grouped = isinstance(mixer, Attention) and mixer.kv_heads < mixer.heads
        count = steps["attention: norm and residual"].kernels
        count += steps["attention: softmax (prefill)"].kernels
        total += (count + 2.0 + 2.0 * PROJECTIONS + 2.0 * grouped) * mixer.layers
    for feed in shape.feeds:
        count = steps["feed-forward: norm and residual"].kernels
        count += steps["feed-forward: activation"].kernels
        total += (count + 2.0 * getattr(feed, "matrices", 3)) * feed.layers
    return total
