"""Steps of many measured rows as arrays: rows x operations, padded, priced in one go.

A fit evaluates the same rows thousands of times with other coefficients. What the rows ask
for does not change, so it is laid out once: every operation of every row becomes one element
of an array, with its role as a one-hot vector, and `rooflines.price` runs on whole arrays.
Programs of all shapes share one compilation.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens import collectives, rooflines
from jaxlens.eager import unfused
from jaxlens.hardware import Chip, Stack
from jaxlens.precisions import Precision
from jaxlens.pytrees import pytree
from jaxlens.rooflines import Limits, Machine
from jaxlens.steps import Item, Line, Routing
from jaxlens.works import Message, Work

Rows = Float[Array, " row"]
Table = Float[Array, "row item"]

ROLES = ("gemm", "attention", "experts", "scan", "elementwise")
KINDS = ("all-reduce", "all-gather", "all-to-all", "send")
PRODUCT_SHAPE = ("rows", "columns", "depth")
REPEATS = ("passes", "softmax_passes")


@pytree
class StackedStep:
    """The operations and collectives of one step of every row."""

    work: Work  # leaves: row x item
    layers: Table
    roles: Float[Array, "row item role"]
    sampled: Table  # 1 for the operation that samples
    repeats: Float[Array, "row item repeat"]
    payload_bytes: Table
    ranks: Table
    strides: Table
    message_layers: Table
    kinds: Float[Array, "row item kind"]
    routing_layers: Rows
    local_experts: Rows
    block_experts: Rows
    excess_load: Rows


def stacked_step(groups: Sequence[tuple[Sequence[Item], int]]) -> StackedStep:
    """Returns groups of rows as one table; each group's items have leaves of its rows.

    Args:
        groups: Items of rows that share one program, with the number of rows.
    """
    works = max(sum(isinstance(i.asks, Work) for i in items) for items, _ in groups)
    sent = max(sum(isinstance(i.asks, Message) for i in items) for items, _ in groups)
    parts = [_group(list(items), rows, works, sent) for items, rows in groups]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def widened(step: StackedStep, width: int) -> StackedStep:
    """Returns `step` with columns of nothing up to `width` operations."""

    def filled(leaf: Array) -> Array:
        missing = width - leaf.shape[1]
        # The last operation again, in no layer: any valid numbers will do.
        return jnp.concatenate(
            [leaf, jnp.repeat(leaf[:, -1:], missing, axis=1)], axis=1
        )

    work = jax.tree.map(filled, step.work)
    layers = jnp.pad(step.layers, ((0, 0), (0, width - step.layers.shape[1])))
    return replace(
        step,
        work=work,
        layers=layers,
        roles=filled(step.roles),
        sampled=filled(step.sampled),
        repeats=filled(step.repeats),
    )


def _group(items: list[Item], rows: int, works: int, sent: int) -> StackedStep:
    return StackedStep(
        **_kernels(items, rows, works),
        **_collectives(items, rows, sent),
        **_routings(items, rows),
    )


def _kernels(items: list[Item], rows: int, width: int) -> dict[str, Any]:
    asked = [i.asks for i in items if isinstance(i.asks, Work)]
    layers = [i.layers for i in items if isinstance(i.asks, Work)]
    mix: dict[str, Any] = {
        f.name: _table([getattr(w.mix, f.name) for w in asked], rows, width)
        for f in fields(Precision)
    }
    sizes: dict[str, Any] = {
        f.name: _table(
            [getattr(w, f.name) for w in asked],
            rows,
            width,
            empty=1.0 if f.name in PRODUCT_SHAPE else 0.0,
        )
        for f in fields(Work)
        if f.name != "mix" and not f.metadata.get("static")
    }
    # Columns of nothing have the first role: any valid numbers will do in no layer.
    roles = [w.role for w in asked] + [ROLES[0]] * (width - len(asked))
    return {
        "work": Work(role=ROLES[0], mix=Precision(**mix), **sizes),
        "layers": _table(layers, rows, width),
        "roles": _one_hot(roles, ROLES, rows, width),
        "sampled": _table([float(bool(w.rate)) for w in asked], rows, width),
        "repeats": _one_hot([w.repeat for w in asked], REPEATS, rows, width),
    }


def _collectives(items: list[Item], rows: int, width: int) -> dict[str, Any]:
    asked = [i.asks for i in items if isinstance(i.asks, Message)]
    layers = [i.layers for i in items if isinstance(i.asks, Message)]
    # A reduce-scatter costs what an all-gather does.
    kinds = ["all-gather" if m.kind == "reduce-scatter" else m.kind for m in asked]
    return {
        "payload_bytes": _table([m.payload_bytes for m in asked], rows, width),
        "ranks": _table([m.ranks for m in asked], rows, width, empty=1.0),
        "strides": _table([m.stride for m in asked], rows, width, empty=1.0),
        "message_layers": _table(layers, rows, width),
        "kinds": _one_hot(kinds, KINDS, rows, width),
    }


def _routings(items: list[Item], rows: int) -> dict[str, Any]:
    asked = [i.asks for i in items if isinstance(i.asks, Routing)]
    layers = [i.layers for i in items if isinstance(i.asks, Routing)]

    def first(name: str) -> np.ndarray:
        value = getattr(asked[0], name) if asked else 0.0
        return np.zeros(rows) + np.asarray(value, float)

    return {
        "routing_layers": np.zeros(rows) + np.asarray(sum(layers), float),
        "local_experts": first("local_experts"),
        "block_experts": first("local_experts") * first("block_scaled"),
        "excess_load": first("excess_load"),
    }


def _table(
    values: Sequence[Any], rows: int, width: int, empty: float = 0.0
) -> np.ndarray:
    """One column for each value, then columns of `empty` up to `width`."""
    columns = [np.broadcast_to(np.asarray(v, float), rows) for v in values]
    columns += [np.full(rows, empty)] * (width - len(columns))
    return np.stack(columns, axis=1)


def _one_hot(
    values: Sequence[str], names: tuple[str, ...], rows: int, width: int
) -> np.ndarray:
    flat = np.zeros((rows, width, len(names)))
    for position, value in enumerate(values):
        if value in names:
            flat[:, position, names.index(value)] = 1.0
    return flat


def line(step: StackedStep, machine: Machine, communication_sms: Rows) -> Line:
    """Returns what each row's step takes: the sum of its lines, one number per row.

    Leaves of `machine` are one number per row.
    """
    wide = jax.tree.map(lambda leaf: leaf[:, None], machine)
    stack, chip = wide.stack, wide.chip
    repeats = 1.0 + step.repeats @ jnp.zeros(len(REPEATS))
    for index, name in enumerate(REPEATS):
        repeats = repeats + step.repeats[..., index] * (getattr(stack, name) - 1.0)
    work = step.work
    if not machine.fused:
        elementwise, attention = (
            step.roles[..., ROLES.index(role)] for role in ("elementwise", "attention")
        )
        work = unfused(work, chip, stack, elementwise, attention)
    cost = rooflines.price(
        work,
        _limits(step.roles, stack),
        step.sampled * stack.sampling_seconds_per_logit,
        repeats,
        wide,
    )
    kernels = Line(
        **{
            name: jnp.sum(value * step.layers, axis=1)
            for name, value in vars(cost).items()
        }
    )
    sent = _messages(step, chip, stack, communication_sms[:, None])
    expert_seconds = jnp.sum(
        cost.seconds * step.layers * step.roles[..., ROLES.index("experts")], axis=1
    )
    software = machine.stack
    padding = software.block_expert_flop / machine.chip.peak_fp8_flop_per_s
    blocks = padding * step.block_experts
    fixed = software.experts_seconds + blocks
    waiting = software.experts_wait * step.excess_load * expert_seconds
    routing = step.routing_layers * fixed + waiting
    return replace(
        kernels,
        seconds=kernels.seconds + sent + routing,
        flop_joules=kernels.flop_joules
        + step.routing_layers * blocks * software.block_watts,
        link_joules=sent * machine.chip.link_watts,
    )


def _limits(roles: Float[Array, "row item role"], stack: Stack) -> Limits:
    """Efficiencies of every item, by its role."""
    names = [field.name for field in fields(Limits)]
    one = jnp.ones_like(stack.softness)
    per_role = jnp.stack(
        [
            jnp.concatenate([one * getattr(limit, name) for name in names], axis=1)
            for limit in (rooflines.limits(role, stack) for role in ROLES)
        ],
        axis=1,
    )
    mixed = roles @ per_role  # row x item x limit
    return Limits(**{name: mixed[..., index] for index, name in enumerate(names)})


def _messages(step: StackedStep, chip: Chip, stack: Stack, sms: Table) -> Rows:
    total = 0.0
    for index, kind in enumerate(KINDS):
        sent = Message(
            kind=kind,
            payload_bytes=step.payload_bytes,
            ranks=step.ranks,
            stride=step.strides,
        )
        seconds = collectives.seconds(sent, chip, stack, sms)
        total = total + seconds * step.kinds[..., index]
    return jnp.sum(total * step.message_layers, axis=1)
