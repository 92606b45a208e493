"""How tokens pick experts, and how many experts of a step have any token.

Each token picks top_k of the experts one after the other without replacement, in proportion
to their popularity (successive sampling, the same as the largest of log popularity + Gumbel
noise). Popularity is a power law of the rank, w_i ~ i^(-skew); a skew of 0 is uniform.

Sums over experts take the first two as they are and the others by Gauss-Legendre quadrature
in the logarithm of i, so that the number of experts (at least 2) may be a traced number.
Nodes of the quadrature are no axis but variables of their own: a compiler then computes
everything about a configuration in one loop.

Compared with simulations of 8 to 384 experts, top_k of 1 to 8, 1 to 1024 tokens and skews of 0
to 1, active experts are within 1 %.
"""

import math
import operator
from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jaxlens import elementary, nodes
from jaxlens.nodes import Nodes
from jaxlens.pytrees import pytree

Scalar = Float[Array, ""] | float

HEAD = 2  # experts that are summed one by one
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(4)
IS_HEAD = (True,) * HEAD + (False,) * len(_POINTS)
ROUTING_STEPS = 2  # of Halley, from the same exponentials


@pytree
class Routing:
    """Experts from the most to the least popular, as nodes of a quadrature."""

    ranks: Nodes  # i, real-valued
    counts: Nodes  # how many experts a node stands for
    chances: Nodes  # that a token picks an expert
    log_misses: Nodes  # log(1 - chance)
    experts: Scalar
    top_k: Scalar


def routing(experts: Scalar, top_k: Scalar, skew: Scalar) -> Routing:
    """Returns the probability that a token picks an expert, by popularity.

        p(w) = 1 - (1 - a w / kappa)^kappa,    kappa = 1 + (top_k^2 - 1) / (1 - share),

    for a share = top_k / experts, with `a` such that all p add up to top_k. It is exact for
    a top_k of one and tends to the 1 - exp(-a w) of many draws (B. Rosen, "Asymptotic theory
    for successive sampling", Ann. Math. Stat. 43, 1972).
    """
    experts, top_k, skew = elementary.lifted(experts, top_k, skew)
    span = elementary.log((experts + 0.5) / (HEAD + 0.5))
    firsts = [elementary.constant(math.log(i + 1.0), span) for i in range(HEAD)]
    lows = 0.5 * (_POINTS + 1.0)
    logs = Nodes(
        [*firsts, *(float(np.log(HEAD + 0.5)) + span * x for x in lows.tolist())]
    )
    ranks = nodes.at_each(elementary.exp, logs)
    tail = [r * w for r, w in zip(ranks.values[HEAD:], _WEIGHTS.tolist(), strict=True)]
    scale = (experts - HEAD) / reduce(operator.add, tail)  # all of them, exactly
    counts = Nodes(
        [*(elementary.ones_like(span) for _ in firsts), *(x * scale for x in tail)]
    )
    weights = nodes.at_each(elementary.exp, -skew * logs)
    weights = weights * (experts / nodes.total(counts * weights))
    share = elementary.minimum(top_k / experts, 1.0 - 1e-6)
    kappa = 1.0 + (top_k * top_k - 1.0) / (1.0 - share)
    log_misses, chances, _ = _tuned(weights, counts, share, kappa)
    return Routing(
        ranks=ranks,
        counts=counts,
        chances=chances,
        log_misses=log_misses,
        experts=experts,
        top_k=top_k,
    )


@elementary.CustomJvp
def _tuned(
    weights: Nodes, counts: Nodes, share: Any, kappa: Any
) -> tuple[Nodes, Nodes, Any]:
    """log(1 - p) = kappa log(1 - a w / kappa) whose mean p is `share`; p and `a`.

    Halley's method on the log of the mean of 1 - p, from the `a` of equal experts. What is
    left after it is so small that series follow it.
    """
    target, inverse = elementary.log1p(-share), 1.0 / kappa
    wanted = target + elementary.log(nodes.total(counts))
    a = -kappa * elementary.expm1(target * inverse)
    part = nodes.at_each(elementary.minimum, a * inverse * weights, 1.0 - 1e-6)
    log_misses = kappa * nodes.at_each(elementary.log1p, -part)
    misses = nodes.at_each(elementary.exp, log_misses)
    along = weights / (1.0 - part)
    for _ in range(ROUTING_STEPS):
        held = counts * misses
        mean = nodes.total(held)
        first = nodes.total(held * along)
        second = (1.0 - inverse) * nodes.total(held * along * along)
        move = halley(elementary.log(mean) - wanted, mean, first, second)
        a, lost = a + move, move * along
        shifted = lost * inverse
        more = lost * (1.0 + shifted * (0.5 + shifted * (1.0 / 3.0 + 0.25 * shifted)))
        log_misses = log_misses - more
        misses = misses * (1.0 - more * (1.0 - 0.5 * more * (1.0 - (1.0 / 3.0) * more)))
        along = along * (1.0 + shifted * (1.0 + shifted * (1.0 + shifted)))
    return log_misses, 1.0 - misses, a


@_tuned.defjvp
def _tuned_jvp(primals, tangents):
    weights, counts, share, kappa = primals
    d_weights, d_counts, d_share, d_kappa = tangents
    log_misses, chances, a = _tuned(*primals)
    misses = 1.0 - chances
    part = nodes.at_each(elementary.minimum, a / kappa * weights, 1.0 - 1e-6)
    inside = nodes.at_each(
        lambda x: elementary.where(x < 1.0 - 1e-6, 1.0 / (1.0 - x), 0.0), part
    )
    # At a fixed `a`, and how `a` makes up for it.
    fixed = log_misses / kappa * d_kappa - inside * (a * d_weights - part * d_kappa)
    along = inside * weights
    wanted = nodes.total(d_counts) * (1.0 - share) - nodes.total(counts) * d_share
    given = nodes.total(d_counts * misses + counts * misses * fixed)
    d_a = (given - wanted) / nodes.total(counts * misses * along)
    d_log_misses = fixed - along * d_a
    outputs = (log_misses, chances, a)
    return outputs, (d_log_misses, -misses * d_log_misses, d_a)


def active_experts(
    tokens: Scalar, experts: Scalar, top_k: Scalar, skew: Scalar
) -> Scalar:
    """Returns the expected number of experts that at least one of `tokens` picks."""
    tokens, experts, top_k, skew = elementary.lifted(tokens, experts, top_k, skew)
    return active(tokens, routing(experts, top_k, skew))


def active(tokens: Scalar, spread: Routing) -> Scalar:
    """Returns `active_experts` of a routing that is known: sum_i 1 - (1 - p_i)^T.

    All of them for many tokens, top_k for one.
    """
    unused = spread.counts * nodes.at_each(elementary.exp, tokens * spread.log_misses)
    return nodes.total(spread.counts) - nodes.total(unused)


def halley(excess: Any, value: Any, first: Any, second: Any) -> Any:
    """Halley's step for log f = target from above, f falling; at most five of Newton's.

    Args:
        excess: log f - target.
        value: f.
        first: -f'.
        second: f''.
    """
    inverse = value / first
    curved = 0.5 * excess * (second * inverse / first - 1.0)
    return excess * inverse / elementary.maximum(1.0 - curved, 0.2)
