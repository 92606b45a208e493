import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlens
from jaxlens.economics import Tariff, economics, tariff


@pytest.fixture(scope="module")
def estimate():
    asked = jaxlens.load_model("Qwen/Qwen3-8B"), jaxlens.load_profile("h100-sxm")
    deployment = jaxlens.Deployment(tensor_parallel=2.0, batch=32.0)
    found = jaxlens.predict(*asked, deployment, jaxlens.Workload())
    return jax.tree.map(float, found)


def test_a_rented_gpu_by_hand(estimate):
    found = economics(estimate, tariff(dollars_per_gpu_hour=3.6))
    # 2 GPUs at 0.001 $/s each, per million tokens
    expected = 1e6 * 2 * 0.001 / estimate.output_tokens_per_second
    assert found.dollars_per_million_output_tokens == pytest.approx(expected)
    assert found.grams_co2_per_million_output_tokens == 0.0


def test_energy_and_carbon_by_hand(estimate):
    rates = tariff(dollars_per_kwh=0.36, grams_co2_per_kwh=360.0, pue=1.5)
    found = economics(estimate, rates)
    joules = 1.5 * estimate.joules_per_output_token
    assert found.wall_joules_per_output_token == pytest.approx(joules)
    # 0.36 $/kWh is 1e-7 $/J, 360 g/kWh is 1e-4 g/J
    assert found.dollars_per_million_output_tokens == pytest.approx(0.1 * joules)
    assert found.grams_co2_per_million_output_tokens == pytest.approx(100.0 * joules)
    assert found.output_tokens_per_joule == pytest.approx(1.0 / joules)


def test_the_host_is_paid_for_by_the_gpu_second(estimate):
    bare = economics(estimate, Tariff())
    hosted = economics(estimate, tariff(host_watts=100.0))
    more = 100.0 * estimate.gpus / estimate.output_tokens_per_second
    found = hosted.wall_joules_per_output_token - bare.wall_joules_per_output_token
    assert found == pytest.approx(more)


@settings(max_examples=20, deadline=None)
@given(price=st.floats(0.0, 10.0), factor=st.floats(1.0, 10.0))
def test_cost_is_linear_in_prices(estimate, price, factor):
    one = economics(estimate, tariff(dollars_per_gpu_hour=price, dollars_per_kwh=price))
    more = economics(
        estimate,
        tariff(dollars_per_gpu_hour=factor * price, dollars_per_kwh=factor * price),
    )
    assert more.dollars_per_million_output_tokens == pytest.approx(
        factor * one.dollars_per_million_output_tokens
    )


def test_gradients_are_those_of_differences(estimate):
    def cost(pue):
        rates = Tariff(dollars_per_joule=1e-7, host_watts=50.0, pue=pue)
        return economics(estimate, rates).dollars_per_million_output_tokens

    difference = (cost(1.3 + 1e-4) - cost(1.3 - 1e-4)) / 2e-4
    assert jax.grad(cost)(1.3) == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"dollars_per_gpu_hour": -1.0},
            "dollars per gpu hour: expected a number from 0",
        ),
        ({"dollars_per_kwh": 1e4}, "grids charge"),
        ({"grams_co2_per_kwh": float("nan")}, "grids emit"),
        ({"pue": 0.9}, "pue: expected a number from 1 to 5, got 0.9"),
        ({"host_watts": True}, "host watts: expected"),
    ],
)
def test_implausible_prices_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        tariff(**given)
