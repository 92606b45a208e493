"""`jaxlens calibrate` on kernels: formulas in a folder that `validate` reads back."""

import json

import numpy as np
import pytest

from jaxlens.calibration.table_fits import kind_of
from jaxlens.calibration.tables import read_table
from jaxlens.cli import main

PEAK = 9.894e14


@pytest.fixture
def gemms(tmp_path):
    random = np.random.default_rng(0)
    lines = ["gpu,backend,table_version,kernel_source,dtype,m,n,k,latency_ms"]
    for _ in range(80):
        m, n, k = (int(2**p) for p in random.uniform(8, 13, 3))
        seconds = 4e-6 + 2.0 * m * n * k / (0.7 * PEAK)
        lines.append(
            f"h100-sxm,vllm,0.0,made_up,bfloat16,{m},{n},{k},{1e3 * seconds:.9f}"
        )
    path = tmp_path / "gemm.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_kernels_of_a_table_are_fitted_and_validated(gemms, tmp_path, capsys):
    folder = tmp_path / "kernels"
    assert main(["calibrate", str(gemms), "--out", str(folder), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert str(folder / "h100-sxm.toml") in written
    assert main(["validate", str(gemms), "--profile", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 80
    assert found["time"]["median_ape"] < 0.05


def test_a_file_is_no_place_for_kernels(gemms, tmp_path, capsys):
    out = tmp_path / "profile.toml"
    assert main(["calibrate", str(gemms), "--out", str(out)]) == 2
    assert "expected --out to be a folder" in capsys.readouterr().err
    assert not out.exists()


def test_fits_are_not_mixed(gemms, tmp_path):
    curve = tmp_path / "h100-sxm_idle_power.json"
    curve.write_text('{"345": 70.0, "1980": 120.0}', "utf-8")
    tables = [read_table(gemms), read_table(curve)]
    with pytest.raises(ValueError, match="expected tables for one fit"):
        kind_of(tables)
    with pytest.raises(ValueError, match="got clocks_idle"):
        kind_of(tables[1:])
