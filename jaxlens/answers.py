"""The estimate of one deployment as flat numbers by stable names."""

import math
from collections.abc import Mapping
from typing import Any

from jaxlens.caveats import notes
from jaxlens.intervals import coefficient_variance
from jaxlens.intervals import intervals as intervals_of
from jaxlens.predictions import NUMBERS, Estimate
from jaxlens.requests import Request
from jaxlens.wall_plug import WallPlug

OPERATIONS = (
    "decode_seconds_by_operation",
    "decode_joules_by_operation",
    "prefill_seconds_by_operation",
    "prefill_joules_by_operation",
)


def answer(
    request: Request,
    estimate: Estimate,
    wall: WallPlug | None = None,
    variance: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Returns an estimate as plain numbers in SI, with breakdown and provenance.

    `variance` is that of `intervals.coefficient_variance`, found here where not given.
    """
    numbers: dict[str, Any] = {name: float(getattr(estimate, name)) for name in NUMBERS}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{name}: expected a finite number, got {value}; "
                f"check the coefficients of {request.card.chip} and "
                f"{request.card.stack}."
            )
    numbers["gpus"] = request.gpus
    causes = {name: float(value) for name, value in vars(estimate.causes).items()}
    if wall is not None:
        for name, value in vars(wall).items():
            numbers[f"wall_plug_{name}"] = float(value)
        causes["host"] = numbers["wall_plug_joules_host_per_output_token"]
    numbers |= intervals(request, estimate, variance)
    numbers["breakdown"] = {
        "joules_per_output_token_by_cause": causes,
        **{
            name: {key: float(value) for key, value in getattr(estimate, name).items()}
            for name in OPERATIONS
        },
        "memory_bytes": {
            name.removesuffix("_bytes"): float(value)
            for name, value in vars(estimate.memory).items()
        },
    }
    numbers["provenance"] = provenance(request)
    return numbers


def intervals(
    request: Request, estimate: Estimate, variance: Mapping[str, float] | None = None
) -> dict[str, list[float]]:
    """Returns `{"joules_per_output_token_interval": [low, high], …}`."""
    if variance is None:
        parts = request.model, request.profile, request.card
        variance = coefficient_variance(*parts, request.deployment, request.workload)[1]
    found = intervals_of(estimate, request.card, variance)
    return {
        f"{key}_interval": [float(low), float(high)]
        for key, (low, high) in found.items()
    }


def provenance(request: Request) -> dict[str, Any]:
    """Returns what an answer rests on: model, chip, stack and every coefficient."""
    card = request.card
    by_origin: dict[str, list[str]] = {"fitted": [], "prior": [], "datasheet": []}
    for name, coefficient in card.coefficients.items():
        by_origin.setdefault(coefficient.origin, []).append(name)
    return {
        "model": request.shape.name,
        "weights": request.shape.formats.feed_forward,
        "kv": request.shape.kv_format,
        "chip": card.chip,
        "stack": card.stack,
        "calibrated": card.fitted,
        "fitted_on": list(card.fitted_on),
        "fitted_rows": card.rows,
        "created": card.created,
        "coefficients": by_origin,
        "notes": notes(request),
    }
