"""Profiles that are carried over to chips without runs."""

import pytest

from jaxlens.calibration.transfers import reached_bandwidth, transferred
from jaxlens.fitted_profiles import FittedProfile, FittedValue, save_profile
from jaxlens.intervals import TRANSFER, deviation
from jaxlens.profiles import load_profile, load_profile_card


def fit(chip, watts, efficiency, rows=50, stack="vllm-0.11"):
    return FittedProfile(
        chip=chip,
        stack=stack,
        created="2026-01-01",
        fitted_on=("runs.csv",),
        rows=rows,
        chip_values={"idle_watts": FittedValue(watts, 0.05)},
        stack_values={
            "gemm_byte_efficiency": FittedValue(efficiency, 0.02),
            "kernel_seconds": FittedValue(2e-6, 0.1),
        },
    )


def test_the_same_die_keeps_its_physics_and_its_stack():
    found = transferred("h200-sxm", [fit("h100-sxm", 70.0, 0.8)], "vllm-0.11")
    assert found.rows == 0
    assert found.chip_values["idle_watts"].value == 70.0
    assert found.chip_values["idle_watts"].sd > 0.05  # less sure than where it was seen
    assert found.stack_values["kernel_seconds"].value == 2e-6
    assert "h100-sxm" in found.fitted_on[0]
    ratio = reached_bandwidth("h200-sxm") / reached_bandwidth("h100-sxm")
    expected = 0.8 * ratio**0.5
    assert found.stack_values["gemm_byte_efficiency"].value == pytest.approx(
        expected, rel=1e-3
    )


def test_another_die_takes_the_mean_stack_and_its_own_priors():
    fits = [fit("h100-sxm", 70.0, 0.8), fit("b200-sxm", 140.0, 0.8)]
    found = transferred("rtx-pro-6000", fits, "vllm-0.11")
    assert not found.chip_values
    assert found.stack_values["kernel_seconds"].value == pytest.approx(2e-6)


def test_a_transfer_needs_a_fit_of_the_stack():
    with pytest.raises(ValueError, match="transfer: expected a fit of sglang"):
        transferred("h200-sxm", [fit("h100-sxm", 70.0, 0.8)], "sglang")


def test_what_is_carried_over_says_so_and_has_wide_intervals(tmp_path):
    path = tmp_path / "h200-sxm.vllm-0.11.toml"
    save_profile(
        path, transferred("h200-sxm", [fit("h100-sxm", 70.0, 0.8)], "vllm-0.11")
    )
    card = load_profile_card("h200-sxm", "vllm-0.11", path)
    assert load_profile("h200-sxm", profile=path).chip.idle_watts == 70.0
    assert not card.fitted
    assert any("no runs of h200-sxm" in note for note in card.notes)
    assert card.coefficients["chip.idle_watts"].origin == "prior"
    assert deviation(card, "energy") >= TRANSFER["energy"]
