"""Measured forward passes as the steps that they ask of a GPU.

A forward pass is the bare model: no language head and no sampling.

Measured: with the language head, eager fp32 passes of GPT-2 would exceed the fp32 peak of an
A100 at its clock (EnergAIzer artifact, arXiv 2604.20105, 2026), and all errors grow.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.stacked_steps import StackedStep, stacked_step
from jaxlens.deployments import UNLIMITED, Deployment
from jaxlens.loads import Load
from jaxlens.models import load_shape
from jaxlens.profiles import load_chip
from jaxlens.pytrees import pytree
from jaxlens.quantizations import recast
from jaxlens.rooflines import seconds_per_flop
from jaxlens.shapes import ModelShape
from jaxlens.steps import Item, items
from jaxlens.transformers import Model, model

Rows = Float[Array, " row"]


@pytree
class ForwardRows:
    """Rows of forward tables, ready to be priced with any coefficients."""

    step: StackedStep
    load: Load
    launches: Rows  # that the host makes in one pass
    clock_hz: Rows  # as measured or locked; UNLIMITED where not known


def forward_rows(tables: Sequence[Table]) -> ForwardRows:
    """Returns the rows of forward tables, one table after the other."""
    names = np.concatenate([t["model"] for t in tables])
    formats = np.concatenate([_weight_dtype(t) for t in tables])
    batch = np.concatenate([t["batch"] for t in tables]).astype(float)
    prompt = np.concatenate([t["prompt_tokens"] for t in tables]).astype(float)
    keys = list(zip(names.tolist(), formats.tolist(), strict=True))
    load = prompts(jnp.asarray(batch), jnp.asarray(prompt))
    groups, order, launches = [], [], np.zeros(len(keys))
    for key in dict.fromkeys(keys):
        chosen = np.array([other == key for other in keys])
        described = model(_shape(*key))
        # Eager operations compile once per shape: every group sees all rows.
        asked = eager_items(described, load)
        groups.append((_picked(asked, chosen), int(chosen.sum())))
        order.append(np.flatnonzero(chosen))
        launches[chosen] = float(described.launches)
    back = np.argsort(np.concatenate(order), kind="stable")
    step = jax.tree.map(lambda leaf: leaf[back], stacked_step(groups))
    clock = np.concatenate([_clock_hz(t) for t in tables])
    return ForwardRows(
        step=step,
        load=load,
        launches=jnp.asarray(launches),
        clock_hz=jnp.asarray(clock),
    )


def prompts(batch: Rows, tokens: Rows) -> Load:
    """Returns the load of a pass of `batch` prompts of `tokens` tokens each."""
    return Load(
        decode_sequences=0.0 * batch,
        decode_context=0.0 * batch,
        prefill_sequences=batch,
        prefill_tokens=tokens,
        prefill_past=0.0 * batch,
        emitting=batch,
    )


def eager_items(description: Model, load: Load) -> list[Item]:
    """Returns what a forward pass with `load` asks for, operation by operation."""
    blocks = tuple(block for block in description.blocks if block.label != "head")
    bare = replace(description, blocks=blocks)
    return items(bare, Deployment(fused=False), load, ("prefill",))


def impossible(table: Table, rows: ForwardRows | None = None) -> np.ndarray:
    """Returns which rows claim more FLOPs per second than their chip has at its clock.

    A pass that ran out of memory ends early and leaves such a row.

    Args:
        table: Forward passes.
        rows: The same, as `forward_rows` gives them; found here by default.
    """
    with jax.enable_x64(True):
        rows = forward_rows([table]) if rows is None else rows
    found = np.zeros(len(table), bool)
    flop = np.asarray(rows.step.work.flop) * np.asarray(rows.step.layers)
    mix = jax.tree.map(np.asarray, rows.step.work.mix)
    for gpu in dict.fromkeys(table["gpu"].tolist()):
        chip = load_chip(gpu)
        share = np.minimum(np.asarray(rows.clock_hz) / float(chip.boost_hz), 1.0)
        least = (flop * np.asarray(seconds_per_flop(mix, chip))).sum(1)
        found |= (table["gpu"] == gpu) & (table["seconds"] < least / share)
    return found


def usable(table: Table) -> Table:
    """Returns the rows of `table` that its chips can have run."""
    return table.subset(~impossible(table))


def _shape(name: str, weights: str) -> ModelShape:
    shape = load_shape(name)
    return recast(shape, weights, None) if weights else shape


def _weight_dtype(table: Table) -> np.ndarray:
    if table.has("weight_dtype"):
        return np.asarray(table["weight_dtype"])
    return np.full(len(table), "")


def _clock_hz(table: Table) -> np.ndarray:
    if not table.has("sm_clock_hz"):
        return np.full(len(table), UNLIMITED)
    clock = np.asarray(table["sm_clock_hz"], float)
    return np.where(np.isnan(clock), UNLIMITED, clock)


def _picked(asked: list[Item], chosen: np.ndarray) -> list[Item]:
    def pick(leaf):
        return leaf[chosen] if np.ndim(leaf) else leaf

    return [jax.tree.map(pick, item) for item in asked]
