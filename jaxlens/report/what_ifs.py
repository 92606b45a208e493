"""What would change if one thing about a deployment were different."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxlens.deployments import Deployment, Workload
from jaxlens.exploring import estimate
from jaxlens.layouts import check_layout
from jaxlens.predictions import Estimate
from jaxlens.quantizations import recast
from jaxlens.requests import Request, has_network
from jaxlens.transformers import model

HALVES_AND_DOUBLES = (0.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """One change, what the deployment takes then, or why it cannot be."""

    change: str
    estimate: Estimate | None = None
    problem: str = ""


def what_ifs(request: Request) -> list[WhatIf]:
    """Returns a deployment's neighbours: clock, cap, batch, layout, formats, lengths."""
    return [_judged(change, asked) for change, asked in _changes(request)]


def _judged(change: str, asked: Request) -> WhatIf:
    problems = check_layout(
        asked.shape,
        asked.profile.chip,
        asked.deployment,
        network=has_network(asked.card),
    )
    if problems:
        return WhatIf(change=change, problem=problems[0])
    found = estimate(asked)
    short = -float(found.memory_slack_bytes)
    if short > 0.0:
        lacking = f"memory: {short / 1e9:.0f} GB per GPU too little"
        return WhatIf(change=change, estimate=found, problem=lacking)
    return WhatIf(change=change, estimate=found)


def _changes(request: Request) -> list[tuple[str, Request]]:
    return [
        *_clocks(request),
        *_batches(request),
        *_layouts(request),
        *_formats(request),
        *_lengths(request),
    ]


def _deployed(request: Request, change: Callable[[Deployment], Deployment]) -> Request:
    return replace(request, deployment=change(request.deployment))


def _clocks(request: Request) -> list[tuple[str, Request]]:
    chip, asked = request.profile.chip, float(request.deployment.clock_hz)
    low, high = float(chip.min_hz), float(chip.max_hz)
    step, now = float(chip.step_hz), min(asked, float(chip.max_hz))
    found = []
    for share in (0.6, 0.8, 1.0):
        steps = round((share * high - low) / step)
        clock = min(high, max(low, low + steps * step))
        if abs(clock - now) > 0.5 * step:
            moved = _deployed(request, lambda d, c=clock: replace(d, clock_hz=c))
            found.append((f"clock {clock * 1e-6:.0f} MHz", moved))
    cap = 0.7 * float(chip.tdp_watts)
    capped = _deployed(request, lambda d: replace(d, power_cap_watts=cap))
    return [*found, (f"power cap {cap:.0f} W", capped)]


def _batches(request: Request) -> list[tuple[str, Request]]:
    layout = request.deployment
    least = float(layout.data_parallel) * float(layout.pipeline_parallel)
    found = []
    for factor in HALVES_AND_DOUBLES:
        batch = factor * float(layout.batch)
        if batch >= least:
            moved = _deployed(request, lambda d, b=batch: replace(d, batch=b))
            found.append((f"batch {batch:g}", moved))
    return found


def _layouts(request: Request) -> list[tuple[str, Request]]:
    """Half and twice the tensor parallel ranks; experts that are spread stay spread."""
    layout, found = request.deployment, []
    degree, spread = float(layout.tensor_parallel), float(layout.expert_parallel)
    for factor in HALVES_AND_DOUBLES:
        ranks = factor * degree
        if ranks < 1.0:
            continue
        experts = spread * factor if spread > 1.0 else spread
        layout_knobs = {"tensor_parallel": ranks, "expert_parallel": max(1.0, experts)}
        moved = _deployed(request, lambda d, k=layout_knobs: replace(d, **k))
        found.append((f"tensor parallel {ranks:g}", moved))
    return found


def _formats(request: Request) -> list[tuple[str, Request]]:
    shape, found = request.shape, []
    for weights, kv, words in (
        ("fp8", shape.kv_format, "fp8 weights"),
        (shape.formats.feed_forward, "fp8", "fp8 KV cache"),
    ):
        other = recast(shape, weights, kv)
        if other != shape:
            found.append((words, replace(request, shape=other, model=model(other))))
    return found


def _lengths(request: Request) -> list[tuple[str, Request]]:
    def sent(**lengths: float) -> Request:
        workload: Workload = replace(request.workload, **lengths)
        return replace(request, workload=workload)

    prompt = float(request.workload.prompt_tokens)
    output = float(request.workload.output_tokens)
    return [
        (f"prompts of {2.0 * prompt:g} tokens", sent(prompt_tokens=2.0 * prompt)),
        (f"outputs of {2.0 * output:g} tokens", sent(output_tokens=2.0 * output)),
    ]
