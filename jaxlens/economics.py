"""Money and carbon of output tokens, from prices that the user states: none come with it.

    dollars per token = GPU-seconds per token x price + wall joules per token x price of energy
    grams per token   = wall joules per token x carbon intensity of the grid

Wall joules include the host and the building (`wall_plug`). Carbon is that of operation: what
it took to make the machines is not in it.
"""

from jaxtyping import Array, Float

from jaxlens.predictions import Estimate
from jaxlens.pytrees import pytree
from jaxlens.wall_plug import wall_plug

Scalar = Float[Array, ""] | float

MILLION = 1e6
SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6
# Plausible values: beyond them a number is a slip or in another unit.
MOST = {
    "dollars_per_gpu_hour": (1e4, "it is the price of one GPU for one hour"),
    "dollars_per_kwh": (100.0, "grids charge 0.05 to 0.5"),
    "grams_co2_per_kwh": (5000.0, "grids emit 10 to 1000 g"),
    "host_watts": (1e5, "it is the server outside its GPUs, per GPU"),
}
MOST_PUE = 5.0


@pytree
class Tariff:
    """Prices and intensities in SI, and what stands around the GPUs."""

    dollars_per_gpu_second: Scalar = 0.0
    dollars_per_joule: Scalar = 0.0
    grams_co2_per_joule: Scalar = 0.0
    host_watts: Scalar = 0.0  # of the server outside its GPUs, per GPU
    pue: Scalar = 1.0  # power usage effectiveness of the building


@pytree
class Economics:
    """What output tokens cost, and what a joule at the wall buys."""

    dollars_per_million_output_tokens: Scalar
    grams_co2_per_million_output_tokens: Scalar
    wall_joules_per_output_token: Scalar
    output_tokens_per_joule: Scalar  # at the wall


def tariff(
    *,
    dollars_per_gpu_hour: float = 0.0,
    dollars_per_kwh: float = 0.0,
    grams_co2_per_kwh: float = 0.0,
    host_watts: float = 0.0,
    pue: float = 1.0,
) -> Tariff:
    """Returns prices as people state them in SI, each checked to be plausible.

    >>> tariff(dollars_per_gpu_hour=3.6).dollars_per_gpu_second
    0.001
    """
    given = {
        "dollars_per_gpu_hour": dollars_per_gpu_hour,
        "dollars_per_kwh": dollars_per_kwh,
        "grams_co2_per_kwh": grams_co2_per_kwh,
        "host_watts": host_watts,
    }
    for name, (most, hint) in MOST.items():
        _check(name, given[name], 0.0, most, hint)
    _check("pue", pue, 1.0, MOST_PUE, "1 is a building that takes nothing itself")
    return Tariff(
        dollars_per_gpu_second=dollars_per_gpu_hour / SECONDS_PER_HOUR,
        dollars_per_joule=dollars_per_kwh / JOULES_PER_KWH,
        grams_co2_per_joule=grams_co2_per_kwh / JOULES_PER_KWH,
        host_watts=float(host_watts),
        pue=float(pue),
    )


def economics(estimate: Estimate, rates: Tariff) -> Economics:
    """Returns cost and carbon of the output tokens of an estimate."""
    wall = wall_plug(estimate, rates.host_watts, rates.pue)
    joules = wall.joules_per_output_token
    gpu_seconds = estimate.gpus / estimate.output_tokens_per_second
    rent = gpu_seconds * rates.dollars_per_gpu_second
    return Economics(
        dollars_per_million_output_tokens=(
            MILLION * (rent + joules * rates.dollars_per_joule)
        ),
        grams_co2_per_million_output_tokens=(
            MILLION * joules * rates.grams_co2_per_joule
        ),
        wall_joules_per_output_token=joules,
        output_tokens_per_joule=1.0 / joules,
    )


def _check(name: str, value: float, low: float, high: float, hint: str) -> None:
    if isinstance(value, bool) or not low <= value <= high:
        words = name.replace("_", " ")
        raise ValueError(
            f"{words}: expected a number from {low:g} to {high:g}, got {value}; {hint}."
        )
