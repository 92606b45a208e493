from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxlens import load_profile
from jaxlens.precisions import precision
from jaxlens.rooflines import HBM_SOFTNESS, Machine, kernel, limits
from jaxlens.works import Work

PROFILE = load_profile("h100-sxm", "vllm-0.11")
CHIP = PROFILE.chip
# No overhead of any kind, engines that overlap perfectly: the textbook roofline.
IDEAL = replace(
    PROFILE.stack,
    gemm_flop_efficiency=1.0,
    gemm_byte_efficiency=1.0,
    gemm_half_rows=0.0,
    gemm_half_columns=0.0,
    gemm_half_depth=0.0,
    ramp_bytes=0.0,
    softness=0.0,
    kernel_seconds=0.0,
)


def machine(stack=PROFILE.stack, chip=CHIP, clock_share=1.0, sm_share=1.0):
    return Machine(chip=chip, stack=stack, clock_share=clock_share, sm_share=sm_share)


def gemm(rows=4096.0, **changes):
    m, n, k = rows, 4096.0, 4096.0
    work = Work(
        role="gemm",
        flop=2.0 * m * n * k,
        rows=m,
        columns=n,
        depth=k,
        mix=precision("bf16"),
        hbm_bytes=2.0 * (m * n + n * k + k * m),
    )
    return replace(work, **changes)


def test_a_large_product_runs_at_the_peak():
    expected = 2 * 4096**3 / CHIP.peak_bf16_flop_per_s
    cost = kernel(gemm(), machine(IDEAL))
    assert float(cost.seconds) == pytest.approx(expected)
    assert float(cost.clocked_seconds) == pytest.approx(expected)


def test_one_row_runs_at_the_bandwidth():
    reach = 1.0 / (1.0 + HBM_SOFTNESS**0.5)  # at least, where SMs just suffice
    expected = 2 * 4096**2 / CHIP.hbm_bytes_per_s
    cost = kernel(gemm(1.0), machine(IDEAL))
    assert expected <= float(cost.seconds) < expected / reach * 1.001
    assert float(cost.clocked_seconds) == pytest.approx(0.0, abs=1e-3 * expected)


def test_energy_counts_the_same_work():
    cost = kernel(gemm(), machine(IDEAL))
    assert float(cost.flop_joules) == pytest.approx(2 * 4096**3 * CHIP.bf16_j_per_flop)
    assert float(cost.hbm_joules) == pytest.approx(6 * 4096**2 * CHIP.hbm_j_per_byte)


@pytest.mark.parametrize("role", ["gemm", "attention", "experts", "scan"])
def test_efficiencies_fall_to_one_half_at_the_half_sizes(role):
    most = limits(role, PROFILE.stack)
    half = replace(
        IDEAL,
        gemm_half_rows=64.0,
        attention_half_rows=64.0,
        experts_half_rows=64.0,
        **{f"{role}_flop_efficiency": 1.0},
    )
    if role == "scan":
        assert most.half_rows == 0.0
        return
    work = gemm(64.0, role=role, hbm_bytes=0.0)
    expected = 2.0 * work.flop / CHIP.peak_bf16_flop_per_s
    assert float(kernel(work, machine(half)).seconds) == pytest.approx(expected)


def test_double_work_takes_double_time():
    wide = gemm(columns=8192.0, flop=2 * gemm().flop, hbm_bytes=2 * gemm().hbm_bytes)
    one, two = (kernel(w, machine(IDEAL)) for w in (gemm(), wide))
    assert float(two.seconds) == pytest.approx(2 * float(one.seconds))
    assert float(two.flop_joules) == pytest.approx(2 * float(one.flop_joules))


@pytest.mark.parametrize("rows", [1.0, 256.0, 8192.0])
def test_more_of_any_resource_is_never_slower(rows):
    base = float(kernel(gemm(rows), machine()).seconds)
    for field in ("peak_bf16_flop_per_s", "hbm_bytes_per_s"):
        better = replace(CHIP, **{field: 1.2 * getattr(CHIP, field)})
        assert float(kernel(gemm(rows), machine(chip=better)).seconds) < base
    for share in ("clock_share", "sm_share"):
        assert float(kernel(gemm(rows), machine(**{share: 0.5})).seconds) > base
    longer = replace(PROFILE.stack, kernel_seconds=PROFILE.stack.kernel_seconds + 1e-6)
    assert float(kernel(gemm(rows), machine(longer)).seconds) == pytest.approx(
        base + 1e-6
    )


def test_fewer_bits_are_faster_where_the_chip_has_a_unit():
    times = [
        float(kernel(gemm(mix=precision(name)), machine(IDEAL)).seconds)
        for name in ("fp32", "tf32", "bf16", "fp8")
    ]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("rows", [1.0, 280.0, 300.0, 8192.0])  # both sides of the ridge
def test_gradients_agree_with_finite_differences(rows):
    def seconds(scale, clock, sms, softness):
        work = gemm(rows, flop=gemm(rows).flop * scale)
        stack = replace(PROFILE.stack, softness=softness)
        on = machine(stack, clock_share=clock, sm_share=sms)
        cost = kernel(work, on)
        return 1e6 * (cost.seconds + cost.clocked_seconds)

    arguments = (1.0, 0.9, 0.8, 0.1)
    check_grads(seconds, arguments, order=1, modes=("rev",), rtol=1e-3)


def test_gradients_are_finite_at_the_ridge_and_for_one_engine_alone():
    def seconds(flop, hbm_bytes):
        work = gemm(flop=flop, hbm_bytes=hbm_bytes)
        cost = kernel(work, machine(IDEAL))
        return cost.seconds + cost.clocked_seconds

    gradient = jax.grad(seconds, (0, 1))
    ridge = CHIP.peak_bf16_flop_per_s / CHIP.hbm_bytes_per_s
    for flop, hbm_bytes in ((1e9 * ridge, 1e9), (0.0, 1e9), (1e9, 0.0)):
        assert np.all(np.isfinite(gradient(flop, hbm_bytes)))
