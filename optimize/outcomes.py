"""What a search may ask of a deployment: every number of an estimate, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
from jaxtyping import Array, Float

from jaxlens.deployments import Deployment, Workload
from jaxlens.predictions import NUMBERS, predict
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float

DERIVED = {
    "output_tokens_per_second_per_gpu": "tokens per second, of each GPU",
    "watts": "of all GPUs",
    "gpu_seconds_per_output_token": "GPUs / throughput",
    "cost_per_output_token": "GPU time and energy at `Prices`",
    "sequences_per_stage": "batch / (data x pipeline parallel): at least 1",
}
QUANTITIES = (*NUMBERS, *DERIVED)
SEQUENCES = "sequences"  # per replica: batch = sequences x data parallel
FIELDS = tuple(f.name for f in fields(Deployment) if not f.metadata.get("static"))
KNOBS = (*FIELDS, SEQUENCES)


@pytree
class Prices:
    """What time and energy cost, in any currency."""

    per_gpu_second: Scalar = 0.0
    per_joule: Scalar = 0.0


@pytree
class Question:
    """What all points of a search have in common."""

    model: Model
    profile: Profile
    base: Deployment  # knobs that are not searched
    workload: Workload
    prices: Prices


def outcome(question: Question, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns every quantity of one deployment; scalar in, scalars out."""
    deployment = deployed(question.base, values)
    estimate = predict(question.model, question.profile, deployment, question.workload)
    gpu_seconds = estimate.gpus / estimate.output_tokens_per_second
    replicas = deployment.data_parallel * deployment.pipeline_parallel
    prices, joules = question.prices, estimate.joules_per_output_token
    return {
        **{name: getattr(estimate, name) for name in NUMBERS},
        "output_tokens_per_second_per_gpu": 1.0 / gpu_seconds,
        "watts": estimate.watts_per_gpu * estimate.gpus,
        "gpu_seconds_per_output_token": gpu_seconds,
        "cost_per_output_token": (
            prices.per_gpu_second * gpu_seconds + prices.per_joule * joules
        ),
        "sequences_per_stage": deployment.batch / replicas,
    }


def completed(
    base: Deployment, names: Sequence[str], points: Float[np.ndarray, "point name"]
) -> Float[np.ndarray, "point field"]:
    """Returns all fields of deployments, in the order of `FIELDS`, from those searched."""
    values = {name: np.full(len(points), getattr(base, name), float) for name in FIELDS}
    values |= {name: points[:, position] for position, name in enumerate(names)}
    if SEQUENCES in values:
        values["batch"] = values[SEQUENCES] * values["data_parallel"]
    return np.stack([values[name] for name in FIELDS], axis=1)


def deployed(base: Deployment, values: Mapping[str, Scalar]) -> Deployment:
    """Returns `base` with the knobs in `values`."""
    knobs = {name: value for name, value in values.items() if name != SEQUENCES}
    found = replace(base, **knobs)
    if SEQUENCES not in values:
        return found
    return replace(found, batch=values[SEQUENCES] * found.data_parallel)
