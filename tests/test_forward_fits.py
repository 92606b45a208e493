"""Forward passes, clock curves and power caps: what calibration makes of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlens.calibration.clock_curves import (
    VoltageCurve,
    clock_curve_prediction,
    fit_voltage,
    voltage_at,
)
from jaxlens.calibration.forward.rows import eager_items, impossible, prompts
from jaxlens.calibration.forward.validation import predict_forward, shape_folds
from jaxlens.calibration.powercaps import capped, stretch
from jaxlens.calibration.raw_tables import from_records
from jaxlens.calibration.scores import mape
from jaxlens.calibration.tables import build_table, read_table
from jaxlens.models import load_shape
from jaxlens.profiles import load_chip
from jaxlens.transformers import model
from jaxlens.works import Work


def forward_table(**changed):
    """One forward pass of GPT-2 on an A100 at 900 MHz, 8 x 512 tokens."""
    record = {
        "stack": "hf-eager",
        "gpu": "a100-pcie-40gb",
        "model": "openai-community/gpt2",
        "weight_dtype": "bf16",
        "batch": 8,
        "prompt_tokens": 512,
        "sm_clock_hz": 9e8,
        "seconds": 0.021,
        "joules": 3.3,
        **changed,
    }
    records = [record, {**record, "batch": 16, "seconds": 0.04, "joules": 6.7}]
    raw = from_records(records, source="forward.json", data=b"")
    return build_table(raw, kind="forward")


def test_a_pass_multiplies_every_score_and_has_no_language_head():
    # GPT-2: 12 layers of 12 x 768^2 weights; scores and values 2 x 512 x 768 a token each.
    shape = load_shape("openai-community/gpt2")
    one = jnp.asarray([1.0])
    asked = eager_items(model(shape), prompts(one, 512.0 * one))
    flop = sum(
        float(jnp.sum(i.asks.flop * i.layers))
        for i in asked
        if isinstance(i.asks, Work)
    )
    per_token = 12.0 * (2.0 * 12.0 * 768.0**2 + 4.0 * 512.0 * 768.0)
    assert flop == pytest.approx(512.0 * per_token, rel=1e-6)


def test_a_norm_in_many_kernels_costs_the_host_more_launches():
    norm_and_rotary = model(load_shape("Qwen/Qwen2-1.5B")).launches
    plain = model(load_shape("facebook/opt-1.3b")).launches
    assert norm_and_rotary / 28.0 > 1.5 * plain / 24.0


def test_a_pass_that_is_faster_than_the_chip_is_set_aside():
    assert impossible(forward_table()).tolist() == [False, False]
    hasty = forward_table(seconds=1e-4, joules=0.015)
    assert impossible(hasty).tolist() == [True, False]
    predicted = predict_forward(hasty)
    assert np.isnan(predicted["seconds"]).tolist() == [True, False]


def test_shapes_stay_together_in_a_fold():
    shapes = np.array([f"shape {number % 25}" for number in range(100)])
    folds = shape_folds(shapes)
    assert all(len(set(folds[shapes == name])) == 1 for name in set(shapes))
    assert set(folds) == set(range(10))


def test_a_voltage_curve_is_found_again():
    clock = np.arange(2.1e8, 1.411e9, 1.5e7)
    true = VoltageCurve(flat_volts=0.7, knee_hz=1.0e9, rise=0.3, bend=0.6)
    volts = voltage_at(clock, true, 1.41e9)
    found = fit_voltage(clock, volts, 1.41e9)
    assert found.knee_hz == pytest.approx(1.0e9, rel=0.01)
    assert voltage_at(clock, found, 1.41e9) == pytest.approx(volts, rel=2e-3)


def test_a_cap_slows_what_goes_with_the_clock_only():
    chip = load_chip("rtx-pro-6000")
    slow = stretch(0.8, 0.6, 300.0, 500.0, 2.7e9, chip)
    fast = stretch(0.1, 0.6, 300.0, 500.0, 2.7e9, chip)
    assert float(slow) > float(fast) > 1.0
    assert float(stretch(0.8, 0.6, 600.0, 500.0, 2.7e9, chip)) == pytest.approx(
        1.0, abs=0.02
    )


def test_measured_passes_are_met(data_folder):
    bars = {"energaizer_a100": 0.08, "energaizer_a10": 0.08, "energaizer_dvfs": 0.08}
    for name, bar in bars.items():
        table = read_table(data_folder / "prefill" / f"{name}.csv")
        said = predict_forward(table)
        assert mape(said["seconds"], table["seconds"]) < bar
        assert mape(said["joules"], table["joules"]) < bar


def test_measured_clock_curves_are_met(data_folder):
    path = data_folder / "clocks" / "a100-pcie-40gb_supply_voltage.json"
    table = read_table(path)
    assert mape(clock_curve_prediction(table)["volts"], table["volts"]) < 0.005


def test_measured_caps_are_met_by_the_other_caps(data_folder):
    table = read_table(data_folder / "clocks" / "rtxpro6000_vllm_powercap.csv")
    said = capped(table)
    assert np.isfinite(said.joules_per_output_token).sum() >= 20
    energy = table["joules_per_output_token"]
    assert mape(said.joules_per_output_token, energy) < 0.05
    speed = table["output_tokens_per_second"]
    assert mape(said.output_tokens_per_second, speed) < 0.05
