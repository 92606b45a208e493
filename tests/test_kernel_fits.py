"""Kernel formulas: their limits, their fits, and the coefficients that ship."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlens.calibration.kernels import attention_decode, gemm
from jaxlens.calibration.kernels.calibrating import fit_kernels
from jaxlens.calibration.kernels.families import FAMILIES, POWER_FAMILIES
from jaxlens.calibration.kernels.formulas import Family, values_of
from jaxlens.calibration.kernels.groups import folds, group_names, members
from jaxlens.calibration.kernels.kernel_fits import load_kernel_fits
from jaxlens.calibration.kernels.powers import trustworthy_power
from jaxlens.calibration.kernels.predicting import predict_table
from jaxlens.calibration.kernels.terms import (
    exact_count,
    relaxed_count,
    soft_minimum,
    uncached_bytes,
)
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.scores import median_ape
from jaxlens.calibration.tables import read_table

FILES = {
    "gemm": "gemm.parquet",
    "attention_prefill": "attention_prefill.parquet",
    "attention_decode": "attention_decode.parquet",
    "moe": "moe.parquet",
    "collectives": "collectives.csv",
}
BARS = {
    "gemm": 0.07,
    "attention_prefill": 0.09,
    "attention_decode": 0.07,
    "moe": 0.10,
    "collectives": 0.10,
    "alltoall": 0.10,
}


def priors(family: Family) -> dict[str, jax.Array]:
    return values_of(family.coefficients, jnp.zeros(len(family.coefficients)))


def gemm_rows(gpu: str, m: list[float], n: float = 4096.0, k: float = 4096.0) -> dict:
    count = len(m)
    return {
        "gpu": np.full(count, gpu),
        "kernel_source": np.full(count, "torch.nn.functional.linear"),
        "dtype": np.full(count, "bfloat16"),
        "m": np.array(m, float),
        "n": np.full(count, n),
        "k": np.full(count, k),
        "seconds": np.full(count, 1e-4),
    }


def table_of(kind: str, columns: dict) -> Table:
    rows = np.arange(len(columns["gpu"]))
    return Table(
        kind=kind, source="here", sha256="0", columns=columns, row_numbers=rows
    )


def test_counts_of_tiles():
    sizes = jnp.array([1.0, 128.0, 129.0])
    assert np.asarray(exact_count(sizes, 128.0)).tolist() == [1.0, 1.0, 2.0]
    # sqrt(1 + (x / 128)^2): sqrt(2) at one whole tile.
    assert np.asarray(relaxed_count(sizes, 128.0))[1] == pytest.approx(2.0**0.5)


def test_the_fastest_way_wins():
    fast = soft_minimum([jnp.array([1.0]), jnp.array([10.0])])
    assert float(fast[0]) == pytest.approx(1.0, rel=1e-6)


def test_the_cache_speeds_up_what_fits():
    small = uncached_bytes(1.0, 1e-3, 1.0, 4.0)
    large = uncached_bytes(1e3, 1e3, 1.0, 4.0)
    assert float(small) == pytest.approx(0.25, rel=1e-6)
    assert float(large) == pytest.approx(1e3, rel=1e-6)


def test_large_products_run_at_the_peak():
    # 2 x 16384^3 FLOPs at 80 % of 989.4 TFLOP/s take 11.1 ms; the prior adds traffic
    # of small tiles, waves and heat.
    columns = gemm_rows("h100-sxm", [16384.0], n=16384.0, k=16384.0)
    features = {k: jnp.asarray(v) for k, v in gemm.features(columns).items()}
    seconds = np.exp(gemm.log_seconds(priors(gemm.FAMILY), features))
    assert 11.1e-3 < float(seconds[0]) < 22e-3


@pytest.mark.parametrize("module", [gemm, attention_decode], ids=["gemm", "decode"])
def test_relaxed_sizes_have_gradients(module):
    columns = {
        **gemm_rows("h100-sxm", [1.0, 128.0, 129.0]),
        "batch": np.array([1.0, 128.0, 129.0]),
        "context_tokens": np.array([1.0, 128.0, 4097.0]),
        "heads": np.full(3, 32.0),
        "kv_heads": np.array([1.0, 8.0, 32.0]),
        "head_dim": np.full(3, 128.0),
    }
    inputs = {k: jnp.asarray(v) for k, v in module.features(columns).items()}
    values = priors(module.FAMILY)
    size = {gemm: "m", attention_decode: "batch"}[module]

    def total(sizes):
        relaxed = module.log_seconds(values, {**inputs, size: sizes}, relaxed_count)
        return jnp.sum(relaxed)

    slope = jax.grad(total)(inputs[size])
    assert bool(jnp.all(jnp.isfinite(slope)))
    assert bool(jnp.any(slope != 0.0))


def test_names_and_folds_of_groups():
    columns = gemm_rows("h100-sxm", [1.0, 2.0, 1.0, 2.0])
    columns["gpu"] = np.array(["a", "a", "b", "b"])
    names = group_names(columns, ("gpu", "version", "dtype"), "gemm")
    assert names.tolist()[0] == "a |  | bfloat16"
    assert {k: v.tolist() for k, v in members(names).items()} == {
        "a |  | bfloat16": [0, 1],
        "b |  | bfloat16": [2, 3],
    }
    fold = folds(columns, ("m", "n", "k"), 5, 0)
    assert fold[0] == fold[2] and fold[1] == fold[3]  # one shape, one fold


def ring_rows(sizes: np.ndarray) -> dict:
    count = len(sizes)
    return {
        "gpu": np.full(count, "h100-sxm"),
        "operation": np.full(count, "all_reduce"),
        "implementation": np.full(count, "ring"),
        "dtype": np.full(count, "half"),
        "version": np.full(count, "1"),
        "gpus": np.full(count, 8.0),
        "bytes": sizes,
        "seconds": 2e-5 + 1.75 * sizes / 3e11,
    }


def test_fits_recover_a_formula_and_survive_a_file(tmp_path: Path):
    columns = ring_rows(2.0 ** np.arange(10.0, 30.0))
    table = table_of("collectives", columns)
    seen = []
    fits = fit_kernels([table], progress=lambda *news: seen.append(news))
    assert seen[-1] == ("collectives", 5, 5)
    report = fits.report["seconds"]["collectives"]
    assert report["groups"] == 1
    assert report["worst"] < 0.05
    again = load_kernel_fits(folder=fits.save(tmp_path)[0].parent)
    predicted = predict_table(table, again)["seconds"]
    assert predicted == pytest.approx(columns["seconds"], rel=0.1)
    assert again.provenance["collectives"]["rows"] == 20
    finest = again.levels["seconds"]["collectives"][FAMILIES["collectives"].levels[-1]]
    assert list(finest) == ["h100-sxm | all_reduce | ring | half | 8 | 1"]


def test_equal_rows_fit_without_nan():
    table = table_of("collectives", ring_rows(np.full(2, 1e6)))
    fits = fit_kernels([table])
    assert np.isfinite(predict_table(table, fits)["seconds"]).all()
    assert fits.report["seconds"]["collectives"]["worst"] is None  # nothing to judge


def test_files_that_are_missing_say_so(tmp_path: Path):
    with pytest.raises(ValueError, match=r"expected pooled\.toml"):
        load_kernel_fits(folder=tmp_path)


def test_unknown_groups_have_stand_ins():
    columns = gemm_rows("h100-sxm", [16.0, 4096.0])
    columns["kernel_source"] = np.array(["torch.nn.functional.linear", "my own"])
    found = predict_table(table_of("gemm", columns))
    assert found["own_group"].tolist() == [True, False]
    assert "my own" in found["notes"][0]
    elsewhere = {**columns, "gpu": np.full(2, "h100-pcie")}
    assert np.isfinite(predict_table(table_of("gemm", elsewhere))["seconds"]).all()


def test_shipped_products_grow_with_rows():
    rows = 2.0 ** np.arange(7.0, 15.0)
    for gpu in ("a100-sxm-80gb", "h100-sxm", "l40s", "b200-sxm"):
        seconds = predict_table(table_of("gemm", gemm_rows(gpu, rows.tolist())))
        assert np.all(np.diff(seconds["seconds"]) > 0.0)


def test_short_launches_tell_nothing_of_power():
    columns = {
        "gpu": np.full(3, "h200-sxm"),
        "watts": np.array([500.0, 500.0, np.nan]),
        "seconds": np.array([5e-5, 2e-4, 2e-4]),
        "power_window_seconds": np.array([1.0, 1.0, 1.0]),
    }
    assert trustworthy_power("gemm")(columns).tolist() == [False, True, False]
    assert not trustworthy_power("moe")(columns).any()


def test_every_family_ships():
    fits = load_kernel_fits()
    assert set(fits.levels["seconds"]) == set(FAMILIES)
    assert set(fits.levels["watts"]) <= set(POWER_FAMILIES)
    for kind, bar in BARS.items():
        report = fits.report["seconds"][kind]
        assert report["median_over_groups"] < bar, kind


@pytest.mark.parametrize("kind", list(FILES))
def test_shipped_coefficients_meet_the_tables(kind: str, data_folder: Path):
    table = read_table(data_folder / "ops" / FILES[kind])
    table = table.subset(np.arange(0, table.rows, 11))
    scored = FAMILIES[kind].scored(table.columns)
    found = predict_table(table)
    assert found["own_group"].all()
    assert median_ape(found["seconds"][scored], table["seconds"][scored]) < BARS[kind]


def test_shipped_coefficients_meet_the_sm_sweep(data_folder: Path):
    table = read_table(data_folder / "ops" / "expert_alltoall_sm_sweep.csv")
    found = predict_table(table)
    for phase in ("dispatch", "combine"):
        name = f"{phase}_seconds"
        assert median_ape(found[name], table[name]) < BARS["alltoall"]


def test_shipped_power_meets_the_tables(data_folder: Path):
    table = read_table(data_folder / "ops" / "gemm.parquet")
    table = table.subset(table["gpu"] == "h200-sxm")
    trusted = trustworthy_power("gemm")(table.columns)
    watts = predict_table(table)["watts"]
    assert median_ape(watts[trusted], table["watts"][trusted]) < 0.12
