"""Measured forward passes as the steps that they ask of a GPU.

A forward pass is the bare model: no language head and no sampling. Eager attention multiplies
the whole square of scores: nothing skips what a causal mask hides.

Measured: with the language head, eager fp32 passes of GPT-2 would exceed the fp32 peak of an
A100 at its clock (EnergAIzer artifact, arXiv 2604.20105, 2026), and all errors grow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.calibration.forward.launches import (
    PLAIN,
    Expansion,
    expansions,
    launches_per_pass,
)
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
from jaxlens.works import Work

Rows = Float[Array, " row"]


@pytree
class ForwardRows:
    """Rows of forward tables, ready to be priced with any coefficients."""

    step: StackedStep
    launches: Rows  # that the host makes in one pass
    clock_hz: Rows  # as measured or locked; UNLIMITED where not known


def forward_rows(tables: Sequence[Table]) -> ForwardRows:
    """Returns the rows of forward tables, one table after the other."""
    names = np.concatenate([t["model"] for t in tables])
    formats = np.concatenate([_weight_dtype(t) for t in tables])
    batch = np.concatenate([t["batch"] for t in tables]).astype(float)
    prompt = np.concatenate([t["prompt_tokens"] for t in tables]).astype(float)
    keys = list(zip(names.tolist(), formats.tolist(), strict=True))
    groups, order, launches = [], [], np.zeros(len(keys))
    for key in dict.fromkeys(keys):
        chosen = np.array([other == key for other in keys])
        shape = _shape(*key)
        # Eager operations compile once per shape: every group sees all rows.
        asked = eager_items(
            model(shape), expansions(shape), jnp.asarray(batch), jnp.asarray(prompt)
        )
        groups.append((_picked(asked, chosen), int(chosen.sum())))
        order.append(np.flatnonzero(chosen))
        launches[chosen] = launches_per_pass(shape)
    back = np.argsort(np.concatenate(order), kind="stable")
    step = jax.tree.map(lambda leaf: leaf[back], stacked_step(groups))
    clock = np.concatenate([_clock_hz(t) for t in tables])
    return ForwardRows(
        step=step, launches=jnp.asarray(launches), clock_hz=jnp.asarray(clock)
    )


def eager_items(
    description: Model,
    expanded: Mapping[str, Expansion],
    batch: Rows,
    prompt: Rows,
) -> list[Item]:
    """Returns what a forward pass of `batch` prompts of `prompt` tokens asks for."""
    blocks = tuple(
        replace(block, sizes={**block.sizes, "causal": 0.0})
        if "causal" in block.sizes
        else block
        for block in description.blocks
        if block.label != "head"
    )
    load = Load(prefill_sequences=batch, prefill_tokens=prompt, emitting=batch)
    bare = replace(description, blocks=blocks)
    asked = items(bare, Deployment(fused=False), load, ("prefill",))
    return [_expanded(item, expanded.get(item.name, PLAIN)) for item in asked]


def _expanded(item: Item, by: Expansion) -> Item:
    """As many launches as `by` has kernels, which share its traffic."""
    if not isinstance(item.asks, Work) or item.asks.role != "elementwise":
        return item
    traffic = item.asks.hbm_bytes * (by.passes / by.kernels)
    asks = replace(item.asks, repeat="", hbm_bytes=traffic, activation_bytes=traffic)
    return replace(item, layers=item.layers * by.kernels, asks=asks)


def impossible(table: Table) -> np.ndarray:
    """Returns which rows claim more FLOPs per second than their chip has at its clock.

    A pass that ran out of memory ends early and leaves such a row.
    """
    with jax.enable_x64(True):
        rows = forward_rows([table])
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
