"""A transformer step in torch, built from the einsum program that predictions are made of.

The blocks of `transformers.Model` are lowered kernel by kernel, so that a predicted and a
measured step share one description, and each kernel can be timed alone as well.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxlens.deployments import Deployment
from jaxlens.loads import Load, decode_extents, prefill_extents, step_extents
from jaxlens.measure.benches import Bench, Columns, measurement_columns
from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Cpu, Device, Launch
from jaxlens.measure.kernels import torch_dtype
from jaxlens.measure.lowerings import Names, Operation, Setting, lowered
from jaxlens.measure.step_rounds import measure_in_rounds
from jaxlens.measure.suites import GRIDS
from jaxlens.measure.windows import Loop, Measurement, measured
from jaxlens.models import load_shape
from jaxlens.programs import kernels, program
from jaxlens.transformers import Block, Model, model

FORMATS = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}
REPLAYED_LAUNCHES = 100  # of a kernel alone, by one graph


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kernel of one layer."""

    name: str  # "block: kernel"
    run: Operation


@dataclass(frozen=True, kw_only=True)
class Step:
    """A whole step: its kernels in the order in which they run."""

    parts: tuple[Part, ...]
    phase: str

    def __call__(self) -> Any:
        """Runs the step once and returns the sampled tokens."""
        tensors: Names = {}
        for part in self.parts:
            part.run(tensors)
        return tensors.get(frozenset({"o"}))


def load(phase: str, batch: int, tokens: int) -> Load:
    """Returns what a step carries: `tokens` are new (prefill) or cached ones (decode)."""
    if phase == "prefill":
        return Load(
            prefill_sequences=float(batch),
            prefill_tokens=float(tokens),
            emitting=float(batch),
        )
    if phase == "decode":
        return Load(
            decode_sequences=float(batch),
            decode_context=float(tokens),
            emitting=float(batch),
        )
    raise ValueError(f"step: expected phase prefill or decode, got {phase!r}.")


def build(description: Model, carried: Load, device: Device, dtype: str) -> Step:
    """Returns the step with random weights, on one device without parallelism."""
    phase = "decode" if float(carried.decode_sequences) else "prefill"
    parts: list[Part] = []
    for block in ordered(description):
        setting = Setting(
            device=device,
            dtype=torch_dtype(device, dtype),
            extents=extents(block, description, carried, phase),
            phase=phase,
        )
        for kernel in kernels(program(block.operations, False, True)):
            if kernel.phase in ("", phase):
                name = f"{block.label}: {kernel.name}"
                parts.append(Part(name=name, run=lowered(kernel, setting)))
    return Step(parts=tuple(parts), phase=phase)


def ordered(description: Model) -> list[Block]:
    """Returns one block per layer: embedding, mixers and feeds in turn, head."""
    ends = {block.label: block for block in description.blocks}
    mixers, feeds = [], []
    for block in description.blocks:
        if block.label in {"embedding", "head"}:
            continue
        feed = block.label in {"feed-forward", "experts"}
        (feeds if feed else mixers).extend([block] * round(float(block.layers)))
    middle: list[Block] = []
    for i in range(max(len(mixers), len(feeds))):
        middle += [*mixers[i : i + 1], *feeds[i : i + 1]]
    return [
        *([ends["embedding"]] if "embedding" in ends else []),
        *middle,
        *([ends["head"]] if "head" in ends else []),
    ]


def extents(
    block: Block, description: Model, carried: Load, phase: str
) -> dict[str, float]:
    """Returns the extents that predictions use, as plain numbers."""
    phased = decode_extents if phase == "decode" else prefill_extents
    values = {
        **step_extents(block, description, Deployment(), carried),
        **phased(block, carried),
    }
    values.setdefault("window", 1e12)
    return {name: float(value) for name, value in values.items()}


def with_layers(description: Model, layers: int) -> Model:
    """Returns the model with `layers` layers of each kind."""
    kept = tuple(
        block
        if block.label in {"embedding", "head"}
        else dataclasses.replace(block, layers=float(layers))
        for block in description.blocks
    )
    return dataclasses.replace(description, blocks=kept)


def measure_step(case: Case, bench: Bench) -> Columns:
    """Returns time and energy of a step, and of its kernels timed one by one.

    `kernels_seconds` adds up kernels that were measured alone; its ratio to `seconds` says
    how far a step can be predicted from measurements of operations. On a processor both are
    measured in the same rounds.
    """
    device, mode = bench.device, case.text("mode")
    dtype = GRIDS[device.kind].dtypes[0]
    description = model(load_shape(case.text("model")))
    carried = load(
        case.text("phase"), case.number("batch"), case.number("prompt_tokens")
    )
    with device.torch.inference_mode():
        step = build(description, carried, device, dtype)
        if isinstance(device, Cpu) and mode == "eager":
            found = measure_in_rounds(traced(step), launches_alone(step), bench)
        else:
            loop = step_loop(step, device, mode)
            result = measured(device, bench.gauge, loop, bench.rules, bench.agree)
            found = measurement_columns(result, bench.idle_watts)
            if mode == "graphed":
                found |= kernels_alone(step, bench, result)
    return {
        **found,
        "attention": "torch.scaled_dot_product_attention",
        "weight_dtype": FORMATS[dtype],
    }


def step_loop(step: Step, device: Device, mode: str) -> Loop:
    """Returns the step as a loop of one call: `eager`, `compiled` or `graphed`."""
    call: Launch = step
    if mode == "compiled":
        compiled: Callable[[], Any] = device.torch.compile(lambda: step())
        return Loop(calls=(compiled,))
    if mode == "graphed":
        calls, count = device.replayable((call,), 1)
        return Loop(calls=calls, launches_per_call=count)
    if mode != "eager":
        raise ValueError(f"step: expected eager, compiled or graphed, got {mode!r}.")
    return Loop(calls=(call,))


def traced(step: Step) -> list[tuple[str, Launch]]:
    """Returns name and launch of each kernel; run in order they are the step."""
    tensors: Names = {}

    def first() -> None:
        tensors.clear()  # of the step before
        step.parts[0].run(tensors)

    rest = [(part.name, partial(part.run, tensors)) for part in step.parts[1:]]
    return [(step.parts[0].name, first), *rest]


def launches_alone(step: Step) -> dict[str, list[Launch]]:
    """Returns the kernels of each name as launches that can run by themselves.

    Kernels of the same name in different layers are alike, but for their weights: all of them
    run in turn, so that caches hold no more of them than in a step.
    """
    launches: dict[str, list[Launch]] = {}
    tensors: Names = {}
    for part in step.parts:
        launches.setdefault(part.name, []).append(_alone(part, dict(tensors)))
        part.run(tensors)
    return launches


def kernels_alone(step: Step, bench: Bench, whole: Measurement) -> Columns:
    """Returns seconds and joules of all kernels of `step`, each measured at a stretch.

    The ratio to the step `whole` says how far it can be predicted from its operations.
    """
    device = bench.device
    seconds, joules, variance = 0.0, 0.0, 0.0
    for calls in launches_alone(step).values():
        replays, per_call = device.replayable(calls, REPLAYED_LAUNCHES)
        loop = Loop(calls=replays, launches_per_call=per_call)
        result = measured(device, bench.gauge, loop, bench.rules, bench.agree)
        seconds += len(calls) * result.seconds
        joules += len(calls) * (result.joules or 0.0)
        variance += (len(calls) * result.seconds * result.seconds_spread) ** 2
    spread = math.hypot(math.sqrt(variance) / seconds, whole.seconds_spread)
    ratio = seconds / whole.seconds
    return {
        "kernels_seconds": seconds,
        "kernels_joules": joules or None,
        "kernels_count": len(step.parts),
        "kernels_ratio": ratio,
        "kernels_ratio_spread": spread,
    }


def _alone(part: Part, before: Names) -> Launch:
    return lambda: part.run(dict(before))
