import dataclasses
import math

import pytest

from jaxlens.deployments import Deployment, Workload
from jaxlens.loading import load_model
from jaxlens.predictions import predict
from jaxlens.profiles import load_profile
from jaxlens.sensitivities import elasticities, inputs, relative_change

WORKLOAD = Workload(prompt_tokens=512.0, output_tokens=128.0)
LAYOUT = Deployment(batch=24.0, tensor_parallel=2.0)
WHAT = ("joules_per_output_token", "seconds_per_output_token")


@pytest.fixture(scope="module")
def setting():
    return load_model("meta-llama/Llama-3.1-8B"), load_profile("h100-sxm")


@pytest.fixture(scope="module")
def found(setting):
    return elasticities(*setting, LAYOUT, WORKLOAD, WHAT)


def value(setting, name, factor, what):
    model, profile = setting
    groups = {
        "deployment": LAYOUT,
        "workload": WORKLOAD,
        "chip": profile.chip,
        "stack": profile.stack,
    }
    group, field = name.split(".")
    changed = factor * getattr(groups[group], field)
    groups[group] = dataclasses.replace(groups[group], **{field: changed})
    profile = dataclasses.replace(profile, chip=groups["chip"], stack=groups["stack"])
    estimate = predict(model, profile, groups["deployment"], groups["workload"])
    return float(getattr(estimate, what))


@pytest.mark.parametrize(
    "name",
    [
        "deployment.batch",
        "workload.prompt_tokens",
        "chip.hbm_bytes_per_s",
        "chip.busy_watts",
        "stack.kernel_seconds",
    ],
)
def test_elasticities_are_finite_differences_of_logarithms(setting, found, name):
    step = 1e-5
    for what in WHAT:
        above, below = (value(setting, name, 1.0 + s, what) for s in (step, -step))
        slope = math.log(above / below) / (2.0 * step)
        assert math.isclose(found[what][name], slope, rel_tol=1e-4, abs_tol=1e-7)


def test_joules_scale_with_all_powers_and_energies(found):
    # Twice every watt and every joule is twice the energy at the same time.
    powers = {
        name
        for name in found["joules_per_output_token"]
        if name.startswith(("chip.", "stack.")) and ("watts" in name or "j_per" in name)
    }
    for what, degree in zip(WHAT, (1.0, 0.0), strict=True):
        total = sum(found[what][name] for name in powers)
        assert math.isclose(total, degree, abs_tol=1e-6)


def test_an_open_knob_moves_like_the_limit_behind_it(found):
    for what in WHAT:
        of = found[what]
        assert of["deployment.clock_hz"] == of["chip.max_hz"]
        assert of["deployment.power_cap_watts"] == of["chip.tdp_watts"]


def test_inputs_that_are_zero_have_no_elasticity(setting, found):
    known = inputs(setting[1], LAYOUT, WORKLOAD)
    assert known["deployment.routing_skew"] == 0.0
    assert "deployment.routing_skew" not in found[WHAT[0]]
    assert all(math.isfinite(e) for what in WHAT for e in found[what].values())


def test_an_unknown_quantity_is_refused(setting):
    with pytest.raises(ValueError, match=r"quantity: expected of .* got 'watts'"):
        elasticities(*setting, LAYOUT, WORKLOAD, ("watts",))


def test_relative_change_is_the_local_power_law():
    assert math.isclose(relative_change(1.0), 0.1)
    assert math.isclose(relative_change(-1.0), 1.0 / 1.1 - 1.0)
