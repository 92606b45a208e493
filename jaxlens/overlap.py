"""A product and its collective, run in stages so that they overlap.

In S stages of 1/S of the rows each: the first chunk's product is exposed, then S - 1 chunks
are multiplied while the one before travels, and the last transfer is exposed:

    t = t_product(1/S) + (S - 1) max_w(t_product(1/S; beside), t_comm(1/S)) + t_comm(1/S)

w is the chip's contention: the part of both that L2 and the schedulers keep from overlapping.
Beside a collective a product runs on the SMs that are left, and HBM serves the bytes of both:
its roofline counts them all. Only then: one stage is sequential and takes no SMs away. Smaller
chunks pay the efficiency of fewer rows, another read of the weights, another launch and another
startup of the collective. Energy does not overlap: FLOPs, bytes and the power of the links over
the time that the collective takes on its SMs add up.

In the manner of: EnergyLens, arXiv 2605.14249 (staged overlap with communication SMs).
"""

from jaxtyping import Array, Float

from jaxlens.smooth import smooth_max
from jaxlens.works import Message

Scalar = Float[Array, ""] | float
HBM_PASSES = 2.0  # bytes of HBM per byte on the wire: read to send, written on arrival


def staged_seconds(
    alone_seconds: Scalar,
    beside_seconds: Scalar,
    transfer_seconds: Scalar,
    stages: Scalar,
    contention: Scalar,
) -> Scalar:
    """Returns seconds of a product and its collective in `stages` (at least 1).

    All times are of one chunk: the product on all SMs, the product beside the collective,
    and the collective. `contention` is the chip's: 0 overlaps all of it, 1 nothing.
    """
    both = smooth_max(beside_seconds, transfer_seconds, contention)
    return alone_seconds + (stages - 1.0) * both + transfer_seconds


def hbm_bytes(message: Message) -> Scalar:
    """Returns the HBM traffic of a collective on each rank; none for one rank.

    On the wire of each rank go (n - 1) / n of the payload, and twice that in an all-reduce.
    """
    around = 2.0 if message.kind == "all-reduce" else 1.0
    wire = around * (message.ranks - 1.0) / message.ranks * message.payload_bytes
    return HBM_PASSES * wire
