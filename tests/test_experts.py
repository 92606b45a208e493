import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlens import expert_ranks
from jaxlens.expert_ranks import busiest_rank, placement
from jaxlens.experts import active, active_experts, routing

ACTIVE = jax.jit(jax.vmap(active_experts))
BUSIEST = jax.jit(jax.vmap(busiest_rank))


def counts(tokens, experts, top_k, skew, runs, seed=0):
    """Tokens of each expert: the top_k of log popularity + Gumbel noise, `runs` times."""
    generator = np.random.default_rng(seed)
    popularity = -skew * np.log(np.arange(1, experts + 1))
    noise = generator.gumbel(size=(runs, tokens, experts))
    picked = np.argpartition(-(popularity + noise), top_k - 1, axis=2)[:, :, :top_k]
    offsets = experts * np.arange(runs)[:, None]
    flat = picked.reshape(runs, -1) + offsets
    return np.bincount(flat.ravel(), minlength=runs * experts).reshape(runs, experts)


def busiest(counted, ranks, placements=8, seed=1):
    """Mean over random placements of the largest load over the mean load."""
    generator = np.random.default_rng(seed)
    runs, experts = counted.shape
    orders = np.argsort(generator.random((runs, placements, experts)), axis=2)
    placed = np.take_along_axis(counted[:, None, :], orders, axis=2)
    loads = placed.reshape(runs, placements, ranks, experts // ranks).sum(3)
    return loads.max(2).mean() / loads.mean()


GRID = [
    (tokens, experts, top_k, skew)
    for (experts, top_k), tokens, skew in itertools.product(
        [(8, 2), (32, 4), (60, 4), (128, 1), (128, 8)], [1, 4, 32, 256], [0.0, 0.5, 1.0]
    )
]


@pytest.fixture(scope="module")
def simulated():
    def runs(case):
        return int(np.clip(600_000 / (case[0] * case[1]), 30, 2000))

    return {case: counts(*case, runs=runs(case)) for case in GRID}


def test_active_experts_agree_with_simulated_routing(simulated):
    expected = [np.mean((counted > 0).sum(1)) for counted in simulated.values()]
    columns = np.array(list(simulated), float).T
    np.testing.assert_allclose(ACTIVE(*columns), expected, rtol=0.02)


def test_the_busiest_rank_agrees_with_simulated_routing(simulated):
    cases, expected = [], []
    for case, counted in simulated.items():
        for ranks in (2, 4, 8, 16, 32):
            if case[1] % ranks == 0:
                cases.append((*case, ranks))
                expected.append(busiest(counted, ranks))
    errors = np.asarray(BUSIEST(*np.array(cases, float).T)) / np.array(expected) - 1.0
    # Among these few runs are errors of the simulation itself, of about 1 %.
    assert np.mean(np.abs(errors) < 0.02) > 0.93
    assert np.mean(np.abs(errors)) < 0.01
    assert np.max(np.abs(errors)) < 0.05


def test_one_expert_for_each_token_is_exact():
    # Sampling one of 1/1, 1/2, 1/3, 1/4: the first has 12 of 25 parts.
    spread = routing(4.0, 1.0, 1.0)
    assert float(spread.chances[0]) == pytest.approx(12 / 25, rel=5e-3)


def test_two_of_three_by_hand():
    # Popularities of 6, 3 and 2 elevenths. The first is left out if the others come first:
    # 3/11 x 2/8 + 2/11 x 3/9 = 0.129
    missed = (3 / 11) * (2 / 8) + (2 / 11) * (3 / 9)
    spread = routing(3.0, 2.0, 1.0)
    assert float(spread.chances[0]) == pytest.approx(1 - missed, rel=0.02)


def test_limits_of_active_experts():
    assert float(active_experts(1.0, 128.0, 8.0, 0.7)) == pytest.approx(8.0)
    assert float(active_experts(1e6, 128.0, 8.0, 0.0)) == pytest.approx(128.0)
    assert float(active_experts(5.0, 8.0, 8.0, 0.0)) == pytest.approx(8.0, rel=1e-4)
    # 8 of 128 at random, twice: 16 - 8 * 8 / 128
    assert float(active_experts(2.0, 128.0, 8.0, 0.0)) == pytest.approx(15.5)


def test_limits_of_the_busiest_rank():
    assert float(busiest_rank(64.0, 128.0, 8.0, 0.9, 1.0)) == 1.0
    assert float(busiest_rank(1e9, 128.0, 8.0, 0.0, 8.0)) == pytest.approx(1.0, 1e-2)
    # One token of one expert: all of its load is on one of eight ranks.
    assert float(busiest_rank(1.0, 128.0, 1.0, 0.3, 8.0)) == pytest.approx(8.0, 1e-3)
    # Every expert on a rank of its own: the most popular one has 12 of 25 parts.
    many = float(busiest_rank(1e8, 4.0, 1.0, 1.0, 4.0))
    assert many == pytest.approx(4 * 12 / 25, rel=5e-3)


def test_more_tokens_even_out_and_more_skew_does_not():
    tokens = np.array([4.0, 16.0, 64.0, 256.0, 4096.0])
    ones = np.ones_like(tokens)
    loads = BUSIEST(tokens, 128 * ones, 8 * ones, 0.5 * ones, 8 * ones)
    assert np.all(np.diff(loads) < 0)
    active = ACTIVE(tokens, 128 * ones, 8 * ones, 0.5 * ones)
    assert np.all(np.diff(active) > 0)
    skews = np.linspace(0.0, 1.0, 5)
    loads = BUSIEST(256 * ones, 128 * ones, 8 * ones, skews, 8 * ones)
    assert np.all(np.diff(loads) > 0)
    active = ACTIVE(16 * ones, 128 * ones, 8 * ones, skews)
    assert np.all(np.diff(active) < 0)


CORNERS = np.array(
    [
        corner
        for corner in itertools.product(
            [0.25, 1.0, 3.0, 64.0, 1e5],
            [4.0, 16.0, 128.0, 512.0],
            [1.0, 2.0, 8.0],
            [0.0, 0.5, 1.0],
            [1.0, 1.5, 2.0, 8.0, 128.0],
        )
        if corner[2] <= corner[1] and corner[4] <= corner[1]
    ]
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_values_and_gradients_are_finite_everywhere(dtype):
    columns = [jnp.asarray(column, dtype) for column in CORNERS.T]
    values, gradients = jax.jit(
        jax.vmap(jax.value_and_grad(busiest_rank, argnums=(0, 1, 2, 3, 4)))
    )(*columns)
    assert np.all(np.isfinite(values))
    assert np.all(np.asarray(values) > 1.0 - 1e-5)
    assert np.all(np.isfinite(gradients))
    values, gradients = jax.jit(
        jax.vmap(jax.value_and_grad(active_experts, argnums=(0, 1, 2, 3)))
    )(*columns[:4])
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(gradients))


def test_gradients_agree_with_finite_differences():
    points = np.array(
        [
            [3.3, 128.0, 8.0, 0.3, 8.0],
            [70.0, 60.0, 4.0, 0.01, 4.4],
            [900.0, 128.0, 1.0, 0.9, 30.0],
        ]
    )
    for function, arguments in ((BUSIEST, 5), (ACTIVE, 4)):
        single = {BUSIEST: busiest_rank, ACTIVE: active_experts}[function]
        gradient = jax.jit(jax.vmap(jax.grad(single, tuple(range(arguments)))))
        exact = gradient(*points.T[:arguments])
        for i in range(arguments):
            step = np.zeros_like(points)
            step[:, i] = 1e-5 * points[:, i]
            above = function(*(points + step).T[:arguments])
            below = function(*(points - step).T[:arguments])
            numeric = (above - below) / (2.0 * step[:, i])
            scale = np.asarray(function(*points.T[:arguments])) / points[:, i]
            np.testing.assert_allclose(
                exact[i], numeric, rtol=2e-3, atol=2e-4 * scale.max()
            )


def test_steps_of_any_size_share_where_experts_are():
    placed = placement(routing(128.0, 8.0, 0.5), 8.0)
    for tokens in (1.0, 60.0, 4000.0):
        both = expert_ranks.busiest(tokens, placed), active(tokens, placed.routing)
        assert float(both[0]) == float(busiest_rank(tokens, 128.0, 8.0, 0.5, 8.0))
        assert float(both[1]) == float(active_experts(tokens, 128.0, 8.0, 0.5))
