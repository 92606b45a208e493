import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxlens.hardware import Chip, Stack
from jaxlens.profiles import (
    known_chips,
    load_chip,
    load_profile,
    load_profile_card,
    supported_clocks,
)


def top_idle_watts(chip: Chip) -> float:
    """Idle power at boost voltage: leakage goes with about V^1.5."""
    return float(chip.idle_watts) * (1.0 + float(chip.voltage_rise)) ** 1.5


def test_chip_and_stack_hold_scalars_only():
    for cls in (Chip, Stack):
        values = {field.name: 1.0 for field in dataclasses.fields(cls)}
        assert len(jax.tree.leaves(cls(**values))) == len(values)


def test_profiles_of_different_chips_can_be_stacked():
    profiles = [load_profile(name) for name in ("a100-sxm-80gb", "h100-sxm")]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *profiles)
    np.testing.assert_array_equal(stacked.chip.tdp_watts, [400.0, 700.0])


@pytest.mark.parametrize("name", known_chips())
def test_streaming_memory_stays_below_the_tdp(name):
    # Decode at full bandwidth never meets the power limit of an uncapped GPU.
    chip = load_chip(name)
    memory_watts = chip.hbm_j_per_byte * chip.hbm_bytes_per_s
    assert top_idle_watts(chip) + chip.busy_watts + memory_watts < chip.tdp_watts


@pytest.mark.parametrize("name", known_chips())
@pytest.mark.parametrize("unit", ["bf16", "fp8", "fp4"])
def test_matrix_units_at_their_peak_come_near_the_tdp(name, unit):
    # Near it or above, where a power limit lowers the clock; twice would be absurd.
    # Weights in a format without a unit are converted first, which costs more than bf16.
    chip = load_chip(name)
    if unit not in load_profile_card(name).formats:
        assert getattr(chip, f"{unit}_j_per_flop") <= 2.0 * chip.bf16_j_per_flop
        return
    peak = getattr(chip, f"peak_{unit}_flop_per_s")
    watts = (
        top_idle_watts(chip)
        + chip.busy_watts
        + getattr(chip, f"{unit}_j_per_flop") * peak
    )
    assert 0.85 * chip.tdp_watts < watts < 1.8 * chip.tdp_watts


@pytest.mark.parametrize("name", known_chips())
def test_fewer_bits_are_never_slower_or_dearer(name):
    chip = load_chip(name)
    assert chip.peak_fp32_flop_per_s <= chip.peak_tf32_flop_per_s
    assert chip.peak_tf32_flop_per_s <= chip.peak_bf16_flop_per_s
    assert chip.peak_bf16_flop_per_s <= chip.peak_fp8_flop_per_s
    assert chip.bf16_j_per_flop >= chip.fp8_j_per_flop
    assert chip.fp32_j_per_flop >= chip.tf32_j_per_flop >= chip.bf16_j_per_flop


@pytest.mark.parametrize(
    ("name", "flop_per_clock"),
    [
        ("v100-sxm-32gb", 1024.0),
        ("a100-sxm-80gb", 2048.0),
        ("a10", 1024.0),
        ("h100-sxm", 4096.0),
        ("h100-pcie", 4096.0),
        ("h100-nvl", 4096.0),
        ("b200-sxm", 8192.0),
        ("gb300", 8192.0),
        ("l40s", 1024.0),
        ("rtx-4090", 512.0),
        ("rtx-pro-6000", 1024.0),
        ("mi300x", 2048.0),
    ],
)
def test_peaks_are_dense_and_hold_at_the_boost_clock(name, flop_per_clock):
    # bf16 FLOP per clock and SM of the architecture; sparse peaks would be twice.
    chip = load_chip(name)
    implied = chip.peak_bf16_flop_per_s / (chip.sms * chip.boost_hz)
    assert implied == pytest.approx(flop_per_clock, rel=0.015)


def test_a100_clocks_are_the_ones_that_can_be_locked():
    # 210, 225, ... 1410 MHz.
    clocks = supported_clocks(load_chip("a100-sxm-40gb"))
    assert len(clocks) == 81
    assert clocks[0] == 210e6
    assert clocks[-1] == pytest.approx(1410e6)


@pytest.mark.parametrize("name", known_chips())
def test_clocks_span_the_chip_and_hold_its_knee(name):
    chip = load_chip(name)
    clocks = supported_clocks(chip)
    assert clocks[0] == chip.min_hz
    assert clocks[-1] == pytest.approx(chip.max_hz)
    assert chip.min_hz < chip.knee_hz < chip.boost_hz <= chip.max_hz


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("a100-sxm-40gb", "a100-sxm_idle_power.json"),
        ("a100-pcie-40gb", "a100-pcie-40gb_idle_power.json"),
        ("h100-sxm", "h100-sxm_idle_power.json"),
    ],
)
def test_idle_power_follows_the_measured_clock_curve(name, table, data_folder):
    # Voltage flat below the knee, a parabola above it, idle ~ V^1.5. The lowest clock is
    # left out: that of the H100 table is a lone outlier, 60 % above its neighbours.
    measured = json.loads((data_folder / "clocks" / table).read_text())
    clock_hz = np.asarray([float(key) * 1e6 for key in measured])[1:]
    watts = np.asarray(list(measured.values()))[1:]
    chip = load_chip(name)
    above = np.maximum(0.0, clock_hz - chip.knee_hz) / (chip.boost_hz - chip.knee_hz)
    bent = above * (1.0 + chip.voltage_bend * (above - 1.0))
    predicted = chip.idle_watts * (1.0 + chip.voltage_rise * bent) ** 1.5
    error = np.abs(predicted / watts - 1.0)
    assert np.mean(error) < 0.03
    assert np.max(error) < 0.09
