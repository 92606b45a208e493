import dataclasses
import math

import numpy as np
import pytest

from jaxlens.deployments import Deployment, Workload
from jaxlens.intervals import (
    NORMAL_80,
    TRANSFER,
    TYPICAL,
    coefficient_variance,
    deviation,
    intervals,
    laplace,
)
from jaxlens.loading import load_model
from jaxlens.predictions import predict
from jaxlens.profiles import load_profile, load_profile_card

NAMES = ("chip.busy_watts", "stack.kernel_seconds")
DEPLOYMENT, WORKLOAD = Deployment(batch=16.0), Workload()


@pytest.fixture(scope="module")
def model():
    return load_model("Qwen/Qwen3-0.6B")


@pytest.fixture(scope="module")
def profile():
    return load_profile("h100-sxm", shipped=False)


@pytest.fixture(scope="module")
def estimate(model, profile):
    return predict(model, profile, DEPLOYMENT, WORKLOAD)


@pytest.fixture(scope="module")
def card():
    return dataclasses.replace(
        load_profile_card("h100-sxm", shipped=False),
        scatter={"energy": 0.1, "latency": 0.05},
        covariance_names=NAMES,
        covariance=np.array([[0.04, 0.0], [0.0, 0.01]]),
    )


def test_without_a_fit_an_interval_holds_the_error_of_unseen_chips(estimate):
    plain = load_profile_card("h100-sxm", shipped=False)
    low, high = intervals(estimate, plain)["joules_per_output_token"]
    assert math.log(high / low) == pytest.approx(2.0 * NORMAL_80 * TRANSFER["energy"])
    loose = {"joules_per_output_token": 0.3**2}
    low, high = intervals(estimate, plain, loose)["joules_per_output_token"]
    assert math.log(high / low) > 2.0 * NORMAL_80 * 0.3


def test_priors_leave_more_open_than_a_fit(model, profile):
    chip, stack = "h100-sxm", "sglang"
    wide, narrow = (
        coefficient_variance(
            model,
            load_profile(chip, name),
            load_profile_card(chip, name),
            DEPLOYMENT,
            WORKLOAD,
        )[1]
        for name in (stack, "vllm-0.11")
    )
    assert all(wide[name] > 2.0 * narrow[name] for name in wide)


def test_one_pass_gives_the_estimate_and_what_coefficients_leave_open(
    model, profile, card, estimate
):
    asked = model, profile, card, DEPLOYMENT, WORKLOAD
    found, _ = coefficient_variance(*asked)
    for name, value in vars(found).items():
        if isinstance(value, dict) or not hasattr(value, "ndim"):
            continue
        assert value.ndim == 0, name
        assert float(value) == pytest.approx(float(getattr(estimate, name)), rel=1e-9)
    small = dataclasses.replace(card, covariance=1e-4 * card.covariance)
    exact = laplace(model, profile, small, DEPLOYMENT, WORKLOAD)
    near = coefficient_variance(model, profile, small, DEPLOYMENT, WORKLOAD)[1]
    for name, value in exact.items():
        assert near[name] == pytest.approx(value, rel=0.02)


def test_only_what_exceeds_the_runs_of_the_fit_widens(card):
    seen = dataclasses.replace(card, provenance={TYPICAL: {"energy": 0.02}})
    assert deviation(seen, "energy", 0.01) == pytest.approx(0.1)
    assert deviation(seen, "energy", 0.05) == pytest.approx(math.sqrt(0.01 + 0.03))


def test_interval_is_the_central_80_percent_of_a_log_normal(estimate, card):
    low, high = intervals(estimate, card)["joules_per_output_token"]
    value = float(estimate.joules_per_output_token)
    assert math.log(high / value) == pytest.approx(NORMAL_80 * 0.1)
    assert math.log(value / low) == pytest.approx(NORMAL_80 * 0.1)


def test_intervals_cover_what_scatters_as_said(estimate, card):
    low, high = intervals(estimate, card)["joules_per_output_token"]
    logs = np.random.default_rng(0).normal(scale=0.1, size=4000)
    seen = float(estimate.joules_per_output_token) * np.exp(logs)
    assert np.mean((low < seen) & (seen < high)) == pytest.approx(0.8, abs=0.02)


def test_a_quantity_without_scatter_has_the_interval_of_unseen_chips(estimate, card):
    energy = dataclasses.replace(card, scatter={"energy": 0.1})
    low, high = intervals(estimate, energy)["seconds_per_output_token"]
    assert math.log(high / low) == pytest.approx(2.0 * NORMAL_80 * TRANSFER["latency"])


def test_variance_of_the_coefficients_widens(estimate, card):
    name = "joules_per_output_token"
    narrow = intervals(estimate, card)[name]
    wide = intervals(estimate, card, {name: 0.03})[name]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    # 0.1^2 + 0.03 = 0.2^2: twice the deviation.
    assert math.log(wide[1] / wide[0]) == pytest.approx(
        2.0 * math.log(narrow[1] / narrow[0])
    )


def test_laplace_variance_is_that_of_elasticities(model, profile, card, estimate):
    found = laplace(model, profile, card, DEPLOYMENT, WORKLOAD)
    expected = dict.fromkeys(found, 0.0)
    for name, variance in zip(NAMES, np.diag(card.covariance), strict=True):
        layer, _, field = name.partition(".")
        owner = getattr(profile, layer)
        value = getattr(owner, field) * math.exp(1e-4)
        moved = dataclasses.replace(
            profile, **{layer: dataclasses.replace(owner, **{field: value})}
        )
        shifted = predict(model, moved, DEPLOYMENT, WORKLOAD)
        for quantity in found:
            after, before = getattr(shifted, quantity), getattr(estimate, quantity)
            slope = math.log(float(after) / float(before)) / 1e-4
            expected[quantity] += slope**2 * variance
    for quantity, variance in found.items():
        assert variance == pytest.approx(expected[quantity], rel=1e-2), quantity
    # Busy power is no part of time; launches are part of both.
    assert 0.0 < found["seconds_per_output_token"] < 0.01
    assert found["joules_per_output_token"] > 0.0


def test_without_a_covariance_the_spreads_of_priors_count(model, profile):
    plain = load_profile_card("h100-sxm", shipped=False)
    found = laplace(model, profile, plain, DEPLOYMENT, WORKLOAD)
    assert all(0.0 < variance < 0.5 for variance in found.values())
