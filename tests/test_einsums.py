import jax
import jax.numpy as jnp
import pytest

from jaxlens import Einsum, einsums
from jaxlens.einsums import evaluate, monomial, parse


def test_flop_and_bytes_of_a_product_are_monomials():
    up = Einsum("t d, d f -> t f", shard={"f": "tp"}, times=("matrices",))
    extents = {"t": 64.0, "d": 4096.0, "f": 14336.0, "tp": 2.0, "matrices": 2.0}
    # 64 x 4096 x (2 x 14336 / 2) multiply-add pairs on each of two ranks
    assert evaluate(einsums.flop(up), extents) == 64 * 4096 * 14336
    assert evaluate(einsums.elements(up, ("d", "f")), extents) == 4096 * 14336
    assert evaluate(einsums.rows(up), extents) == 64
    assert evaluate(einsums.columns(up), extents) == 14336  # both matrices, one rank
    assert evaluate(einsums.depth(up), extents) == 4096
    assert einsums.flop(up) == (
        ("d", 1),
        ("f", 1),
        ("matrices", 1),
        ("t", 1),
        ("tp", -1),
    )


def test_a_selected_axis_counts_for_weights_and_not_for_flop():
    routed = Einsum("t k d, x d f -> t k f", select="x", shard={"k": "ep", "x": "ep"})
    extents = {"t": 10.0, "k": 2.0, "d": 3.0, "f": 5.0, "x": 8.0, "ep": 4.0}
    assert evaluate(einsums.flop(routed), extents) == 10 * 2 * 3 * 5 / 4
    assert evaluate(einsums.elements(routed, ("x", "d", "f")), extents) == 2 * 3 * 5
    assert evaluate(einsums.rows(routed), extents) == 10 * 2 / 8  # per expert


def test_a_density_scales_flop_only():
    scores = Einsum(
        "n q h e, n s h e -> n q h s", operands=("activation", "kv"), density="seen"
    )
    assert ("seen", 1) in einsums.flop(scores)
    assert einsums.depth(scores) == (("e", 1),)
    assert einsums.columns(scores) == (("s", 1),)


def test_spaces_do_not_matter():
    assert parse(" a  b ,b c->a c ") == ((("a", "b"), ("b", "c")), ("a", "c"))
    assert parse("a b ->") == ((("a", "b"),), ())


@pytest.mark.parametrize(
    ("equation", "wrong"),
    [
        ("t d, d f", ""),  # no arrow: the end
        ("t d, d f - t f", "-"),
        ("t d, d f > t f", ">"),
        ("t d; d f -> t f", ";"),
        ("t d,, d f -> t f", ", d"),
        ("t d, d f -> t g", "g"),
        ("t d, d f -> t, f", ", f"),
        ("t d -> t -> d", "-> d"),
        ("t d, d f f -> t f", "f -> t f"),
        ("", ""),
        ("-> t", "-> t"),
    ],
)
def test_errors_point_at_the_character(equation, wrong):
    with pytest.raises(ValueError, match="einsum: expected") as error:
        Einsum(equation)
    _, shown, caret = str(error.value).split("\n")
    position = caret.index("^") - 2
    assert shown[2:] == equation
    assert equation[position:].startswith(wrong)
    assert (wrong == "") == (position == len(equation))
    assert f"character {position + 1}:" in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"operands": ("activation",)}, "expected 2 operand kinds"),
        ({"operands": ("activation", "weigth")}, "expected a kind in"),
        ({"result": "cache"}, "expected a kind in"),
        ({"shard": {"g": "tp"}}, "expected an axis of ['d', 'f', 't'], got 'g'"),
        ({"shard": {"f": "cp"}}, "expected a mesh axis of"),
        ({"gather": ("v",)}, "got 'v'"),
        ({"select": "x"}, "got 'x'"),
        ({"phase": "training"}, "expected a phase of"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels, message):
    with pytest.raises(ValueError, match="einsum 'up': ") as error:
        Einsum("t d, d f -> t f", name="up", **labels)
    assert message in str(error.value)


def test_structure_is_hashable_however_it_was_written():
    one = Einsum("t d, d f -> t f", shard={"f": "tp"}, times=["m"])
    other = Einsum("t d, d f -> t f", shard=(("f", "tp"),), times=("m",))
    assert one == other
    assert hash(one) == hash(other)


def test_large_sizes_do_not_overflow_under_jit():
    powers = monomial([("a", 1), ("b", 1), ("c", 1)])

    @jax.jit
    def product(a, b, c):
        return evaluate(powers, {"a": a, "b": b, "c": c})

    sizes = [jnp.int32(2**17)] * 3  # 2^51 in int32 would be 0
    with jax.numpy_dtype_promotion("standard"):
        assert float(product(*sizes)) == 2.0**51
        assert float(product(2**17, 2**17, 2**17)) == 2.0**51


def test_powers_that_cancel_disappear():
    assert monomial([("a", 1), ("b", 2), ("a", -1)]) == (("b", 2),)
    assert evaluate((), {}) == 1.0
    assert evaluate(monomial([("a", 2), ("b", -1)]), {"a": 3.0, "b": 2.0}) == 4.5
