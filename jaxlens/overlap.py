"""A product and its collective, run in stages so that they overlap.

In S stages of 1/S of the rows each: the first chunk's product is exposed, then S - 1 chunks
are multiplied while the one before travels, and the last transfer is exposed:

    t = t_product(1/S) + (S - 1) max_w(t_product(1/S; SMs - comm), t_comm(1/S)) + t_comm(1/S)

Only while both run does the product lose the SMs that communicate. Smaller chunks pay the
efficiency of fewer rows and another launch. One stage is sequential and takes no SMs away.

In the manner of: EnergyLens, arXiv 2605.14249 (staged overlap with communication SMs).
"""

from jaxtyping import Array, Float

from jaxlens.smooth import smooth_max

Scalar = Float[Array, ""] | float
CONTENTION = 0.05  # part of both that does not overlap: shared HBM and L2; a prior


def staged_seconds(
    alone_seconds: Scalar,
    beside_seconds: Scalar,
    transfer_seconds: Scalar,
    stages: Scalar,
) -> Scalar:
    """Returns seconds of a product and its collective in `stages` (at least 1).

    All times are of one chunk: the product on all SMs, the product beside the collective,
    and the collective.
    """
    both = smooth_max(beside_seconds, transfer_seconds, CONTENTION)
    return alone_seconds + (stages - 1.0) * both + transfer_seconds
