"""What a case says about the coefficients: the gradient of its predicted log-time.

    feature_i = d log t / d log theta_i

for the coefficients theta of chip and stack, by differentiation of the same roofline
that calibration fits. Sizes are appended with a small weight: they part cases that the
present coefficients cannot tell apart.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens import rooflines
from jaxlens.kernel_works import works
from jaxlens.measure.cases import Case
from jaxlens.measure.suites import size_features
from jaxlens.profiles import Profile
from jaxlens.works import Work

SIZE_WEIGHT = 0.05


def features(cases: Sequence[Case], profile: Profile) -> np.ndarray:
    """Returns one row per case; columns are comparable within a kind only."""
    rows: list[list[float]] = [[] for _ in cases]
    asked = [works(one.kind, dict(one.sizes)) for one in cases]
    groups: dict[Any, list[int]] = {}
    for position, one in enumerate(asked):
        groups.setdefault(jax.tree.structure(one), []).append(position)
    for positions in groups.values():
        gradients = _gradients([asked[i] for i in positions], profile)
        for i, gradient in zip(positions, gradients, strict=True):
            sizes = [SIZE_WEIGHT * value for value in size_features(cases[i])]
            rows[i] = [*gradient.tolist(), *sizes]
    width = max(map(len, rows), default=0)
    return np.array([row + [0.0] * (width - len(row)) for row in rows])


def _gradients(asked: Sequence[Mapping[str, Work]], profile: Profile) -> np.ndarray:
    names = [
        (layer, field.name)
        for layer in ("chip", "stack")
        for field in dataclasses.fields(getattr(profile, layer))
    ]
    start = jnp.array([0.0] * len(names))

    def log_seconds(logs: jax.Array, one: Mapping[str, Work]) -> jax.Array:
        layers: dict[str, dict[str, Any]] = {"chip": {}, "stack": {}}
        for i, (layer, name) in enumerate(names):
            layers[layer][name] = getattr(getattr(profile, layer), name) * jnp.exp(
                logs[i]
            )
        machine = rooflines.Machine(
            chip=dataclasses.replace(profile.chip, **layers["chip"]),
            stack=dataclasses.replace(profile.stack, **layers["stack"]),
            clock_share=1.0,
            sm_share=1.0,
        )
        seconds = [rooflines.kernel(part, machine).seconds for part in one.values()]
        return jnp.log(jnp.sum(jnp.stack(seconds)))

    stacked = jax.tree.map(lambda *values: jnp.array(values, dtype=start.dtype), *asked)
    rows = jax.vmap(jax.grad(log_seconds), in_axes=(None, 0))
    slopes = jax.jit(rows)(start, stacked)
    return np.asarray(slopes)
