"""Seconds of a collective: protocol regimes, topology and the SMs that it may use.

    t = alpha + hops alpha_hop + bytes_wire / min(sms b_sm, eff B_link)

An all-reduce takes the faster of two protocols: every rank reads every other's data at once
(one shot: few steps, (n-1) V on the wire), or a ring / switch reduction (2 (n-1)/n V on the
wire, a step for each rank). Ranks of several nodes reduce inside the node first and across
nodes on 1 / node of the data. One rank costs nothing, for real-valued ranks too.

Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication
Operations in MPICH", IJHPCA 19(1), 2005 (alpha-beta costs).
"""

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.hardware import Chip, Stack
from jaxlens.smooth import presence, smooth_min
from jaxlens.works import Message

Scalar = Float[Array, ""] | float
PROTOCOL_SOFTNESS = 0.05


def seconds(message: Message, chip: Chip, stack: Stack, sms: Scalar) -> Scalar:
    """Returns seconds of `message` when `sms` SMs work for it."""
    payload, ranks = message.payload_bytes, message.ranks
    if message.kind == "all-reduce":
        return all_reduce(payload, ranks, chip, stack, sms)
    if message.kind == "all-to-all":
        return all_to_all(payload, ranks, chip, stack, sms, message.stride)
    if message.kind == "send":
        return send(payload, ranks, chip, stack, message.stride)
    return all_gather(payload, ranks, chip, stack, sms)


def link_bytes_per_s(chip: Chip, stack: Stack, sms: Scalar) -> Scalar:
    """Returns the rate of the links of a node that `sms` SMs can drive, per GPU."""
    driven = sms * stack.collective_sm_bytes_per_s
    return smooth_min(
        driven,
        chip.link_bytes_per_s * stack.collective_byte_efficiency,
        PROTOCOL_SOFTNESS,
    )


def all_reduce(
    payload_bytes: Scalar, ranks: Scalar, chip: Chip, stack: Stack, sms: Scalar
) -> Scalar:
    """Returns seconds to sum `payload_bytes` over `ranks`, on every rank."""
    near, far = _split(ranks, chip)
    rate = link_bytes_per_s(chip, stack, sms)
    steps = stack.collective_hop_seconds * 2.0 * (near - 1.0)
    one_shot = (near - 1.0) * (1.0 / rate) * payload_bytes
    ring = steps + 2.0 * (near - 1.0) / (near * rate) * payload_bytes
    faster = smooth_min(one_shot, ring + 1e-12, PROTOCOL_SOFTNESS)
    inside = presence(near) * stack.collective_seconds + faster
    return inside + 2.0 * _across(payload_bytes * (1.0 / near), far, chip, stack)


def all_gather(
    payload_bytes: Scalar, ranks: Scalar, chip: Chip, stack: Stack, sms: Scalar
) -> Scalar:
    """Returns seconds to collect `payload_bytes` (of all ranks together) on every rank.

    A reduce-scatter takes as long: the same data in the other direction.
    """
    near, far = _split(ranks, chip)
    rate = link_bytes_per_s(chip, stack, sms)
    startup = presence(near) * stack.collective_seconds
    steps = stack.collective_hop_seconds * (near - 1.0)
    inside = startup + steps + (near - 1.0) / (near * rate) * payload_bytes
    return inside + _across(payload_bytes * (1.0 / near), far, chip, stack)


def all_to_all(
    payload_bytes: Scalar,
    ranks: Scalar,
    chip: Chip,
    stack: Stack,
    sms: Scalar,
    stride: Scalar = 1.0,
) -> Scalar:
    """Returns seconds to exchange `payload_bytes` per rank, equal parts for each.

    `stride` GPUs lie between two ranks: 8 ranks of 8 GPUs are 8 nodes and not one.
    """
    near, far = _split(ranks, chip, stride)
    rate = link_bytes_per_s(chip, stack, sms)
    startup = presence(near) * stack.collective_seconds
    inside = startup + (1.0 - 1.0 / near) / (far * rate) * payload_bytes
    return inside + _across(payload_bytes, far, chip, stack)


def send(
    payload_bytes: Scalar,
    ranks: Scalar,
    chip: Chip,
    stack: Stack,
    stride: Scalar = 1.0,
) -> Scalar:
    """Returns seconds to hand `payload_bytes` from one pipeline stage to the next.

    `ranks` are the stages, of `stride` GPUs each: beyond a node it is the network.
    """
    _, far = _split(ranks, chip, stride)
    rate = chip.link_bytes_per_s * stack.collective_byte_efficiency
    near_seconds = stack.collective_seconds + payload_bytes * (1.0 / rate)
    network = 1.0 / chip.network_bytes_per_s
    far_seconds = chip.network_seconds + payload_bytes * network
    crosses = presence(far)
    return (1.0 - crosses) * near_seconds + crosses * far_seconds


def _split(ranks: Scalar, chip: Chip, stride: Scalar = 1.0) -> tuple[Scalar, Scalar]:
    """Ranks inside a node and nodes. The kink at a full node is real: costs jump there."""
    share = elementary.minimum(
        1.0, stride / chip.node_gpus
    )  # a rank may span several nodes
    far = elementary.maximum(1.0, ranks * share)
    return ranks / far, far


def _across(payload_bytes: Scalar, nodes: Scalar, chip: Chip, stack: Stack) -> Scalar:
    startup = presence(nodes) * chip.network_seconds
    pace = (nodes - 1.0) / nodes * (1.0 / chip.network_bytes_per_s)
    return startup + pace * payload_bytes
