"""What users ask for, in plain numbers: checked once, with the cure for what is wrong."""

import math
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.fitted_profiles import read_fitted_profile
from jaxlens.hardware import Chip
from jaxlens.layouts import check_layout as check_layout
from jaxlens.memory import memory
from jaxlens.models import load_shape
from jaxlens.precisions import FORMATS
from jaxlens.profiles import (
    DEFAULT_STACK,
    Profile,
    ProfileCard,
    load_profile,
    load_profile_card,
)
from jaxlens.quantizations import recast
from jaxlens.shapes import ModelShape
from jaxlens.transformers import Model, model

PROCESSOR = "processor"  # vendor of what `jaxlens measure --device cpu` describes
# Plausible values: beyond them a number is a slip or in another unit.
MOST_GPUS = 4096  # in one direction of a layout
COUNTS = {
    "tensor_parallel": "tp",
    "expert_parallel": "ep",
    "pipeline_parallel": "pp",
    "data_parallel": "dp",
}
RANGES: dict[str, tuple[str, float, float, str]] = {
    "batch": ("batch", 1.0, 1e6, "it counts sequences in flight, over all replicas"),
    "chunk_tokens": ("chunk tokens", 1.0, 1e6, "engines take 512 to 16384"),
    "stages": ("stages", 1.0, 64.0, "1 is no overlap"),
    "routing_skew": ("routing skew", 0.0, 1.0, "0 is uniform"),
    "prompt_tokens": ("prompt", 1.0, 1e7, "it counts tokens"),
    "output_tokens": ("output", 1.0, 1e6, "it counts tokens"),
    "output_tokens_cv": ("output cv", 0.0, 10.0, "0 is one length for all"),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One deployment of one model, checked and ready for `predict`."""

    shape: ModelShape
    model: Model
    profile: Profile
    card: ProfileCard
    deployment: Deployment
    workload: Workload

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        layout = self.deployment
        degrees = layout.tensor_parallel, layout.pipeline_parallel, layout.data_parallel
        return round(math.prod(float(degree) for degree in degrees))


def prepare(
    source: str | PathLike[str] | dict[str, Any],
    gpu: str | None = None,
    *,
    stack: str | None = None,
    profile: str | Path | None = None,
    weights: str | None = None,
    kv: str | None = None,
    deployment: Deployment | None = None,
    workload: Workload | None = None,
    network_bytes_per_s: float | None = None,
) -> Request:
    """Returns a request whose every part is known, plausible and fits together.

    Memory is not checked: see `check_memory`.

    Args:
        source: HuggingFace id, path to a `config.json` or its contents.
        gpu: Chip id or file; by default the chip of `profile`.
        stack: Stack id or file; by default the stack of `profile`.
        profile: Fitted profile; by default the one that comes with the package.
        weights: Number format of the weights; by default the checkpoint's own.
        kv: Number format of the KV cache; by default the checkpoint's own.
        deployment: Layout and knobs, as plain numbers.
        workload: Lengths, as plain numbers.
        network_bytes_per_s: Between nodes, per GPU; by default the chip's.

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    shape = load_shape(source)
    if kv is not None and kv not in FORMATS:
        raise ValueError(f"kv: expected one of {', '.join(FORMATS)}, got {kv!r}.")
    if weights is not None or kv is not None:
        shape = recast(shape, weights or shape.formats.feed_forward, kv)
    gpu, stack = _pair(gpu, stack, profile)
    loaded = load_profile(gpu, stack, profile=profile)
    card = load_profile_card(gpu, stack, profile)
    _check_power_is_known(card)
    deployment = check_deployment(loaded.chip, deployment or Deployment())
    if card.fusion == "eager":
        deployment = replace(deployment, fused=False)
    if network_bytes_per_s is not None:
        rate = _number("network", network_bytes_per_s, 1e6, 1e13, "bytes/s")
        chip = replace(loaded.chip, network_bytes_per_s=rate)
        loaded = replace(loaded, chip=chip)
    network = network_bytes_per_s is not None or has_network(card)
    problems = check_layout(shape, loaded.chip, deployment, network=network)
    if problems:
        raise ValueError(problems[0])
    return Request(
        shape=shape,
        model=model(shape),
        profile=loaded,
        card=card,
        deployment=deployment,
        workload=check_workload(workload or Workload()),
    )


def _pair(
    gpu: str | None, stack: str | None, profile: str | Path | None
) -> tuple[str, str]:
    if profile is not None and (gpu is None or stack is None):
        fitted = read_fitted_profile(Path(profile).expanduser())
        gpu, stack = gpu or fitted.chip, stack or fitted.stack
    if gpu is None:
        raise ValueError(
            "gpu: expected an id such as h100-sxm, got none; "
            "`jaxlens gpus` lists what there is."
        )
    return gpu, stack or DEFAULT_STACK


def _check_power_is_known(card: ProfileCard) -> None:
    """Refuses a processor whose energy nobody has measured: its watts are placeholders."""
    known = card.coefficients["chip.hbm_j_per_byte"]
    measured = known.origin == "fitted" or known.source.startswith("measured")
    if card.vendor == PROCESSOR and not measured:
        raise ValueError(
            f"gpu: expected a chip whose power is known, got the processor {card.chip}, "
            "of which only times were measured; see the report of `jaxlens calibrate` "
            "for those."
        )


def has_network(card: ProfileCard) -> bool:
    """Returns whether systems with this chip come with a network between nodes."""
    return not card.coefficients["chip.network_bytes_per_s"].source.startswith("prior")


def check_workload(workload: Workload) -> Workload:
    """Returns `workload` as floats, each within what is plausible."""
    return replace(workload, **_ranged(workload))


def check_deployment(chip: Chip, deployment: Deployment) -> Deployment:
    """Returns `deployment` as floats, each within what is plausible on `chip`."""
    values = _ranged(deployment)
    for name, where in COUNTS.items():
        degree = _number(
            where, getattr(deployment, name), 1.0, MOST_GPUS, cure="1 does not split"
        )
        if degree != round(degree):
            raise ValueError(
                f"{where}: expected a whole number, got {degree:g}; round it."
            )
        values[name] = degree
    values["communication_sms"] = _number(
        "communication SMs",
        deployment.communication_sms,
        1.0,
        float(chip.sms) - 1.0,
        cure="the rest of the SMs multiply meanwhile",
    )
    values["clock_hz"] = _limited(
        "clock",
        deployment.clock_hz,
        chip.min_hz,
        chip.max_hz,
        1e-6,
        "MHz",
        "plain numbers are hertz",
    )
    values["power_cap_watts"] = _limited(
        "power cap",
        deployment.power_cap_watts,
        chip.idle_watts,
        chip.tdp_watts,
        1.0,
        "W",
        "idle power to TDP",
    )
    return replace(deployment, **values)


def _ranged(owner: Deployment | Workload) -> dict[str, float]:
    values = {}
    for field in fields(owner):
        if field.name in RANGES:
            where, low, high, cure = RANGES[field.name]
            value = getattr(owner, field.name)
            if value != UNLIMITED or field.name != "chunk_tokens":
                value = _number(where, value, low, high, cure=cure)
            values[field.name] = value
    return values


def _number(
    where: str, raw: Any, low: float, high: float, unit: str = "", cure: str = ""
) -> float:
    value = _float(raw)
    if not low <= value <= high:
        unit = unit and f" {unit}"
        hint = cure and f"; {cure}"
        got = repr(raw) if isinstance(raw, str | bool | None) else f"{value:g}"
        raise ValueError(
            f"{where}: expected a number from {low:g} to {high:,.10g}{unit}, "
            f"got {got}{hint}."
        )
    return value


def _float(raw: Any) -> float:
    """The number that `raw` is; NaN if it is none."""
    try:
        return math.nan if isinstance(raw, str | bool) else float(raw)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _limited(
    where: str, raw: Any, low: Any, high: Any, scale: float, unit: str, what: str = ""
) -> float:
    """A limit, or `UNLIMITED`; ranges are shown in the unit that people use."""
    value = _float(raw)
    if value == UNLIMITED or float(low) <= value <= float(high):
        return value
    what = what and f" ({what})"
    raise ValueError(
        f"{where}: expected {float(low) * scale:.0f} to {float(high) * scale:.0f} "
        f"{unit}{what}, got {value * scale:g} {unit}; choose within it or leave it out."
    )


def memory_slack_bytes(request: Request, batch: float | None = None) -> float:
    """Returns bytes that are left on each GPU; negative if they do not suffice."""
    deployment = request.deployment
    if batch is not None:
        deployment = replace(deployment, batch=float(batch))
    profile = request.profile
    held = memory(
        request.model, profile.chip, profile.stack, deployment, request.workload
    )
    return float(held.slack_bytes)


def largest_batch(request: Request) -> int:
    """Returns the largest batch that fits in memory, at most the one asked; 0 if none.

    Slack decreases with the batch: bisection.
    """
    layout = request.deployment
    least = round(float(layout.data_parallel) * float(layout.pipeline_parallel))
    low, high = least, max(least, int(layout.batch))
    if memory_slack_bytes(request, low) < 0.0:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if memory_slack_bytes(request, middle) >= 0.0:
            low = middle
        else:
            high = middle - 1
    return low


def check_memory(request: Request) -> None:
    """Raises `ValueError` with the largest batch that fits, unless all of it fits."""
    if memory_slack_bytes(request) >= 0.0:
        return
    chip, stack = request.profile.chip, request.profile.stack
    held = memory(request.model, chip, stack, request.deployment, request.workload)
    budget = float(chip.hbm_bytes) * float(stack.memory_share)
    batch = largest_batch(request)
    raise ValueError(
        f"memory: expected at most {budget / 1e9:.1f} GB per GPU, "
        f"got {(budget - float(held.slack_bytes)) / 1e9:.1f} GB "
        f"(weights {float(held.weights_bytes) / 1e9:.1f}, "
        f"KV cache {float(held.kv_bytes) / 1e9:.1f}); "
        + (
            f"the largest batch that fits is {batch}; or take more GPUs."
            if batch
            else "no batch fits: take more GPUs or a smaller number format."
        )
    )


def check_wall_plug(host_watts: float | None, pue: float | None) -> None:
    """Raises `ValueError` unless both are plausible, where they are given."""
    if host_watts is not None:
        _number("host watts", host_watts, 0.0, 1e5, "W", "per GPU, outside the GPUs")
    if pue is not None:
        _number("pue", pue, 1.0, 5.0)
