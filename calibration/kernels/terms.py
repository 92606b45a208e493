"""Terms that the kernel formulas share: counts, soft minima, caches, bounded corrections."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.smooth import at_least, smooth_max

Rows = Float[Array, "..."] | float
REGIME_SHARPNESS = 12.0
CORRECTION_BOUND = 0.5  # of log seconds


def exact_count(size: Rows, tile: float) -> Rows:
    """Returns how many tiles cover `size`: what a launch of integer sizes executes."""
    return jnp.ceil(size / tile)


def relaxed_count(size: Rows, tile: float) -> Rows:
    """Returns a differentiable twin of `exact_count`, for a search over real sizes."""
    return at_least(size, tile) / tile


def waves(units: Rows, sms: Rows, whole_share: Rows, count=exact_count) -> Rows:
    """Returns rounds of `units` over the SMs, quantised by `whole_share`."""
    share = units / sms
    return whole_share * count(share, 1.0) + (1.0 - whole_share) * share


def soft_minimum(seconds: Sequence[Rows], sharpness: float = REGIME_SHARPNESS) -> Array:
    """Returns the fastest of several ways, a little faster where they tie.

    min_p(t) = (sum t^-p)^(-1/p), scaled by the smallest.
    """
    stacked = jnp.log(jnp.stack(jnp.broadcast_arrays(*seconds)))
    low = jnp.min(stacked, axis=0, keepdims=True)
    excess = jnp.sum(jnp.exp(-sharpness * (stacked - low)), axis=0)
    return jnp.exp(low[0] - jnp.log(excess) / sharpness)


def uncached_bytes(
    moved_bytes: Rows, held_bytes: Rows, room_bytes: Rows, speedup: Rows
) -> Rows:
    """Returns bytes at the speed of HBM that take as long as `moved_bytes`.

    A working set of `held_bytes` that fits the L2 cache moves `speedup` times as fast.
    """
    fill = held_bytes / room_bytes
    cached = 1.0 / (1.0 + fill * fill * fill)
    return moved_bytes * (1.0 - cached + cached / speedup)


def throttled(seconds: Rows, compute: Rows, share: Rows, onset_seconds: Rows) -> Rows:
    """Returns `seconds` with the matrix units slowed by heat in long launches."""
    return seconds * (1.0 + share * compute / (compute + onset_seconds))


def corrected(
    seconds: Rows, values: Mapping[str, Array], terms: Mapping[str, Rows]
) -> Array:
    """Returns log seconds with a bounded polynomial of log sizes added.

    log t + b tanh(sum_i c_i x_i / b)
    """
    total = sum((values[name] * term for name, term in terms.items()), start=0.0)
    bent = CORRECTION_BOUND * jnp.tanh(total / CORRECTION_BOUND)
    return jnp.log(seconds) + bent


__all__ = [
    "corrected",
    "exact_count",
    "relaxed_count",
    "smooth_max",
    "soft_minimum",
    "throttled",
    "uncached_bytes",
    "waves",
]
