import jax.numpy as jnp
import numpy as np
import pytest

from jaxlens.calibration.freedoms import SERVING
from jaxlens.calibration.parameters import (
    SHARES,
    Freedom,
    coefficients,
    moved,
    parameters,
    row_scores,
)
from jaxlens.profiles import load_profile_card

GPUS = ("h100-sxm", "h100-sxm", "b200-sxm")
STACKS = ("vllm-0.11", "vllm-0.5", "vllm-0.11")


def test_scores_at_zero_are_the_priors():
    known = parameters(GPUS, STACKS, SERVING)
    zeros = jnp.zeros(len(known.scores))
    chip, stack = coefficients(known, row_scores(known, zeros))
    for row, pair in enumerate(zip(GPUS, STACKS, strict=True)):
        card = load_profile_card(*pair, shipped=False)
        for name, prior in card.coefficients.items():
            layer, _, field = name.partition(".")
            value = getattr(chip if layer == "chip" else stack, field)[row]
            assert float(value) == pytest.approx(prior.value, rel=1e-12), name


def test_each_row_sees_the_scores_of_its_own_chip_stack_and_pair():
    name = "stack.kernel_seconds"
    freedom = {name: Freedom(chip=1.0, stack=1.0, pair=0.5)}
    known = parameters(GPUS, STACKS, freedom)
    owners = [score.owner for score in known.scores]
    assert owners == [
        "h100-sxm",
        "b200-sxm",
        "vllm-0.11",
        "vllm-0.5",
        "vllm-0.11 on h100-sxm",
        "vllm-0.5 on h100-sxm",
        "vllm-0.11 on b200-sxm",
    ]
    scores = jnp.asarray([1.0, 2.0, 10.0, 20.0, 100.0, 200.0, 400.0])
    u = row_scores(known, scores)[:, 0]
    # h100 + vllm-0.11 + half of the pair; and so on.
    np.testing.assert_allclose(u, [1 + 10 + 50, 1 + 20 + 100, 2 + 10 + 200])


def test_one_score_moves_a_value_by_its_prior_spread():
    name = "chip.busy_watts"
    known = parameters(GPUS[:1], STACKS[:1], {name: Freedom(chip=1.0)})
    chip, _ = coefficients(known, row_scores(known, jnp.ones(1)))
    prior = load_profile_card(GPUS[0], STACKS[0], shipped=False).coefficients[name]
    assert prior.spread is not None
    expected = prior.value * np.exp(prior.spread)
    assert float(chip.busy_watts[0]) == pytest.approx(expected)


def test_other_formats_follow_the_energy_of_bf16():
    names = ("chip.bf16_j_per_flop", "chip.fp8_j_per_flop")
    freedom = dict.fromkeys(names, Freedom(chip=1.0))
    known = parameters(GPUS[:1], STACKS[:1], freedom)

    def values(scores):
        chip, _ = coefficients(known, row_scores(known, jnp.asarray(scores)))
        return float(chip.bf16_j_per_flop[0]), float(chip.fp8_j_per_flop[0])

    bf16, fp8 = values([0.0, 0.0])
    both = values([1.0, 0.0])
    assert both[0] / bf16 == pytest.approx(both[1] / fp8)
    alone = values([0.0, 1.0])
    assert alone[0] == bf16
    assert alone[1] > fp8


@pytest.mark.parametrize("shift", [-20.0, -1.0, 0.0, 1.0, 20.0])
def test_shares_stay_shares(shift):
    name = "stack.gemm_byte_efficiency"
    assert name.partition(".")[2] in SHARES
    value = float(moved(name, jnp.asarray(0.8), jnp.asarray(shift)))
    assert 0.0 <= value <= 1.0


def test_a_small_shift_of_a_share_is_relative():
    value = moved("stack.softness", jnp.asarray(0.3), jnp.asarray(1e-4))
    assert float(value) == pytest.approx(0.3 * (1.0 + 1e-4), rel=1e-7)


def test_every_free_coefficient_has_a_prior_spread():
    for pair in zip(GPUS, STACKS, strict=True):
        known = load_profile_card(*pair, shipped=False).coefficients
        silent = [name for name in SERVING if not known[name].spread]
        assert not silent, f"{pair}: a fit could not move {silent}"
