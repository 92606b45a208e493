"""What an answer leans on that is a guess, or outside of what was seen."""

import math

from jaxlens.deployments import UNLIMITED
from jaxlens.precisions import UNITS
from jaxlens.profiles import ProfileCard
from jaxlens.requests import Request
from jaxlens.shapes import Experts, ModelShape

LOOSE_SPREAD = 0.3  # of the logarithm


def notes(request: Request) -> list[str]:
    """Returns what to know about the answer to `request`, a sentence each."""
    card, shape = request.card, request.shape
    found = [
        note for note in card.notes if request.gpus > 1 or "communication" not in note
    ]
    return [
        *found,
        *_communication_notes(request),
        *_eager_notes(shape, card),
        *_format_notes(shape, card),
        *_length_notes(request),
        *_knob_notes(request),
        *_range_notes(request),
    ]


def _communication_notes(request: Request) -> list[str]:
    """Serving runs hardly tell communication power apart: a fit leaves it at its prior."""
    link = request.card.coefficients["chip.link_watts"]
    loose = link.spread is not None and link.spread > LOOSE_SPREAD
    if request.gpus == 1 or link.origin != "fitted" or not loose:
        return []
    return [
        f"communication power is little more than a prior: link_watts is known to a "
        f"factor of {math.exp(link.spread or 0.0):.1f}"
    ]


def _eager_notes(shape: ModelShape, card: ProfileCard) -> list[str]:
    if card.fusion != "eager":
        return []
    found = ["eager execution: calibrated on prefill passes; decode steps extrapolate"]
    if any(isinstance(feed, Experts) for feed in shape.feeds):
        found.append("eager execution: launches of a loop over experts are an estimate")
    return found


def _format_notes(shape: ModelShape, card: ProfileCard) -> list[str]:
    formats = shape.formats
    used = {formats.attention, formats.feed_forward}
    if any(isinstance(feed, Experts) for feed in shape.feeds):
        used.add(formats.experts)
    missing = {UNITS[name] for name in used} & {"fp8", "fp4"} - set(card.formats)
    return [
        f"{card.chip_name} has no {unit} unit: such weights are multiplied in bf16"
        for unit in sorted(missing)
    ]


def _length_notes(request: Request) -> list[str]:
    most, workload = request.shape.max_context, request.workload
    length = float(workload.prompt_tokens) + float(workload.output_tokens)
    if most is None or length <= most:
        return []
    return [
        f"extrapolated: prompt + output = {length:,.0f} tokens exceed the model's "
        f"context of {most:,}"
    ]


def _knob_notes(request: Request) -> list[str]:
    layout, chip, card = request.deployment, request.profile.chip, request.card
    found = []
    clock, cap = float(layout.clock_hz), float(layout.power_cap_watts)
    steps = (clock - float(chip.min_hz)) / float(chip.step_hz)
    if clock != UNLIMITED and abs(steps - round(steps)) > 1e-3:
        nearest = float(chip.min_hz) + round(steps) * float(chip.step_hz)
        found.append(
            f"clock: {clock / 1e6:g} MHz lies between the supported steps; "
            f"the nearest is {nearest / 1e6:g} MHz"
        )
    curve = {
        name
        for name in ("knee_hz", "voltage_rise", "busy_watts")
        if card.coefficients[f"chip.{name}"].origin == "prior"
    }
    if min(clock, cap) != UNLIMITED and curve:
        found.append(f"clock and cap lean on priors: {', '.join(sorted(curve))}")
    span = max(float(layout.tensor_parallel), float(layout.expert_parallel))
    if span * float(layout.pipeline_parallel) > float(chip.node_gpus):
        found.append("communication between nodes is not calibrated")
    contention = card.coefficients["chip.overlap_contention"].source
    if layout.overlap and span > 1.0 and "prior" in contention:
        found.append("staged overlap is not calibrated: its contention is a prior")
    return found


def _range_notes(request: Request) -> list[str]:
    """What lies outside of the runs that the profile was fitted on, if it says which."""
    ranges = request.card.provenance.get("ranges", {})
    values = {**vars(request.workload), **vars(request.deployment)}
    values["gpus"] = request.gpus
    found = []
    for name, limits in ranges.items() if isinstance(ranges, dict) else ():
        value = values.get(name)
        if value is None or value == UNLIMITED:
            continue
        low, high = limits
        if not low <= value <= high:
            found.append(
                f"extrapolated: {name} = {value:g}, fitted from {low:g} to {high:g}"
            )
    return found
