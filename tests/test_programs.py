import pytest

from jaxlens import Einsum
from jaxlens.layers import (
    DENSE,
    EMBEDDING,
    GROUPED_QUERY,
    HEAD,
    LATENT,
    ROUTED,
    ROUTER,
    SHARED,
    STATE_SPACE,
)
from jaxlens.programs import collectives, kernels, op_table, program


def implied(operations, sequence_parallel=False, fused=True):
    steps = program(operations, sequence_parallel, fused)
    return [(c.name, c.kind, dict(c.payload)) for c in collectives(steps)]


ACTIVATION = {"t": 1, "d": 1}  # of one step: tokens x width


@pytest.mark.parametrize(
    ("operations", "name"),
    [
        (GROUPED_QUERY, "attention out"),
        (LATENT, "attention out"),
        (STATE_SPACE, "mixer out"),
        (DENSE, "down"),
        (EMBEDDING, "embedding"),
    ],
)
def test_tensor_parallel_layers_end_in_one_all_reduce(operations, name):
    # M. Shoeybi et al., "Megatron-LM", 2019: one after attention, one after the MLP.
    assert implied(operations) == [(name, "all-reduce", ACTIVATION)]


@pytest.mark.parametrize("operations", [GROUPED_QUERY, DENSE, EMBEDDING])
def test_sequence_parallelism_splits_it_in_two(operations):
    # V. Korthikanti et al., 2022: as many bytes as the all-reduce.
    kinds = [(kind, size) for _, kind, size in implied(operations, True)]
    assert kinds == [("reduce-scatter", ACTIVATION), ("all-gather", ACTIVATION)]


def test_sequence_parallelism_splits_the_tokens_of_the_norms():
    steps = program(DENSE, True, True)
    assert dict(kernels(steps)[0].activations[0]) == {"t": 1, "d": 1, "tp": -1}


def test_the_vocabulary_is_gathered_before_sampling():
    assert implied(HEAD) == [("language head", "all-gather", {"o": 1, "v": 1})]


def test_experts_dispatch_combine_and_reduce_once_with_their_shared_ones():
    copies = {"t": 1, "k": 1, "d": 1}
    assert implied((*ROUTER, *SHARED, *ROUTED)) == [
        ("dispatch", "all-to-all", copies),
        ("combine", "all-to-all", copies),
        ("experts out", "all-reduce", ACTIVATION),
    ]


def test_a_contraction_that_is_not_split_implies_nothing():
    assert implied((Einsum("t d, d f -> t f", shard={"f": "tp"}),)) == []
    assert implied((Einsum("t d, d f -> t f"),)) == []


def test_partial_sums_can_be_left_to_a_later_operation():
    halves = (
        Einsum("t f, f d -> t d", name="one", shard={"f": "tp"}, partial=True),
        Einsum("t f, f d -> t d", name="two", shard={"f": "tp"}),
    )
    assert implied(halves) == [("two", "all-reduce", ACTIVATION)]


def test_fused_scores_never_reach_memory():
    fused = kernels(program(GROUPED_QUERY, False, True))
    attention = next(kernel for kernel in fused if kernel.name == "attention")
    # Queries in, outputs out; keys and values come from the cache.
    heads = {"n": 1, "q": 1, "g": 1, "r": 1, "e": 1, "kv": -1, "group": -1}
    assert [dict(size) for size in attention.activations] == [heads, heads]
    assert len(attention.kv) == 2
    apart = kernels(program(GROUPED_QUERY, False, False))
    scores = {"n": 1, "q": 1, "g": 1, "r": 1, "s": 1, "kv": -1, "group": -1}
    seen = [dict(size) for kernel in apart for size in kernel.activations]
    # Out of the product, into and out of the softmax, and into the next product.
    assert seen.count(scores) == 4
    assert len(apart) == len(GROUPED_QUERY) > len(fused)


def test_a_fused_kernel_reads_its_input_once():
    fused = kernels(program(GROUPED_QUERY, False, True))[1]
    assert fused.name == "query key value"
    assert [dict(size) for size in fused.activations].count(ACTIVATION) == 1
    apart = kernels(program(GROUPED_QUERY, False, False))[1:3]
    assert sum(ACTIVATION in map(dict, kernel.activations) for kernel in apart) == 2


def test_an_intermediate_that_only_earlier_operations_read_is_written():
    # The first operand of the second product is read before its own result exists.
    chain = (
        Einsum("t a -> t a", name="one", fuse="both"),
        Einsum("t a, a b -> t b", name="two", fuse="both"),
    )
    (kernel,) = kernels(program(chain, False, True))
    assert [dict(size) for size in kernel.activations] == [
        {"t": 1, "a": 1},
        {"t": 1, "b": 1},
    ]


def test_roles_follow_from_the_operands():
    def roles(operations):
        return [k.role for k in kernels(program(operations, False, True))]

    assert roles(GROUPED_QUERY) == ["elementwise", "gemm", "attention", "gemm"]
    assert roles(STATE_SPACE) == ["elementwise", "gemm", "elementwise", "scan", "gemm"]
    assert roles(ROUTED) == ["experts", "elementwise", "experts", "elementwise"]
    assert roles(EMBEDDING) == ["elementwise"]


def test_a_program_is_made_once():
    assert program(DENSE, False, True) is program(tuple(DENSE), False, True)


def test_the_op_table_reads_like_the_text_book():
    table = {row["op"]: row for row in op_table(program(DENSE, False, True))}
    assert table["up"]["flop"] == "2·d·f·t·up_matrices/tp"
    assert table["up"]["weights"] == "d·f·up_matrices/tp"
    last = op_table(program(DENSE, False, True))[-1]
    assert last == {"op": "down", "kind": "all-reduce", "payload": "d·t"}
