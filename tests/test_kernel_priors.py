"""Kernels of a chip of which few rows were measured: priors, folds, facts, files."""

from pathlib import Path

import numpy as np
import pytest

from jaxlens.calibration.kernels import (
    KernelFits,
    fit_kernels,
    load_kernel_fits,
    predict_table,
    trustworthy_power,
)
from jaxlens.calibration.kernels.families import FAMILIES
from jaxlens.calibration.kernels.formulas import scaled, score_of, share, value_of
from jaxlens.calibration.kernels.group_priors import NOTHING_KNOWN, priors_of
from jaxlens.calibration.kernels.groups import even_folds
from jaxlens.calibration.measured_tables import Table
from jaxlens.profiles import load_chip

GPU = "my gpu: 132 SMs"
LINEAR = "torch.nn.functional.linear | bfloat16"


def table_of(kind: str, columns: dict) -> Table:
    rows = np.arange(len(columns["gpu"]))
    return Table(
        kind=kind, source="here", sha256="0", columns=columns, row_numbers=rows
    )


def products(m: list[float], n: list[float], gpu: str = GPU) -> dict:
    """Returns rows of matrix products of every m by every n, 4096 deep."""
    rows, columns = (part.ravel() for part in np.meshgrid(m, n))
    count = len(rows)
    return {
        "gpu": np.full(count, gpu),
        "kernel_source": np.full(count, "torch.mm"),
        "dtype": np.full(count, "bfloat16"),
        "m": rows.astype(float),
        "n": columns.astype(float),
        "k": np.full(count, 4096.0),
        "seconds": np.ones(count),
    }


def measured(m: list[float], n: list[float]) -> Table:
    """Returns what an H100 that is 1.3 times as slow as the shipped one would measure."""
    twin = products(m, n, "h100-sxm")
    twin["kernel_source"] = np.full(len(twin["m"]), "torch.nn.functional.linear")
    columns = products(m, n)
    columns["seconds"] = 1.3 * predict_table(table_of("gemm", twin))["seconds"]
    columns["seconds_spread"] = np.full(len(twin["m"]), 0.004)
    return table_of("gemm", columns)


@pytest.fixture(scope="module")
def shipped() -> KernelFits:
    return load_kernel_fits()


@pytest.fixture(scope="module")
def fitted(shipped: KernelFits) -> KernelFits:
    rows = measured([16.0, 128.0, 1024.0, 8192.0], [1024.0, 8192.0])
    return fit_kernels([rows], priors=shipped, chips={GPU: load_chip("h100-sxm")})


def test_scores_are_read_back_from_values():
    # exp(0.7) times the prior is one standard score.
    assert score_of(scaled("a", "s", 2.0, 0.7), 2.0 * np.exp(0.7)) == pytest.approx(1.0)
    odds = share("b", 0.2, 1.5)
    assert score_of(odds, float(value_of(odds, np.array(-2.0)))) == pytest.approx(-2.0)
    assert np.isfinite(score_of(odds, 0.0))  # rounded in a file


def test_small_folds_are_even():
    columns = products([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 1.0], [64.0])
    fold = even_folds(columns, ("m", "n", "k"), 3, 0)
    assert fold[0] == fold[6]  # one shape
    assert np.bincount(fold[:6]).tolist() == [2, 2, 2]


def test_priors_are_the_pools_of_kin(shipped: KernelFits):
    family, levels = FAMILIES["gemm"], shipped.levels["seconds"]["gemm"]

    def names(source: str, dtype: str) -> list[str]:
        labels = {"gpu": GPU, "kernel_source": source, "dtype": dtype}
        return [prior.name for prior in priors_of(family, labels, levels, 0.7)]

    assert names("torch.mm", "bfloat16") == ["bfloat16", LINEAR]
    assert names("sglang", "bfloat16") == ["bfloat16", "sglang | bfloat16"]
    unknown = names("my own", "bfloat16")
    assert len(unknown) > 2 and all("bfloat16" in name for name in unknown)
    assert NOTHING_KNOWN in names("torch.mm", "float32")
    assert [p.name for p in priors_of(family, {}, {}, 0.7)] == [NOTHING_KNOWN]


def test_groups_stray_as_fitted_ones_do(shipped: KernelFits):
    family, levels = FAMILIES["gemm"], shipped.levels["seconds"]["gemm"]
    labels = {"gpu": GPU, "kernel_source": "torch.mm", "dtype": "bfloat16"}
    coarse, fine = priors_of(family, labels, levels, 1.0)
    spreads = [np.sqrt(np.diag(p.factor @ p.factor.T)).mean() for p in (coarse, fine)]
    assert 0.3 < spreads[1] < spreads[0] < 2.0


def test_few_rows_fit_a_chip_that_nobody_knows(fitted: KernelFits):
    others = measured([32.0, 512.0, 4096.0], [2048.0, 6144.0])
    found = predict_table(others, fitted)
    assert found["seconds"] == pytest.approx(others["seconds"], rel=0.08)
    assert found["own_group"].all()
    group = fitted.report["seconds"]["gemm"]["by_group"][f"{GPU} | torch.mm | bfloat16"]
    assert group["rows"] == 7  # one takes less than 10 us and does not count
    assert group["held_out_mape"] < 0.15  # every row, by a fit without it
    assert group["measured_spread"] == pytest.approx(0.004)
    assert group["nearest"] in (LINEAR, "bfloat16")


def test_fits_are_used_again_without_the_chip(fitted: KernelFits, tmp_path: Path):
    written = fitted.save(tmp_path)
    assert [path.name for path in written] == ["my-gpu-132-SMs.toml", "pooled.toml"]
    again = load_kernel_fits([GPU], folder=tmp_path)
    others = measured([64.0], [4096.0])
    assert predict_table(others, again)["seconds"] == pytest.approx(
        predict_table(others, fitted)["seconds"], rel=1e-4
    )
    assert again.report["seconds"]["gemm"]["worst"] == pytest.approx(
        fitted.report["seconds"]["gemm"]["worst"], abs=1e-4
    )
    assert again.provenance["gemm"]["rows"] == 8
    # Kinds that were not measured keep their pools.
    assert set(again.levels["seconds"]) == set(FAMILIES)


def test_shipped_fits_take_the_facts_of_a_chip():
    rows = measured([64.0], [4096.0])
    with pytest.raises(ValueError, match="my gpu"):
        predict_table(rows)
    found = predict_table(rows, chips={GPU: load_chip("h100-sxm")})
    assert not found["own_group"].any()
    assert found["seconds"] == pytest.approx(rows["seconds"] / 1.3, rel=0.5)


def test_one_row_is_enough_to_move(shipped: KernelFits):
    row = measured([1024.0], [8192.0])
    fits = fit_kernels([row], priors=shipped, chips={GPU: load_chip("h100-sxm")})
    predicted = predict_table(row, fits)["seconds"]
    assert predicted == pytest.approx(row["seconds"], rel=0.1)
    assert fits.report["seconds"]["gemm"]["worst"] is None  # nothing to judge


def test_cached_tokens_take_time():
    columns = {
        "gpu": np.full(2, "h100-sxm"),
        "kernel_source": np.full(2, "vllm_flash_attn_fa3"),
        "dtype": np.full(2, "bfloat16"),
        "batch": np.ones(2),
        "prompt_tokens": np.full(2, 2048.0),
        "cached_tokens": np.array([0.0, 6144.0]),
        "heads": np.full(2, 32.0),
        "kv_heads": np.full(2, 8.0),
        "head_dim": np.full(2, 128.0),
        "seconds": np.ones(2),
    }
    alone, behind = predict_table(table_of("attention_prefill", columns))["seconds"]
    # 2048 rows see 1024 keys on average, and 6144 more: seven times the work.
    assert 4.0 < behind / alone < 8.0


def test_windows_of_one_kernel_tell_its_power():
    columns = {
        "gpu": np.full(2, "h200-sxm"),
        "watts": np.full(2, 500.0),
        "seconds": np.full(2, 2e-5),
        "watts_spread": np.array([np.nan, 0.01]),
    }
    assert trustworthy_power("gemm")(columns).tolist() == [False, True]
