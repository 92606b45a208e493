"""Elasticities: by how many percent an answer moves per percent of each input.

    elasticity of y in x = d ln y / d ln x = (x / y) dy / dx

of the relaxed model, where degrees of parallelism are real numbers too. Inputs that are zero
have none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.predictions import Estimate, predict
from jaxlens.profiles import Profile
from jaxlens.transformers import Model

QUANTITIES = (
    "joules_per_output_token",
    "joules_prefill_per_output_token",
    "joules_decode_per_output_token",
    "joules_per_request",
    "joules_to_first_token",
    "seconds_per_output_token",
    "seconds_prefill",
    "output_tokens_per_second",
    "watts_per_gpu",
)

# A knob that is left open takes the value of the limit behind it.
LIMITS = {
    "deployment.clock_hz": "chip.max_hz",
    "deployment.power_cap_watts": "chip.tdp_watts",
    "deployment.chunk_tokens": "stack.chunk_tokens",
}


def inputs(
    profile: Profile, deployment: Deployment, workload: Workload
) -> dict[str, float]:
    """Returns every number that `predict` takes beside the model, by dotted name."""
    groups = {
        "deployment": deployment,
        "workload": workload,
        "chip": profile.chip,
        "stack": profile.stack,
    }
    return {
        f"{group}.{name}": float(value)
        for group, owner in groups.items()
        for name, value in vars(owner).items()
        if not isinstance(value, bool)
    }


def elasticities(
    model: Model,
    profile: Profile,
    deployment: Deployment,
    workload: Workload,
    quantities: Sequence[str] = QUANTITIES,
) -> dict[str, dict[str, float]]:
    """Returns d ln(quantity) / d ln(input), by quantity and by dotted name of the input.

    Forward mode, all inputs at once and without compilation: for a single point that is
    several times faster than to compile anything, and one pass serves all quantities.
    """
    unknown = [name for name in quantities if name not in QUANTITIES]
    if unknown:
        raise ValueError(
            f"quantity: expected of {', '.join(QUANTITIES)}, got {unknown[0]!r}."
        )
    known = inputs(profile, deployment, workload)
    names = [
        name for name, value in known.items() if value != 0.0 and value != UNLIMITED
    ]
    arguments = (profile, deployment, workload)
    values = [jnp.asarray(known[name]) for name in names]

    def answers(numbers: list[Any]) -> list[Any]:
        changed = _replaced(arguments, dict(zip(names, numbers, strict=True)))
        estimate: Estimate = predict(model, *changed)
        return [jnp.log(getattr(estimate, name)) for name in quantities]

    def along(direction: list[Any]) -> list[Any]:
        return jax.jvp(answers, (values,), (direction,))[1]

    scaled = np.diag([known[name] for name in names])
    columns = [jnp.asarray(column, values[0].dtype) for column in scaled]
    rates = jax.vmap(along)(columns)
    return {
        quantity: _with_limits(dict(zip(names, np.asarray(rate).tolist(), strict=True)))
        for quantity, rate in zip(quantities, rates, strict=True)
    }


def relative_change(elasticity: float, factor: float = 1.1) -> float:
    """Returns the relative change of an answer when an input grows by `factor`.

    factor^elasticity - 1: the local power law, carried on.
    """
    return factor**elasticity - 1.0


def _replaced(
    arguments: tuple[Profile, Deployment, Workload], numbers: dict[str, Any]
) -> tuple[Profile, Deployment, Workload]:
    def group(name: str, owner: Any) -> Any:
        prefix = f"{name}."
        return replace(
            owner,
            **{
                key.removeprefix(prefix): value
                for key, value in numbers.items()
                if key.startswith(prefix)
            },
        )

    profile, deployment, workload = arguments
    return (
        Profile(chip=group("chip", profile.chip), stack=group("stack", profile.stack)),
        group("deployment", deployment),
        group("workload", workload),
    )


def _with_limits(found: dict[str, float]) -> dict[str, float]:
    """Adds knobs that are left open: tightening one acts like tightening its limit."""
    open_knobs = {
        knob: found[limit]
        for knob, limit in LIMITS.items()
        if knob not in found and limit in found
    }
    return {**open_knobs, **found}
