"""Rows of a run as steps: what each asks of the chip, and under which conditions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxlens.calibration.machines import runs
from jaxlens.calibration.machines.prices import UNCAPPED_WATTS, MachineRows
from jaxlens.calibration.machines.runs import Row
from jaxlens.calibration.stacked_steps import stacked_step
from jaxlens.deployments import Deployment
from jaxlens.hardware import Chip
from jaxlens.kernel_works import message, works
from jaxlens.loads import Load
from jaxlens.models import load_shape
from jaxlens.quantizations import recast
from jaxlens.steps import Item, Routing, items
from jaxlens.transformers import Model, model
from jaxlens.works import Message, Work

# Rows are arrays of kernels and collectives: at least one of each, in no layer.
NOTHING = (
    Item(name="nothing", layers=0.0, asks=works("copy", {"bytes": 1.0})["copy"]),
    Item(
        name="nothing sent",
        layers=0.0,
        asks=Message(kind="all-reduce", payload_bytes=1.0, ranks=1.0),
    ),
)
GATED = 2.0  # matrices on the way up: the activation is a gate and a product


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Rows that can be priced, and why the others cannot."""

    rows: tuple[Row, ...]
    items: tuple[tuple[Item, ...], ...]
    reasons: tuple[str, ...]  # one for each row that is set aside


def asked(rows: Sequence[Row]) -> Asked:
    """Returns what each row asks for; rows that predictions have no words for are left."""
    kept, found, reasons = [], [], []
    for row in rows:
        try:
            one = (*_items(row), *NOTHING)
        except (ValueError, KeyError) as error:
            reasons.append(f"{row.get('case', row['kind'])}: {error}")
            continue
        measured = runs.idle_watts(row) if row["kind"] in runs.IDLE else None
        measured = runs.seconds(row) if measured is None else measured
        if not 0.0 < measured < math.inf:
            reasons.append(f"{row.get('case', row['kind'])}: no time and no power")
            continue
        kept.append(row)
        found.append(one)
    return Asked(rows=tuple(kept), items=tuple(found), reasons=tuple(reasons))


def _items(row: Row) -> list[Item]:
    """Returns the kernels and collectives of one row.

    Raises:
        ValueError: A kind, a format or a model that predictions do not know.
        KeyError: A size that the row lacks.
    """
    kind = runs.operation(row)
    if kind in runs.IDLE:
        return []
    if kind == runs.STEPS:
        return _step(row)
    if kind == "collectives":
        return [Item(name="collective", layers=1.0, asks=message(row))]
    if kind == runs.PAIRS:
        raise ValueError("two kernels at once say nothing of one")
    result = [
        Item(name=name, layers=1.0, asks=one) for name, one in works(kind, row).items()
    ]
    if kind == "moe":
        balanced = Routing(
            local_experts=float(row["experts"]), block_scaled=0.0, excess_load=0.0
        )
        result.append(Item(name="routing", layers=1.0, asks=balanced))
    return result


def _step(row: Row) -> list[Item]:
    """Returns the operations of a whole step of a model on one GPU, as torch runs them."""
    weights = str(row.get("weight_dtype", "bf16"))
    described = model(recast(load_shape(str(row["model"])), weights, weights))
    phase, batch = str(row["phase"]), float(row["batch"])
    carried = _load(phase, batch, float(row["prompt_tokens"]))
    plain = Deployment(batch=batch)
    found = items(described, plain, carried, (phase,))
    return [
        part
        for item in found
        if isinstance(item.asks, Work | Routing)
        for part in (_gated(item, described), *_cached(item))
    ]


def _load(phase: str, batch: float, tokens: float) -> Load:
    if phase == "prefill":
        return Load(prefill_sequences=batch, prefill_tokens=tokens, emitting=batch)
    if phase == "decode":
        return Load(decode_sequences=batch, decode_context=tokens, emitting=batch)
    raise ValueError(f"step: expected phase prefill or decode, got {phase!r}")


def _gated(item: Item, described: Model) -> Item:
    """A gated activation as torch runs it: a gate and a product, each in a pass."""
    label, _, name = item.name.partition(": ")
    if not isinstance(item.asks, Work) or not name.endswith("activation"):
        return item
    sizes = next(block.sizes for block in described.blocks if block.label == label)
    if float(sizes.get("up_matrices", 1.0)) != GATED:
        return item
    # Predictions count two inputs and a result; a pass reads and writes once.
    moved = item.asks.hbm_bytes * (2.0 / 3.0)
    return replace(item, asks=replace(item.asks, hbm_bytes=moved, repeat="passes"))


def _cached(item: Item) -> list[Item]:
    """New keys and values as torch keeps them: two copies into the cache, after a product."""
    if not isinstance(item.asks, Work) or item.asks.role != "gemm":
        return []
    if float(item.asks.kv_bytes) == 0.0:
        return []
    # Each reads and writes half of them.
    copied = works("copy", {"bytes": float(item.asks.kv_bytes)})["copy"]
    return [Item(name=f"{item.name} kept", layers=2.0 * item.layers, asks=copied)]


def machine_rows(found: Asked, chip: Chip) -> MachineRows:
    """Returns the rows as arrays, in their order."""
    groups: dict[Any, list[int]] = {}
    for position, one in enumerate(found.items):
        names = tuple(item.name for item in one)
        groups.setdefault((names, jax.tree.structure(one)), []).append(position)
    parts = []
    for positions in groups.values():
        same = [found.items[i] for i in positions]
        stacked = jax.tree.map(lambda *v: np.array(v, float), *same)
        parts.append((stacked, len(positions)))
    order = np.argsort(np.concatenate(list(groups.values())), kind="stable")
    with jax.enable_x64(True):
        step = jax.tree.map(lambda leaf: np.asarray(leaf)[order], stacked_step(parts))
    clock: Any = np.array([runs.number(row, "sm_clock_hz") for row in found.rows])
    share: Any = np.array([_share(row) for row in found.rows])
    idle: Any = np.array([float(row["kind"] in runs.IDLE) for row in found.rows])
    cap: Any = np.array([_cap_watts(row, chip) for row in found.rows])
    clock_share: Any = np.where(np.isnan(clock), 1.0, clock / float(chip.boost_hz))
    return MachineRows(
        step=step,
        clock_share=clock_share,
        sm_share=share,
        cap_watts=cap,
        idle=idle,
        capped=bool((cap < UNCAPPED_WATTS).any()),
    )


def _share(row: Row) -> float:
    share = runs.number(row, "sm_share")
    return share if share == share else 1.0


def _cap_watts(row: Row, chip: Chip) -> float:
    """Returns the limit that decides on the clock of a row, if nothing else tells it."""
    known = runs.number(row, "sm_clock_hz") == runs.number(row, "sm_clock_hz")
    if known or runs.joules(row) != runs.joules(row):
        return UNCAPPED_WATTS
    limit = runs.number(row, "power_cap_watts")
    return limit if limit == limit else float(chip.tdp_watts)
