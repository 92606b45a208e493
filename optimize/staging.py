"""One step of a tensor-parallel model as a function of how it is split and staged.

A static batch: `prefill` carries all prompts at once, `decode` one token of each sequence. All
knobs are floats and may be relaxed; host time and power cap are those of `serving`.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens import serving
from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.loads import Load
from jaxlens.memory import memory
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree, static
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float
Columns = dict[str, np.ndarray]  # one entry per setting

PHASES = ("prefill", "decode")
WIDTHS = 128, 4096  # settings per call of the compiled program: for few and for many
# Measured: two cores of an AMD EPYC, jax 0.10.2: compiles three times as fast.
QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


@pytree
class Split:
    """What may be chosen for one step."""

    tensor_parallel: Scalar
    batch: Scalar
    stages: Scalar
    communication_sms: Scalar


@pytree
class Question:
    """One phase of one model on one kind of GPU: everything that is not chosen."""

    phase: str = static()  # one of `PHASES`
    model: Model
    profile: Profile
    base: Deployment  # knobs that are not chosen, with `overlap`
    tokens: Scalar  # of each prompt; in decode, in the cache of each sequence


@pytree
class Price:
    """What one step takes and draws, and its energy over all GPUs."""

    seconds: Scalar
    joules_per_token: Scalar  # of a prompt, or of the output
    joules: Scalar
    link_joules: Scalar
    watts_per_gpu: Scalar
    clock_hz: Scalar  # under the power cap


def load(phase: str, batch: Scalar, tokens: Scalar) -> Load:
    """Returns what a step of `batch` sequences carries."""
    if phase == "decode":
        return Load(decode_sequences=batch, decode_context=tokens, emitting=batch)
    return Load(prefill_sequences=batch, prefill_tokens=tokens, emitting=batch)


def deployment(question: Question, split: Split) -> Deployment:
    """Returns the deployment that a split stands for."""
    values = {**vars(question.base), **vars(split), "overlap": True}
    return Deployment(**values)


def price(question: Question, split: Split) -> Price:
    """Returns time and energy of one step; differentiable in every float."""
    chip, stack = question.profile.chip, question.profile.stack
    layout = deployment(question, split)
    carried = load(question.phase, split.batch, question.tokens)
    step = serving.step(question.model, chip, stack, layout, carried, (question.phase,))
    joules = step.joules * split.tensor_parallel
    done = split.batch * (question.tokens if question.phase == "prefill" else 1.0)
    return Price(
        seconds=step.seconds,
        joules_per_token=joules / done,
        joules=joules,
        link_joules=step.link_joules * split.tensor_parallel,
        watts_per_gpu=step.joules / step.seconds,
        clock_hz=step.clock_hz,
    )


def memory_slack_bytes(question: Question, split: Split) -> Scalar:
    """Returns bytes left on each GPU, with the activations of the whole step in them."""
    chip, stack = question.profile.chip, question.profile.stack
    prompt = question.tokens if question.phase == "prefill" else 1.0
    values = {**vars(stack), "chunk_tokens": UNLIMITED}
    lengths = Workload(prompt_tokens=prompt, output_tokens=question.tokens - prompt)
    return memory(
        question.model,
        chip,
        type(stack)(**values),
        deployment(question, split),
        lengths,
    ).slack_bytes


@cache
def compiled() -> Any:
    """Returns `price` of many splits, compiled once per structure."""
    many = jax.vmap(price, (None, 0))
    return jax.jit(many, compiler_options=QUICK)


def prices(question: Question, splits: Mapping[str, np.ndarray]) -> Columns:
    """Returns the columns of `Price` at many settings, in float64.

    Args:
        question: What they have in common.
        splits: Columns of `Split` by name.
    """
    columns = {name: np.asarray(values, float) for name, values in splits.items()}
    count = len(columns["batch"])
    width = WIDTHS[0] if count <= 8 * WIDTHS[0] else WIDTHS[1]
    program, parts = compiled(), []
    with jax.enable_x64(True):
        traced = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), question)
        for first in range(0, count, width):
            # The last row fills up: shapes, and so compilations, stay few.
            rows = np.minimum(np.arange(first, first + width), count - 1)
            asked = Split(**{n: jnp.asarray(c[rows]) for n, c in columns.items()})
            found = jax.device_get(program(traced, asked))
            kept = min(width, count - first)
            parts.append({n: v[:kept] for n, v in vars(found).items()})
    return {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
