"""How sure a prediction is: what scattered on unseen runs, and what coefficients leave open.

    sd^2 = scatter^2 + max(0, g^T C g - what it is on the runs of the fit)

of the logarithm. The scatter of a fitted profile is measured on architectures that were left
out of the fit, so it holds the uncertainty of the coefficients as far as those runs share it;
g^T C g, with g the elasticities and C the covariance of the coefficients (Laplace), widens an
interval where a question leans on a coefficient that the runs hardly told apart. Without a fit
of its chip and stack, C holds the spreads of the priors, and no interval is narrower than the
error of fits on chips that they have not seen (`TRANSFER`).
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens import elementary
from jaxlens.deployments import Deployment, Workload
from jaxlens.predictions import Estimate, exact, predict
from jaxlens.profiles import Profile, ProfileCard
from jaxlens.transformers import Model

NORMAL_80 = 1.2816  # half-width of the central 80 % of a standard normal
SCATTER = {
    "joules_per_output_token": "energy",
    "seconds_per_output_token": "latency",
}
TYPICAL = "coefficient_variance"  # in a profile's provenance: on the runs of the fit
# Measured: scatter of runs on a chip that the fit has not seen, and of runs of an architecture
# that it has not seen; ML.ENERGY leaderboard v2 and v3 (2025), Memory Gap (arXiv 2503.08311).
TRANSFER = {"energy": 0.21, "latency": 0.21}
UNSEEN = {"energy": 0.14, "latency": 0.13}


def intervals(
    estimate: Estimate, card: ProfileCard, variance: Mapping[str, float] | None = None
) -> dict[str, tuple[float, float]]:
    """Returns the central 80 % interval of energy and time per output token.

    Args:
        estimate: What was predicted.
        card: Where the profile's values come from.
        variance: Of the logarithm of each quantity, due to the coefficients, as
            `coefficient_variance` gives it; none by default.
    """
    result = {}
    for quantity, name in SCATTER.items():
        factor = math.exp(
            NORMAL_80 * deviation(card, name, (variance or {}).get(quantity))
        )
        value = float(getattr(estimate, quantity))
        result[quantity] = (value / factor, value * factor)
    return result


def deviation(card: ProfileCard, name: str, variance: float | None = None) -> float:
    """Returns the standard deviation of the logarithm of "energy" or "latency"."""
    own = 0.0 if variance is None else variance
    if name not in card.scatter:
        return max(TRANSFER[name], math.sqrt(UNSEEN[name] ** 2 + own))
    usual = float(card.provenance.get(TYPICAL, {}).get(name, 0.0))
    return math.sqrt(card.scatter[name] ** 2 + max(0.0, own - usual))


def coefficient_variance(
    model: Model,
    profile: Profile,
    card: ProfileCard,
    deployment: Deployment,
    workload: Workload,
) -> tuple[Estimate, dict[str, float]]:
    """Returns the estimate, and the variance of the logarithm that coefficients leave open.

    One pass without compilation: the coefficients are arrays, of which the first entry is the
    estimate and each other one standard deviation along an axis of the covariance.
    """
    names, axes = _axes(card)
    shifts = np.concatenate([np.zeros((1, axes.shape[1])), axes])
    many = exact(model, _moved(profile, names, shifts.T), deployment, workload)
    variance = {}
    for quantity in SCATTER:
        logs = np.log(np.atleast_1d(np.asarray(getattr(many, quantity), float)))
        variance[quantity] = float(np.sum((logs[1:] - logs[0]) ** 2))

    def first(leaf: jax.Array) -> jax.Array | float:
        return leaf[0] if np.ndim(leaf) else leaf

    return jax.tree.map(first, many), variance


def laplace(
    model: Model,
    profile: Profile,
    card: ProfileCard,
    deployment: Deployment,
    workload: Workload,
) -> dict[str, float]:
    """Returns g^T C g of the logarithm of each quantity, by Jacobian-vector products.

    The limit of `coefficient_variance` for small deviations.
    """
    names, axes = _axes(card)
    if not names:
        return {}

    def logs(shift: jax.Array) -> jax.Array:
        moved = _moved(profile, names, shift)
        estimate = predict(model, moved, deployment, workload)
        return jnp.log(jnp.stack([getattr(estimate, name) for name in SCATTER]))

    origin = jnp.zeros(len(names))

    def along(direction: jax.Array) -> jax.Array:
        return jax.jvp(logs, (origin,), (direction,))[1]

    slopes = jax.vmap(along)(jnp.asarray(axes, origin.dtype))
    variances = np.sum(np.asarray(slopes) ** 2, axis=0)
    return {name: float(v) for name, v in zip(SCATTER, variances, strict=True)}


def _axes(card: ProfileCard) -> tuple[tuple[str, ...], np.ndarray]:
    """Coefficients and the axes of their covariance: one standard deviation in each row."""
    if card.covariance_names:
        values, vectors = np.linalg.eigh(card.covariance)
        scaled = vectors * np.sqrt(np.maximum(values, 0.0))
        return card.covariance_names, scaled.T
    spreads = {
        name: coefficient.spread
        for name, coefficient in card.coefficients.items()
        if coefficient.spread is not None
        and coefficient.value > 0.0
        and name not in LEFT_OUT
    }
    return tuple(spreads), np.diag(list(spreads.values()))


# Settings of an engine rather than properties of it.
LEFT_OUT = ("stack.chunk_tokens", "stack.memory_share", "stack.overhead_bytes")


def _moved(
    profile: Profile, names: tuple[str, ...], shift: jax.Array | np.ndarray
) -> Profile:
    """The profile with the logarithms of `names` shifted; arrays where shifts are."""
    chip, stack = {}, {}
    for position, name in enumerate(names):
        layer, _, field = name.partition(".")
        owner, target = (
            (profile.chip, chip) if layer == "chip" else (profile.stack, stack)
        )
        target[field] = getattr(owner, field) * elementary.exp(shift[position])
    return Profile(
        chip=dataclasses.replace(profile.chip, **chip),
        stack=dataclasses.replace(profile.stack, **stack),
    )
