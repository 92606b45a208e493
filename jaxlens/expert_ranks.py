"""The busiest of the ranks that experts are spread over, which the others wait for.

What does not depend on how many tokens a step has is a `Placement`: steps of one deployment
share it.

Compared with simulations of 8 to 384 experts, top_k of 1 to 8, 1 to 1024 tokens, 2 to 64
ranks and skews of 0 to 1, the busiest rank is within 2 % in all but one in a hundred cases, and
4 % at worst (skew 1 with fewer than one token for a rank).
"""

from typing import Any

from jaxtyping import Array, Float

from jaxlens import elementary, nodes
from jaxlens.experts import IS_HEAD, Routing, halley, routing
from jaxlens.nodes import Nodes
from jaxlens.pytrees import pytree
from jaxlens.smooth import presence

Scalar = Float[Array, ""] | float

TINY = 1e-12
# -log of -log Phi(z) from LOWEST to HIGHEST, lowest power first: z is within 0.003 between
# -3 and 4, and 0.02 beyond. Fitted to values of scipy.special.log_ndtr.
LOWEST, HIGHEST = -4.5, 6.0  # standard deviations: as good as never, and as always
DOUBLE_LOG_PHI = (
    *(0.36453588, 1.15567758, 0.20817094, 0.03087037),
    *(0.00165158, -0.00023530, -0.00002493),
)
SLOPE = tuple(n * c for n, c in enumerate(DOUBLE_LOG_PHI))[1:]
TURN = tuple(n * c for n, c in enumerate(SLOPE))[1:]
# z of an exponent between -2.6 and 8, lowest power first, for a first guess only.
QUANTILES = (-0.3164, 1.0050, -0.1778, 0.02362, -0.00123)

# Small corrections of the busiest rank's load, tuned on simulations.
ROUNDING = 1.0 / 24.0  # variance that a whole number adds to a smooth one
BEND = 0.8 / 6.0  # of a skewed count's mean above the level that a normal one has
FEW, MANY = 2.0, 3.0  # copies on the busiest rank: collisions below, spread above


@pytree
class Placement:
    """Experts on ranks at random. Nodes are of the most popular expert of a rank."""

    routing: Routing
    ranks: Scalar
    local_experts: Scalar  # of a rank that has any
    shares: Nodes  # how many ranks
    popularities: Nodes  # mean load per token
    thirds: Nodes  # their cube roots
    slopes: Nodes  # popularities to the power of -2/3
    inverses: Nodes  # ... and of -1
    own_variances: Nodes  # of the load, per token
    joint_variances: Nodes  # ... and per token squared
    quantiles: Nodes  # about the score of a maximum, as if there was no other rank
    level: Scalar  # -log of the probability that no rank exceeds the maximum
    same_pairs: Scalar  # sum of p^2 over experts: two tokens pick the same one
    same_triples: Scalar  # sum of p^3


def busiest_rank(
    tokens: Scalar, experts: Scalar, top_k: Scalar, skew: Scalar, ranks: Scalar
) -> Scalar:
    """Returns the expected load of the busiest of `ranks` relative to the mean."""
    tokens, experts, top_k, skew, ranks = elementary.lifted(
        tokens, experts, top_k, skew, ranks
    )
    return busiest(tokens, placement(routing(experts, top_k, skew), ranks))


def busiest(tokens: Scalar, placed: Placement) -> Scalar:
    """Returns `busiest_rank` of a placement that is known.

    Experts are placed at random, experts / ranks on each rank. Where loads are of several
    copies (tokens times top_k), they spread about normally; where they are few, what counts
    is how many of them collide. One rank has no busiest one, for real-valued ranks too.
    """
    tokens = elementary.maximum(tokens, 1.0)
    top_k, ranks = placed.routing.top_k, placed.ranks
    many = _spread_maximum(placed, tokens)
    few = _collision_maximum(placed, tokens)
    along = elementary.clip((many - FEW) / (MANY - FEW), 0.0, 1.0)
    along = along * along * (3.0 - 2.0 * along)
    load = few + along * (many - few)
    most = elementary.minimum(top_k, placed.local_experts)
    load = elementary.minimum(load, tokens * most)
    relative = load * ranks / (tokens * top_k)
    return 1.0 + presence(ranks) * (relative - 1.0)


def placement(spread: Routing, ranks: Scalar) -> Placement:
    """Returns how loads per token spread over `ranks`, by their most popular expert.

    The other experts of a rank are any less popular ones. Variances are those of independent
    loads with the same maximum: the total of all ranks is fixed, which takes the same from
    each.
    """
    experts, top_k = spread.experts, spread.top_k
    chances, counts = spread.chances, spread.counts
    used = elementary.minimum(ranks, experts)  # further ranks have nothing to do
    local = experts / used
    others = elementary.maximum(experts - 1.0, 1.0)
    widened = experts / others
    squares = chances * chances
    inverse_top = 1.0 / top_k
    repeats = 1.0 - (top_k - 1.0) * inverse_top * widened * chances
    repeats = nodes.at_each(elementary.maximum, repeats, 0.0)
    sampled = chances - squares + inverse_top * squares * repeats
    inverse = 1.0 / nodes.at_each(elementary.maximum, _below(counts), TINY)

    def mean_below(values: Nodes) -> Nodes:
        return _below(counts * values) * inverse

    first, noise = mean_below(chances), mean_below(sampled)
    more = local - 1.0
    joint = mean_below(squares) - first * first
    joint = nodes.at_each(elementary.maximum, joint, 0.0) * widened
    shares, log_shares = _shares(spread, local, others)
    popularities = chances + more * first
    inverses = 1.0 / popularities
    thirds = nodes.at_each(
        lambda x: elementary.exp(elementary.log(x) * (1.0 / 3.0)), popularities
    )
    level = used * elementary.log((used + 0.25) / (used - 0.375))
    held = counts * squares
    return Placement(
        routing=spread,
        ranks=ranks,
        local_experts=local,
        shares=shares,
        popularities=popularities,
        thirds=thirds,
        slopes=thirds * inverses,
        inverses=inverses,
        own_variances=sampled + more * noise,
        joint_variances=more * joint,
        quantiles=_quantile(log_shares - elementary.log(level)),
        level=level,
        same_pairs=nodes.total(held),
        same_triples=nodes.total(held * chances),
    )


def _shares(spread: Routing, local: Scalar, others: Scalar) -> tuple[Nodes, Nodes]:
    """How many ranks have a node's expert as the most popular one, and its logarithm."""
    counts = spread.counts
    inverse = 1.0 / (others - 0.5 * (local - 2.0))
    alone = 1.0 - inverse * (spread.ranks - 1.0)
    alone = nodes.at_each(elementary.maximum, alone, 1e-6)
    logs = (local - 1.0) * nodes.at_each(elementary.log, alone)
    tops = counts * nodes.at_each(elementary.exp, logs)
    scale = spread.experts / local / nodes.total(tops)
    log_counts = nodes.at_each(_log, counts)
    return tops * scale, logs + log_counts + elementary.log(scale)


def _spread_maximum(placed: Placement, tokens: Scalar) -> Scalar:
    """Expected maximum of loads whose power 2/3 is normal, as it is for Poisson counts.

    The probability that no rank exceeds x is a product over ranks. Its value at the
    expected maximum is close to that of equal normal loads at their Blom score (G. Blom,
    "Statistical Estimates and Transformed Beta-Variables", 1958):

        sum_i n_i log Phi(z_i(x)) = ranks log((ranks - 3/8) / (ranks + 1/4)).
    """
    means, variances = _loads(placed, tokens)
    level, alone = placed.level, placed.inverses * (1.0 / tokens)
    deviations = nodes.at_each(elementary.sqrt, variances)
    size = means / deviations
    width = deviations * alone  # 1 / size
    offsets = 1.5 * size - (1.0 / 6.0) * width
    start = (offsets + placed.quantiles) * width * placed.thirds * placed.thirds
    known = (1.5 * size * placed.slopes, offsets, placed.shares, level)
    powered, exceed = _level_crossing(
        *known, elementary.stop_gradient(nodes.most(start) * (1.0 / 1.5))
    )
    # A mean above the median: what a skewed count adds, less if many ranks compete.
    exceed = exceed * (1.0 / level)
    contenders = 1.0 / (nodes.total(placed.shares * exceed * exceed) + TINY)
    doublings = elementary.log2(elementary.maximum(contenders, 1.0))
    ratio = nodes.at_each(elementary.minimum, variances * alone, 1.0)
    bend = nodes.total(placed.shares * exceed * ratio * ratio)
    # The variance of the maximum of n standard normal values, as a function of log2(n).
    variance = 1.0 / (1.0 + doublings * (0.43 + 0.042 * doublings))
    return tokens * powered * elementary.sqrt(powered) + BEND * bend * variance


def _loads(placed: Placement, tokens: Scalar) -> tuple[Nodes, Nodes]:
    """Mean and variance of the load of a rank, by its most popular expert."""
    means = tokens * placed.popularities
    variances = tokens * (placed.own_variances + tokens * placed.joint_variances)
    squared = means * means
    rounding = ROUNDING * squared / (squared + 0.5625)
    return means, variances + rounding + 1e-6 * squared


@elementary.CustomJvp
def _level_crossing(
    slopes: Nodes, offsets: Nodes, shares: Nodes, level: Any, start: Any
) -> tuple[Any, Nodes]:
    """Solution of f(y) = -sum_i n_i log Phi(m_i y - b_i) = level, and its -log Phi.

    A step of Halley's method on log f, which is nearly a parabola in y, and one of Newton's.
    That last move is so small that log Phi after it is linear in it.
    """
    z = nodes.at_each(elementary.clip, slopes * start - offsets, LOWEST, HIGHEST)
    exceed, slope = _exceeding(z)
    held = shares * exceed
    total, steep = nodes.total(held), held * slopes
    bend = slope * slope - _series(TURN, z)
    curved = nodes.total(steep * slopes * bend)
    log_level = elementary.log(level)
    excess = elementary.log(total) - log_level
    y = start + halley(excess, total, nodes.total(steep * slope), curved)
    z = nodes.at_each(elementary.clip, slopes * y - offsets, LOWEST, HIGHEST)
    exceed, slope = _exceeding(z)
    held, along = shares * exceed, slopes * slope
    total = nodes.total(held)
    move = (elementary.log(total) - log_level) * (total / nodes.total(held * along))
    kept = nodes.at_each(elementary.maximum, 1.0 - move * along, 0.0)
    return elementary.maximum(y + move, TINY), exceed * kept


@_level_crossing.defjvp
def _level_crossing_jvp(primals, tangents):
    slopes, offsets, shares, _, _ = primals
    d_slopes, d_offsets, d_shares, d_level, _ = tangents
    y, exceed = _level_crossing(*primals)
    z = nodes.at_each(elementary.clip, slopes * y - offsets, LOWEST, HIGHEST)
    lost = exceed * _series(SLOPE, z)
    direct = d_slopes * y - d_offsets
    lower = nodes.total(d_shares * exceed - shares * lost * direct)
    dy = (lower - d_level) / nodes.total(shares * lost * slopes)
    return (y, exceed), (dy, -lost * (direct + slopes * dy))


def _exceeding(z: Nodes) -> tuple[Nodes, Nodes]:
    """-log Phi(z) = exp(-P(z)), and P'; its second derivative has P'^2 - P''."""
    power = _series(DOUBLE_LOG_PHI, z)
    return nodes.at_each(elementary.exp, -power), _series(SLOPE, z)


def _quantile(log_share: Nodes) -> Nodes:
    """About the z at which -log Phi(z) is exp(-log_share)."""
    return _series(QUANTILES, nodes.at_each(elementary.clip, log_share, -2.5, 8.0))


def _series(coefficients: tuple[float, ...], z: Nodes) -> Nodes:
    """A polynomial, lowest power first."""
    value = coefficients[-1] * z + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * z + coefficient
    return value


def _collision_maximum(placed: Placement, tokens: Scalar) -> Scalar:
    """Expected maximum of few copies: 1, and more for pairs, triples and fours.

    Pairs and triples of copies on one rank have exact expectations, from the sums of p^2
    and p^3; how many ranks have them is about Poisson.
    """
    experts, local = placed.routing.experts, placed.local_experts
    copies = tokens * placed.routing.top_k
    same_pair = tokens * (tokens - 1.0) * placed.same_pairs
    same_triple = tokens * (tokens - 1.0) * (tokens - 2.0) * placed.same_triples
    beside = (local - 1.0) / elementary.maximum(experts - 1.0, 1.0)
    two = elementary.maximum(local - 2.0, 0.0)
    third = beside * two / elementary.maximum(experts - 2.0, 1.0)
    ordered = copies * (copies - 1.0)
    pairs = 0.5 * (same_pair + beside * (ordered - same_pair))
    mixed = 3.0 * ((copies - 2.0) * same_pair - same_triple)
    distinct = ordered * (copies - 2.0) - same_triple - mixed
    triples = (same_triple + beside * mixed + third * distinct) / 6.0
    pairs, triples = elementary.maximum(pairs, 0.0), elementary.maximum(triples, 0.0)
    growth = 3.0 * triples / (pairs + TINY)
    # The total is fixed: without a pair, the other ranks hold more.
    less = (copies - 0.5) / (copies * (copies + 1.0))
    fixed = (2.0 * pairs - 2.0 / 3.0 * growth * copies) * less
    twos = pairs / (1.0 - 1.1 * elementary.clip(fixed, 0.0, 0.6))
    threes = triples * elementary.exp(-0.3 * growth)
    fours = 0.25 * threes * growth * elementary.exp(-0.5 * growth)
    missing = elementary.exp(-twos) + elementary.exp(-threes) + elementary.exp(-fours)
    return 4.0 - missing


def _below(values: Nodes) -> Nodes:
    """Sums over the experts that are less popular than each node: half of its own."""
    rows, total = [], 0.0
    for own, alone in zip(reversed(values.values), reversed(IS_HEAD), strict=True):
        rows.append(total if alone else total + 0.5 * own)
        total = total + own
    return Nodes(rows[::-1])


def _log(count: Any) -> Any:
    # Two experts leave none to the others.
    return elementary.log(elementary.maximum(count, TINY))
