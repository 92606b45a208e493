from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxlens import collectives, load_profile
from jaxlens.works import Message

PROFILE = load_profile("h100-sxm", "vllm-0.11")
# Round numbers: 100 GB/s links that need no SMs to speak of, 8 GPUs a node, 10 GB/s network.
CHIP = replace(
    PROFILE.chip,
    link_bytes_per_s=1e11,
    node_gpus=8.0,
    network_bytes_per_s=1e10,
    network_seconds=2e-5,
)
STACK = replace(
    PROFILE.stack,
    collective_seconds=1e-5,
    collective_hop_seconds=1e-6,
    collective_byte_efficiency=1.0,
    collective_sm_bytes_per_s=1e13,
)
SMS = 20.0
KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all")


def seconds(kind, payload, ranks, stride=1.0, chip=CHIP, stack=STACK, sms=SMS):
    message = Message(kind=kind, payload_bytes=payload, ranks=ranks, stride=stride)
    return float(collectives.seconds(message, chip, stack, sms))


def test_a_large_all_reduce_is_a_ring():
    # 2 x 7/8 x 1 GB over 100 GB/s, and 14 hops
    expected = 1e-5 + 14 * 1e-6 + 2 * 7 / 8 * 1e9 / 1e11
    assert seconds("all-reduce", 1e9, 8.0) == pytest.approx(expected, rel=0.03)


def test_a_small_all_reduce_is_one_shot():
    # 7 x 8 kB at once, cheaper than 14 hops
    expected = 1e-5 + 7 * 8e3 / 1e11
    assert seconds("all-reduce", 8e3, 8.0) == pytest.approx(expected, rel=0.03)


def test_gathers_and_exchanges_by_hand():
    gather = 1e-5 + 7e-6 + 7 / 8 * 1e9 / 1e11
    assert seconds("all-gather", 1e9, 8.0) == pytest.approx(gather, rel=0.01)
    assert seconds("reduce-scatter", 1e9, 8.0) == seconds("all-gather", 1e9, 8.0)
    exchange = 1e-5 + 7 / 8 * 1e9 / 1e11
    assert seconds("all-to-all", 1e9, 8.0) == pytest.approx(exchange, rel=0.01)
    assert seconds("send", 1e9, 2.0) == pytest.approx(1e-5 + 1e9 / 1e11)


def test_across_nodes_the_network_carries_what_the_node_has_reduced():
    # Two nodes: the node's own all-reduce, then 2 x 1/2 x 1/8 GB for each GPU
    inside = seconds("all-reduce", 1e9, 8.0)
    across = 2 * (2e-5 + 0.5 * 1e9 / 8 / 1e10)
    assert seconds("all-reduce", 1e9, 16.0) == pytest.approx(inside + across)
    # 15 peers, 8 of them in the other node
    exchange = 1e-5 + 7 / 16 * 1e9 / 1e11 + 2e-5 + 0.5 * 1e9 / 1e10
    assert seconds("all-to-all", 1e9, 16.0) == pytest.approx(exchange, rel=0.01)
    assert seconds("send", 1e9, 2.0, stride=8.0) == pytest.approx(2e-5 + 1e9 / 1e10)


def test_ranks_that_are_whole_nodes_meet_over_the_network():
    # Two replicas of 8 GPUs are in two nodes, of 4 GPUs in one
    apart = seconds("all-to-all", 1e9, 2.0, stride=8.0)
    assert apart == pytest.approx(2e-5 + 0.5 * 1e9 / 1e10)
    together = seconds("all-to-all", 1e9, 2.0, stride=4.0)
    assert together == seconds("all-to-all", 1e9, 2.0)
    # 16 GPUs a rank: no rank has a neighbour in its node
    assert seconds("all-to-all", 1e9, 4.0, stride=16.0) == pytest.approx(
        2e-5 + 0.75 * 1e9 / 1e10
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_is_free(kind):
    assert seconds(kind, 1e9, 1.0) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("kind", [*KINDS, "send"])
def test_time_grows_with_the_payload_and_falls_with_every_resource(kind):
    ranks = 16.0
    base = seconds(kind, 1e8, ranks, stack=STACK)
    assert seconds(kind, 2e8, ranks) > base
    assert seconds(kind, 2e8, ranks) < 2.0 * base  # startup is paid once
    for field in ("link_bytes_per_s", "network_bytes_per_s"):
        better = replace(CHIP, **{field: 2.0 * getattr(CHIP, field)})
        assert seconds(kind, 1e8, ranks, chip=better) <= base
    assert seconds(kind, 1e8, ranks, sms=40.0) <= base


def test_few_sms_limit_the_links():
    narrow = replace(STACK, collective_sm_bytes_per_s=1e9)
    slow = seconds("all-gather", 1e9, 8.0, stack=narrow, sms=4.0)
    # 4 SMs of 1 GB/s each
    assert slow == pytest.approx(1e-5 + 7e-6 + 7 / 8 * 1e9 / 4e9, rel=0.01)
    many = seconds("all-gather", 1e9, 8.0, stack=narrow, sms=132.0)
    assert many == pytest.approx(seconds("all-gather", 1e9, 8.0), rel=0.15)


def function(kind):
    def cost(payload, ranks, sms):
        message = Message(kind=kind, payload_bytes=payload * 1e6, ranks=ranks)
        return 1e6 * collectives.seconds(message, CHIP, STACK, sms)

    return cost


@pytest.mark.parametrize("kind", [*KINDS, "send"])
@pytest.mark.parametrize("ranks", [1.7, 4.0, 7.9, 8.1, 24.0])
def test_gradients_agree_with_finite_differences(kind, ranks):
    arguments = (3.0, ranks, 20.0)
    check_grads(function(kind), arguments, order=1, modes=("rev",), rtol=1e-3)


@pytest.mark.parametrize("kind", [*KINDS, "send"])
def test_gradients_are_finite_at_and_beside_the_kinks(kind):
    gradient = jax.jit(jax.grad(function(kind), (0, 1, 2)))
    for ranks in (1.0, 1.0 + 1e-9, 2.0, 8.0 - 1e-9, 8.0, 8.0 + 1e-9, 16.0):
        for payload in (0.0, 1e-3, 1e3):
            assert np.all(np.isfinite(gradient(payload, ranks, 20.0)))
