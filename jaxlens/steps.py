"""One step of an engine: its operations and collectives, and what each of them takes.

Pipeline stages work on their own micro-batch at the same time, so each GPU of a pipeline of p
stages spends on a step what one GPU would spend on all layers with 1/p of the sequences.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import jax
from jaxtyping import Array, Float

from jaxlens import collectives, rooflines
from jaxlens.deployments import Deployment
from jaxlens.eager import expanded
from jaxlens.expert_ranks import Placement, busiest
from jaxlens.loads import (
    Extents,
    Load,
    decode_extents,
    expert_placement,
    expert_span,
    prefill_extents,
    step_extents,
    tokens,
)
from jaxlens.overlap import hbm_bytes, staged_seconds
from jaxlens.power import Draw
from jaxlens.programs import Collective, Kernel, program
from jaxlens.pytrees import pytree, static
from jaxlens.rooflines import Machine
from jaxlens.smooth import presence
from jaxlens.transformers import NO_WINDOW, Block, Model
from jaxlens.works import Message, Work, message, work

Scalar = Float[Array, ""] | float
Phases = tuple[str, ...]  # of "decode" and "prefill", the parts that a step has


@pytree
class Routing:
    """Fixed work of an expert layer, and the busiest rank that the others wait for."""

    local_experts: Scalar
    block_scaled: Scalar
    excess_load: Scalar  # of the busiest rank, above the mean, relative


@pytree
class Staged:
    """A product and the collectives that run beside it, in `stages` chunks."""

    product: Work
    messages: tuple[Message, ...]
    stages: Scalar


@pytree
class Item:
    """One line of a step: an operation or collective, and how many layers have it."""

    name: str = static()  # "block: operation"
    layers: Scalar
    asks: Work | Message | Routing | Staged


@pytree
class Line:
    """What one operation or collective of a step takes on one GPU, all layers together."""

    seconds: Scalar = 0.0
    clocked_seconds: Scalar = 0.0
    launch_seconds: Scalar = 0.0
    flop_joules: Scalar = 0.0
    hbm_joules: Scalar = 0.0
    kv_joules: Scalar = 0.0
    link_joules: Scalar = 0.0


Lines = dict[str, Line]


Placements = tuple[Placement | None, ...]  # of each block of a model


def placements(model: Model, deployment: Deployment, *loads: Load) -> Placements:
    """Returns where the experts of every block are: the same for steps of any load."""
    return tuple(
        expert_placement(block, deployment, *loads) if "top_k" in block.sizes else None
        for block in model.blocks
    )


def items(
    model: Model,
    deployment: Deployment,
    load: Load,
    phases: Phases,
    placed: Placements | None = None,
) -> list[Item]:
    """Returns everything that a step asks of one GPU: no coefficient has a say in it.

    `placed` are the `placements` of the model, found here where not given.
    """
    result = []
    placed = placements(model, deployment, load) if placed is None else placed
    for block, own in zip(model.blocks, placed, strict=True):
        for name, asks in _block_items(block, model, deployment, load, phases, own):
            item = Item(name=f"{block.label}: {name}", layers=block.layers, asks=asks)
            result.append(item if deployment.fused else _eager(item, name, block))
    stages = deployment.pipeline_parallel
    degree = deployment.tensor_parallel
    payload = tokens(load) * model.width * 2.0 / degree
    send = Message(kind="send", payload_bytes=payload, ranks=stages, stride=degree)
    return [*result, Item(name="pipeline: send", layers=stages - 1.0, asks=send)]


def lines(asked: Iterable[Item], machine: Machine, communication_sms: Scalar) -> Lines:
    """Returns what every operation takes on one GPU, before host and power cap."""
    result: Lines = {}
    experts: dict[str, Line] = {}
    for item in asked:
        one = line(item.asks, machine, communication_sms)
        block = item.name.partition(":")[0]
        if isinstance(item.asks, Work) and item.asks.role == "experts":
            experts[block] = add(experts.get(block), one)
        if isinstance(item.asks, Routing):
            one = _routing(item.asks, experts.pop(block).seconds, machine)
        scaled = jax.tree.map(lambda value, n=item.layers: _times(value, n), one)
        result[item.name] = add(result.get(item.name), scaled)
    return result


def _times(value: Scalar, layers: Scalar) -> Scalar:
    """Nothing stays the number 0, so that adding it costs nothing."""
    return 0.0 if isinstance(value, float) and value == 0.0 else value * layers


def total(parts: Iterable[Line]) -> Line:
    """Returns the sum of lines."""
    return jax.tree.map(lambda *values: sum(values[1:], start=values[0]), *parts)


def add(old: Line | None, new: Line) -> Line:
    """Returns the sum of two lines, the first of which may be missing."""
    return new if old is None else total([old, new])


def draw(line: Line, gap_power: Scalar) -> Draw:
    """Returns what `line` asks of a GPU; launches draw part of the busy floor."""
    return Draw(
        seconds=line.seconds,
        clocked_seconds=line.clocked_seconds,
        active_seconds=line.seconds - (1.0 - gap_power) * line.launch_seconds,
        flop_joules=line.flop_joules,
        memory_joules=line.hbm_joules + line.kv_joules,
        link_joules=line.link_joules,
    )


def _block_items(
    block: Block,
    model: Model,
    deployment: Deployment,
    load: Load,
    phases: Phases,
    placed: Placement | None,
) -> list[tuple[str, Work | Message | Routing | Staged]]:
    extents = step_extents(block, model, deployment, load, placed)
    views = {}
    if "decode" in phases:
        views["decode"] = {**extents, **decode_extents(block, load)}
    if "prefill" in phases:
        seen = block if deployment.fused else _square(block)
        views["prefill"] = {**extents, **prefill_extents(seen, load)}
    result: list[tuple[str, Work | Message | Routing | Staged]] = []
    for step in program(
        block.operations, deployment.sequence_parallel, deployment.fused
    ):
        if isinstance(step, Kernel) and step.per_phase:
            for phase in phases:
                if step.phase in ("", phase):
                    asks = work(step, views[phase], model.formats)
                    result.append((f"{step.name} ({phase})", asks))
        elif isinstance(step, Kernel):
            result.append((step.name, work(step, extents, model.formats)))
        else:
            sent = _message(step, extents, deployment)
            before, producer = result[-1] if result else ("", None)
            if (
                deployment.overlap
                and step.overlap
                and isinstance(producer, Work | Staged)
            ):
                staged = _staged(producer, sent, deployment.stages)
                result[-1] = (f"{before} with {step.kind}", staged)
            else:
                result.append((f"{step.name} {step.kind}", sent))
    if placed is not None:
        asks = _routing_of(block, model, deployment, load, placed)
        result.append(("routing", asks))
    return result


def _eager(item: Item, name: str, block: Block) -> Item:
    """Element-wise steps as the kernels that they expand into."""
    by = block.eager.get(name.partition(" (")[0])
    if by is None or not isinstance(item.asks, Work):
        return item
    return replace(item, layers=item.layers * by.kernels, asks=expanded(item.asks, by))


def _square(block: Block) -> Block:
    """Unfused attention multiplies all scores: nothing skips what a mask hides."""
    if "causal" not in block.sizes:
        return block
    return replace(block, sizes={**block.sizes, "causal": 0.0, "window": NO_WINDOW})


def _message(step: Collective, extents: Extents, deployment: Deployment) -> Message:
    if step.mesh != "ep":
        return message(step, extents, deployment.tensor_parallel)
    # Ranks of one replica hold the same tokens: only those of other replicas travel, and
    # `k` counts the tokens of all replicas that share the experts.
    span = expert_span(deployment)
    whole = message(step, extents, span)
    degree = deployment.tensor_parallel
    payload = whole.payload_bytes / (span * degree)
    return replace(whole, payload_bytes=payload, stride=degree)


def _staged(producer: Work | Staged, sent: Message, stages: Scalar) -> Staged:
    """Further collectives of a product, such as an all-gather, travel with the first."""
    if isinstance(producer, Staged):
        return replace(producer, messages=(*producer.messages, sent))
    return Staged(product=producer, messages=(sent,), stages=stages)


def _chunk(product: Work, stages: Scalar) -> Work:
    """One of `stages` chunks: its share of the rows, with all of the weights."""
    saved = product.activation_bytes * (1.0 - 1.0 / stages)
    return replace(
        product,
        flop=product.flop / stages,
        rows=product.rows / stages,
        hbm_bytes=product.hbm_bytes - saved,
        activation_bytes=product.activation_bytes / stages,
        kv_bytes=product.kv_bytes / stages,
        visits=product.visits / stages,
    )


def _routing_of(
    block: Block,
    model: Model,
    deployment: Deployment,
    load: Load,
    placed: Placement,
) -> Routing:
    most = busiest(tokens(load) * expert_span(deployment), placed)
    return Routing(
        local_experts=block.sizes["z"] / deployment.expert_parallel,
        block_scaled=model.formats.block_scaled,
        excess_load=most - 1.0,
    )


def line(
    asks: Work | Message | Routing | Staged, machine: Machine, sms: Scalar
) -> Line:
    """Returns what one launch of `asks` takes, with `sms` SMs for its collectives.

    Routing depends on the experts before it: nothing here, see `lines`.
    """
    if isinstance(asks, Work):
        cost = rooflines.kernel(asks, machine)
        return Line(**vars(cost))
    if isinstance(asks, Message):
        seconds = collectives.seconds(asks, machine.chip, machine.stack, sms)
        return Line(seconds=seconds, link_joules=seconds * machine.chip.link_watts)
    if isinstance(asks, Staged):
        return _overlapped(asks, machine, sms)
    return Line()


def _routing(asks: Routing, experts_seconds: Scalar, machine: Machine) -> Line:
    """Sorting tokens by expert, and waiting for the busiest rank."""
    stack = machine.stack
    waiting = stack.experts_wait * asks.excess_load * experts_seconds
    padding = stack.block_expert_flop / machine.chip.peak_fp8_flop_per_s
    blocks = padding * asks.local_experts * asks.block_scaled
    return Line(
        seconds=stack.experts_seconds + blocks + waiting,
        flop_joules=blocks * stack.block_watts,
    )


def _overlapped(asks: Staged, machine: Machine, sms: Scalar) -> Line:
    """A product and its collectives in stages; undivided where all have one rank.

    Energy does not overlap: every chunk pays for its traffic and its FLOPs.
    """
    chip = machine.chip
    alone = math.prod(1.0 - presence(sent.ranks) for sent in asks.messages)
    stages = 1.0 + (asks.stages - 1.0) * (1.0 - alone)
    rest = machine.sm_share * (1.0 - (1.0 - alone) * sms / chip.sms)
    chunk = _chunk(asks.product, stages)
    first = rooflines.kernel(chunk, machine)
    transfer: Scalar = 0.0
    contended: Scalar = chunk.hbm_bytes
    for whole in asks.messages:
        part = replace(whole, payload_bytes=whole.payload_bytes / stages)
        transfer = transfer + collectives.seconds(part, chip, machine.stack, sms)
        contended = contended + hbm_bytes(part)
    beside = rooflines.kernel(
        replace(chunk, hbm_bytes=contended), replace(machine, sm_share=rest)
    )
    both = beside.seconds + transfer
    clocked = beside.clocked_seconds * beside.seconds / both
    return Line(
        seconds=staged_seconds(
            first.seconds, beside.seconds, transfer, stages, chip.overlap_contention
        ),
        clocked_seconds=first.clocked_seconds + (stages - 1.0) * clocked,
        launch_seconds=stages * first.launch_seconds,
        flop_joules=stages * first.flop_joules,
        hbm_joules=stages * first.hbm_joules,
        kv_joules=stages * first.kv_joules,
        link_joules=stages * transfer * chip.link_watts,
    )
