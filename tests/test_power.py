from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxlens import load_profile
from jaxlens.power import (
    CAP_SOFTNESS,
    Draw,
    capped_slowdown,
    joules,
    static_watts,
    switching,
    voltage,
    watts,
)

CHIPS = {name: load_profile(name).chip for name in ("h100-sxm", "a100-sxm-80gb")}
CHIP = CHIPS["h100-sxm"]


def draw(chip, compute=0.7, memory=0.3, clocked=0.7):
    """One second of which parts go to the matrix units and to memory."""
    return Draw(
        seconds=1.0,
        clocked_seconds=clocked,
        active_seconds=0.95,
        flop_joules=compute * chip.peak_bf16_flop_per_s * chip.bf16_j_per_flop,
        memory_joules=memory * chip.hbm_bytes_per_s * chip.hbm_j_per_byte,
        link_joules=0.0,
    )


def test_voltage_is_flat_below_the_knee_and_as_given_at_boost():
    assert float(voltage(0.3 * CHIP.knee_hz, CHIP)) == pytest.approx(1.0, abs=2e-3)
    assert float(voltage(CHIP.boost_hz, CHIP)) == pytest.approx(1.0 + CHIP.voltage_rise)
    assert float(switching(CHIP.boost_hz, CHIP)) == pytest.approx(1.0)
    clocks = np.linspace(CHIP.min_hz, CHIP.max_hz, 50)
    assert np.all(np.diff(jax.vmap(lambda f: voltage(f, CHIP))(clocks)) > 0.0)


def test_a_bent_rise_starts_slowly_and_ends_where_a_straight_one_does():
    bent = replace(CHIPS["a100-sxm-80gb"], knee_hz=1.0e9, boost_hz=1.4e9)
    bent = replace(bent, voltage_rise=0.3, voltage_bend=0.6)
    # x = 0.5: 1 + 0.3 (0.4 x + 0.6 x^2) = 1.105 below the straight 1.15
    assert float(voltage(1.2e9, bent)) == pytest.approx(1.105, abs=1e-3)
    assert float(voltage(1.4e9, bent)) == pytest.approx(1.3, abs=1e-6)
    straight = replace(bent, voltage_bend=0.0)
    assert float(voltage(1.2e9, straight)) == pytest.approx(1.15, abs=1e-3)
    slope = jax.vmap(jax.grad(lambda f: voltage(f, bent)))(np.linspace(2e8, 1.5e9, 99))
    assert np.all(np.isfinite(slope)) and np.all(slope >= 0.0)
    assert np.isfinite(jax.grad(lambda f: voltage(f, bent))(bent.knee_hz))


def test_an_idle_gpu_draws_its_idle_power():
    idle = Draw(
        seconds=1.0,
        clocked_seconds=0.0,
        active_seconds=0.0,
        flop_joules=0.0,
        memory_joules=0.0,
        link_joules=0.0,
    )
    low = 0.3 * CHIP.knee_hz
    drawn = float(watts(idle, 1.0, low, CHIP))
    assert drawn == pytest.approx(CHIP.idle_watts, rel=5e-3)
    assert drawn == float(static_watts(low, CHIP))


def test_energy_adds_up_at_boost():
    # idle at boost voltage, busy for 0.95 s, and what the work itself takes
    need = draw(CHIP)
    total, static, busy = joules(need, 1.0, CHIP.boost_hz, CHIP)
    assert float(busy) == pytest.approx(0.95 * CHIP.busy_watts)
    own = need.flop_joules + need.memory_joules
    assert float(total) == pytest.approx(float(static) + float(busy) + own)


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("compute", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.7, 0.9, 1.0])
def test_a_capped_clock_is_the_one_that_draws_the_cap(name, compute, share):
    chip = CHIPS[name]
    need, clock = draw(chip, compute, clocked=compute), chip.boost_hz
    cap = share * chip.tdp_watts
    slowdown = float(capped_slowdown(need, clock, cap, chip))
    limit = cap * float(chip.cap_share)
    low, high = 0.1, 1.0
    for _ in range(40):  # bisection
        middle = 0.5 * (low + high)
        above = float(watts(need, middle, clock, chip)) > limit
        low, high = (low, middle) if above else (middle, high)
    # Where the cap just binds, the smooth minimum stays below by its stated bound.
    near = high / (1.0 + CAP_SOFTNESS**0.5)
    assert slowdown == pytest.approx(high, rel=0.01) or near <= slowdown < high
    assert high > 0.9 or slowdown == pytest.approx(high, rel=0.01)
    drawn = float(watts(need, slowdown, clock, chip))
    if high > 0.101:  # else the lowest clock draws more
        assert drawn <= limit * 1.001


def test_a_cap_far_above_leaves_the_clock_alone():
    need = draw(CHIP, compute=0.1)
    slowdown = float(capped_slowdown(need, CHIP.boost_hz, 10 * CHIP.tdp_watts, CHIP))
    assert slowdown == pytest.approx(1.0, abs=2e-3)


def test_a_higher_cap_never_slows_down():
    caps = np.linspace(150.0, 1200.0, 60)
    need = draw(CHIP)
    ratios = jax.vmap(lambda cap: capped_slowdown(need, CHIP.boost_hz, cap, CHIP))(caps)
    assert np.all(np.diff(ratios) >= -1e-9)
    assert np.all((np.asarray(ratios) > 0.0) & (np.asarray(ratios) <= 1.0))


def test_gradients_agree_with_finite_differences_where_the_cap_binds():
    need = draw(CHIP)

    def slowdown(cap, energy, idle):
        chip = replace(CHIP, idle_watts=idle)
        return capped_slowdown(replace(need, flop_joules=energy), 1.7e9, cap, chip)

    for cap in (350.0, 450.0, 600.0, 2000.0):
        point = np.array([cap, need.flop_joules, CHIP.idle_watts])
        exact = np.array(jax.grad(slowdown, (0, 1, 2))(*point)) * point
        for i in range(3):
            step = np.ones(3)
            step[i] += 1e-6
            above, below = slowdown(*(point * step)), slowdown(*(point / step))
            numeric = float(above - below) / 2e-6
            assert exact[i] == pytest.approx(numeric, rel=0.02, abs=1e-5)


def test_gradients_are_finite_at_the_limits():
    def slowdown(cap, energy, clocked):
        need = replace(draw(CHIP), flop_joules=energy, clocked_seconds=clocked)
        return capped_slowdown(need, CHIP.max_hz, cap, CHIP)

    gradient = jax.jit(jax.grad(slowdown, (0, 1, 2)))
    for cap in (1.0, 100.0, 700.0, 1e15):
        for energy in (0.0, 300.0, 5000.0):
            for clocked in (0.0, 1.0):
                assert np.all(np.isfinite(gradient(cap, energy, clocked)))
