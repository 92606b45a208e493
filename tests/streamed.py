"""A function to sweep, in a module of its own so that other processes can import it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxlens.spaces import Space, choices, grid, integers, space
from jaxlens.streams import Groups, Histogram, Keep, Objective

KEEP = Keep(
    objectives=(Objective("cost"), Objective("rate", -1.0)),
    top=7,
    front=(Objective("cost"), Objective("rate", -1.0), Objective("wait")),
    front_capacity=512,
    groups=Groups("kind", 4),
    histograms=(Histogram("rate", 0.01, 1000.0, 64),),
    required=("load",),
)


def trade(shared: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns three objectives in conflict, a kind and two limits, all made up."""
    size, speed, load = values["size"], values["speed"], values["load"]
    rate = (speed + 1.0) * size / (1.0 + 0.02 * size)
    return {
        "cost": shared * (size + 0.3 * load) * (0.5 + 0.01 * speed * speed),
        "rate": rate,
        "wait": (1.0 + load) / rate + 0.003 * size,
        "kind": values["kind"],
        "unused": size,
        "slack_load": 1.0 - load * (1.0 + values["kind"]) / (4.0 * size),
        "slack_rate": rate / 5.0 - 1.0,
    }


def trades(sizes: int = 30, loads: int = 23) -> Space:
    """Returns a space of four axes whose counts are no powers of two."""
    return space(
        integers("size", 1, sizes),
        choices("kind", [0.0, 1.0, 2.0, 5.0]),  # 5 is no kind
        grid("speed", 0.1, 9.0, 37),
        grid("load", 0.0, 40.0, loads),
    )


def troubled(shared: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `trade`, with a cost that is no number for the largest size."""
    found = trade(shared, values)
    zero = jnp.where(values["size"] == 30.0, 0.0, 1.0)
    return {**found, "cost": found["cost"] * zero / zero}
