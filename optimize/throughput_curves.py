"""Throughput, latency and energy of replicas that share a GPU, at every batch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Array, Float

from jaxlens import batch, spaces
from jaxlens.deployments import Deployment, Workload
from jaxlens.optimize.replicas import Anchor, anchored, replica, shared
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.requests import Request
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float
Values = Float[np.ndarray, " batch"]


@pytree
class Question:
    """What all batches and numbers of replicas have in common."""

    model: Model
    profile: Profile
    base: Deployment
    workload: Workload
    anchor: Anchor


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """One replica alone on its GPU, as it was measured."""

    batch: float
    seconds_per_output_token: float
    watts_per_gpu: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One GPU with replicas of 1 to N sequences each, by batch of a replica."""

    batch: Values
    output_tokens_per_second: Values
    seconds_per_output_token: Values
    joules_per_output_token: Values
    watts_per_gpu: Values
    busy_share: Values
    efficiency: Values  # T(B) / (B T(1)), T of one replica


def throughput_curves(
    request: Request,
    most_sequences: int,
    most_replicas: int = 1,
    measured: MeasuredRun | None = None,
) -> list[Curve]:
    """Returns the curve of one replica, of two, ... that share a GPU, at every batch."""
    asked = Question(
        model=request.model,
        profile=request.profile,
        base=request.deployment,
        workload=request.workload,
        anchor=Anchor() if measured is None else anchor(request, measured),
    )
    space = spaces.space(
        spaces.integers("replicas", 1, most_replicas),
        spaces.integers("batch", 1, most_sequences),
    )
    found = batch.evaluate(priced, asked, space)
    shape = most_replicas, most_sequences
    columns = {name: values.reshape(shape) for name, values in found.items()}
    batches = np.arange(1.0, most_sequences + 1.0)
    alone = columns["output_tokens_per_second"][0]
    return [
        Curve(
            batch=batches,
            efficiency=alone / (batches * alone[0]),
            **{name: values[row] for name, values in columns.items()},
        )
        for row in range(most_replicas)
    ]


def anchor(request: Request, measured: MeasuredRun) -> Anchor:
    """Returns what a measured run of one replica says beyond the profile of a request."""
    numbers = (measured.batch, measured.seconds_per_output_token)
    watts = measured.watts_per_gpu
    if not all(
        math.isfinite(n) and n > 0.0
        for n in (*numbers, *(() if watts is None else (watts,)))
    ):
        raise ValueError(
            f"measured: expected a batch, seconds and watts above 0, got {measured}."
        )
    deployment = replace(request.deployment, batch=float(measured.batch))
    profile = request.profile
    one = replica(request.model, profile, deployment, request.workload)
    return anchored(
        one, measured.seconds_per_output_token, watts, profile.chip, deployment
    )


def priced(asked: Question, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns what so many replicas of such a batch do together on one GPU."""
    deployment = replace(asked.base, batch=values["batch"])
    profile = asked.profile
    one = replica(asked.model, profile, deployment, asked.workload, asked.anchor)
    found = shared(one, values["replicas"], profile.chip, deployment)
    return {
        "output_tokens_per_second": found.output_tokens_per_second,
        "seconds_per_output_token": found.seconds_per_output_token,
        "joules_per_output_token": found.joules_per_output_token,
        "watts_per_gpu": found.watts_per_gpu,
        "busy_share": found.busy_share,
    }
