"""How tokens spread over experts: active experts and the busiest rank.

An expert of relative popularity w is picked by a token with probability

    p(w) = 1 - exp(-a w),    a such that the mean of p is top_k / experts,

the inclusion probability of sampling without replacement (successive sampling; B. Rosen,
"Asymptotic theory for successive sampling", Ann. Math. Stat. 43, 1972). Popularities follow a
power law of the rank, w ~ u^(-skew) with u in (0, 1), represented by midpoints of equal
shares of the experts, so that the number of experts may be a traced number.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Scalar = Float[Array, ""] | float

SHARES = 16
_LOG_RANKS = tuple(
    float(np.mean(np.log(np.linspace(i, i + 1, 2001)[1::2] / SHARES)))
    for i in range(SHARES)
)


def probabilities(experts: Scalar, top_k: Scalar, skew: Scalar) -> list[Scalar]:
    """Returns the probability that a token picks an expert, for `SHARES` equal shares.

    Sums to top_k over all experts. Valid for top_k < experts and a skew of 0 to about 1.
    """
    weights = [jnp.exp(-skew * log_rank) for log_rank in _LOG_RANKS]
    mean = sum(weights) / SHARES
    weights = [weight / mean for weight in weights]
    share = top_k / experts
    scale = -jnp.log1p(-jnp.minimum(share, 1.0 - 1e-6))  # exact without skew
    for _ in range(3):  # Newton: the mean of 1 - exp(-scale w) is concave in scale
        missed = [jnp.exp(-scale * weight) for weight in weights]
        excess = 1.0 - sum(missed) / SHARES - share
        slope = sum(m * w for m, w in zip(missed, weights, strict=True)) / SHARES
        scale = scale - excess / slope
    return [1.0 - jnp.exp(-scale * weight) for weight in weights]


def active_experts(
    tokens: Scalar, experts: Scalar, top_k: Scalar, skew: Scalar
) -> Scalar:
    """Returns the expected number of experts that at least one of `tokens` picks.

    sum_i 1 - (1 - p_i)^T. All of them for many tokens, top_k for one.
    """
    chances = probabilities(experts, top_k, skew)
    unused = [jnp.exp(tokens * jnp.log1p(-jnp.minimum(p, 1.0 - 1e-6))) for p in chances]
    return experts * (1.0 - sum(unused) / SHARES)


def busiest_rank(
    tokens: Scalar, experts: Scalar, top_k: Scalar, skew: Scalar, ranks: Scalar
) -> Scalar:
    """Returns the load of the busiest of `ranks` relative to the mean, at least 1.

    Loads are sums over experts / ranks experts, placed at random: their variance comes from
    popularity and from sampling, and the expected maximum of n normal values of unit
    variance is close to its Blom score (G. Blom, 1958),

        max = 1 + e_n sqrt(variance) / mean,    e_n = Phi^-1((n - 3/8) / (n + 1/4)).
    """
    chances = probabilities(experts, top_k, skew)
    share = top_k / experts
    local = experts / ranks
    sampled = sum(p * (1.0 - p) for p in chances) / SHARES
    spread = sum((p - share) * (p - share) for p in chances) / SHARES
    placed = spread * (1.0 - 1.0 / ranks)  # the total load of all ranks is fixed
    variance = local * (tokens * sampled + tokens * tokens * placed)
    relative = variance / (tokens * share * local) ** 2
    # A tiny constant keeps the square root's gradient finite where nothing varies.
    return 1.0 + _blom(ranks) * (jnp.sqrt(relative + 1e-12) - 1e-6)


def _blom(ranks: Scalar) -> Scalar:
    """Expected maximum of `ranks` standard normal values; 0 for one rank."""
    from jax.scipy.special import ndtri

    extra = jnp.maximum(ranks - 1.0, 0.0)
    level = (0.5 + extra + 0.125) / (1.25 + extra)
    return ndtri(level) - ndtri(jnp.asarray(0.5))
