"""Maximum, minimum and rounding that keep a gradient, each with its error bound.

All are homogeneous of degree one in the quantities they compare, so they are safe for
seconds and bytes alike in float32, and need at most one square root.
"""

from jaxtyping import Array, Float

from jaxlens import elementary

Scalar = Float[Array, ""] | float


@elementary.CustomJvp
def smooth_max(a: Scalar, b: Scalar, softness: Scalar) -> Scalar:
    """Returns a maximum of `a >= 0` and `b >= 0` that is smooth where they tie.

    max_w(a, b) = (a + b + sqrt((a - b)^2 + 4 w a b)) / 2

    `softness` w = 0 is the hard maximum and w = 1 the sum: the share of two resources that
    do not overlap. Exact where either is zero; at the tie it overshoots by the factor
    1 + sqrt(w), its largest relative error.
    """
    return 0.5 * (a + b + _root(a, b, softness))


def _root(a: Scalar, b: Scalar, softness: Scalar) -> Scalar:
    difference = a - b
    return elementary.sqrt(difference * difference + 4.0 * softness * a * b)


@smooth_max.defjvp
def _smooth_max_jvp(primals, tangents):
    a, b, softness = primals
    da, db, dw = tangents
    root = _root(a, b, softness)
    inverse = 1.0 / elementary.where(
        root > 0.0, root, 1.0
    )  # a = b = 0: any subgradient
    along_a = 0.5 * (1.0 + (a - b + 2.0 * softness * b) * inverse)
    along_b = 0.5 * (1.0 + (b - a + 2.0 * softness * a) * inverse)
    along_w = a * b * inverse
    return 0.5 * (a + b + root), along_a * da + along_b * db + along_w * dw


def smooth_min(a: Scalar, b: Scalar, softness: Scalar) -> Scalar:
    """Returns a minimum of `a >= 0` and `b > 0` that is smooth where they tie.

    min_w(a, b) = a b / max_w(a, b). At the tie it undershoots by the factor
    1 / (1 + sqrt(w)), its largest relative error.
    """
    return a * b / smooth_max(a, b, softness)


def at_least(x: Scalar, tile: Scalar) -> Scalar:
    """Returns `x` rounded up to a `tile`, relaxed: sqrt(x^2 + tile^2).

    Between 1/2 and sqrt(2) times the exact `tile * ceil(x / tile)`: low just above a
    multiple of few tiles, high at exactly one tile, and right for none and for many.
    """
    return elementary.sqrt(x * x + tile * tile)


def presence(ranks: Scalar) -> Scalar:
    """Returns 0 at one rank and 1 from two ranks on, with a continuous derivative.

    1 - max(0, 2 - n)^2: exact at every integer, so that a collective of one rank is free.
    """
    missing = elementary.maximum(0.0, 2.0 - ranks)
    return 1.0 - missing * missing
