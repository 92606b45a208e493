"""How sure a prediction is: an interval from the scatter of runs that no fit has seen.

The residual scatter of a fitted profile is measured on architectures that were left out of
the fit, so it holds the uncertainty of the coefficients as well. `laplace` instead pushes the
covariance of the coefficients through the model, one Jacobian-vector product a direction.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.deployments import Deployment, Workload
from jaxlens.predictions import Estimate, predict
from jaxlens.profiles import Profile, ProfileCard
from jaxlens.transformers import Model

NORMAL_80 = 1.2816  # half-width of the central 80 % of a standard normal
SCATTER = {
    "joules_per_output_token": "energy",
    "seconds_per_output_token": "latency",
}


def intervals(
    estimate: Estimate, card: ProfileCard, variance: dict[str, float] | None = None
) -> dict[str, tuple[float, float]]:
    """Returns the central 80 % interval of each quantity whose scatter is known.

    Args:
        estimate: What was predicted.
        card: Where the profile's values come from; without a fit nothing is returned.
        variance: More variance of the logarithm, by quantity, such as `laplace`.
    """
    result = {}
    for quantity, name in SCATTER.items():
        if name in card.scatter:
            total = card.scatter[name] ** 2 + (variance or {}).get(quantity, 0.0)
            factor = math.exp(NORMAL_80 * math.sqrt(total))
            value = float(getattr(estimate, quantity))
            result[quantity] = (value / factor, value * factor)
    return result


def laplace(
    model: Model,
    profile: Profile,
    card: ProfileCard,
    deployment: Deployment,
    workload: Workload,
) -> dict[str, float]:
    """Returns the variance of the logarithm of each quantity due to the coefficients.

    g^T C g, with C the covariance of the fitted coefficients' logarithms and g the
    elasticities of the quantity, along the eigenvectors of C.
    """
    if not card.covariance_names:
        return {}
    values, vectors = np.linalg.eigh(card.covariance)
    scaled = vectors * np.sqrt(np.maximum(values, 0.0))

    def logs(shift: jax.Array) -> jax.Array:
        moved = _moved(profile, card.covariance_names, shift)
        estimate = predict(model, moved, deployment, workload)
        return jnp.log(jnp.stack([getattr(estimate, name) for name in SCATTER]))

    origin = jnp.zeros(len(values))

    def along(direction: jax.Array) -> jax.Array:
        return jax.jvp(logs, (origin,), (direction,))[1]

    slopes = jax.vmap(along)(jnp.asarray(scaled.T, origin.dtype))
    variances = np.sum(np.asarray(slopes) ** 2, axis=0)
    return {name: float(v) for name, v in zip(SCATTER, variances, strict=True)}


def _moved(profile: Profile, names: tuple[str, ...], shift: jax.Array) -> Profile:
    chip, stack = {}, {}
    for position, name in enumerate(names):
        layer, _, field = name.partition(".")
        owner, target = (
            (profile.chip, chip) if layer == "chip" else (profile.stack, stack)
        )
        target[field] = getattr(owner, field) * jnp.exp(shift[position])
    return Profile(
        chip=dataclasses.replace(profile.chip, **chip),
        stack=dataclasses.replace(profile.stack, **stack),
    )
