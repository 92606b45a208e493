"""Measured tables: what is read, what is set aside, and why."""

import csv
import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxlens.calibration.schemas import SCHEMAS
from jaxlens.calibration.tables import Table, read_table

ROW = {
    "source": "bench",
    "stack": "vllm-0.11",
    "gpu": "h100-sxm",
    "gpus": "2",
    "model": "org/model",
    "weight_dtype": "bf16",
    "tensor_parallel": "2",
    "prompt_tokens": "100",
    "output_tokens": "200",
    "max_num_seqs": "64",
    "concurrency": "64",
    "output_tokens_per_second": "1000",
    "watts": "1000",
    "joules_per_output_token": "1.0",
}
CHECKS = {
    "known_model": lambda name: name.startswith("org/"),
    "known_gpu": lambda name: name in {"h100-sxm", "a100-sxm-40gb", "rtx-pro-6000"},
    "chip_watts": lambda name: (100.0, 700.0),
}
LENIENT = {
    "known_model": lambda name: True,
    "known_gpu": lambda name: True,
    "chip_watts": lambda name: None,
}


def written(path, rows, columns=None):
    columns = columns or list(rows[0])
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def serving(path, *changes, **options) -> Table:
    """Reads a table of one good row and one more for each of `changes`."""
    rows = [ROW, *({**ROW, **change} for change in changes)]
    return read_table(written(path / "runs.csv", rows), **{**CHECKS, **options})


def test_a_good_row_comes_back_in_si_with_its_derived_columns(tmp_path):
    table = serving(tmp_path)
    assert table.kind == "serving"
    assert table.rows == len(table) == 1
    assert table["latency_seconds"].tolist() == [0.064]
    assert table["data_parallel"].tolist() == [1.0]
    assert table["clean"].tolist() == [1.0]
    assert table["model"].tolist() == ["org/model"]
    assert len(table.sha256) == 64
    assert table.provenance["file"] == "runs.csv"
    assert any("one row" in note for note in table.notes)


def test_watts_and_joules_fill_each_other(tmp_path):
    table = serving(
        tmp_path,
        {"watts": "", "joules_per_output_token": "0.8"},
        {"joules_per_output_token": "", "watts": "700"},
    )
    assert table["watts"].tolist() == [1000.0, 800.0, 700.0]
    assert table["joules_per_output_token"].tolist() == [1.0, 0.8, 0.7]


def test_a_table_without_energy_is_fit_for_latency(tmp_path):
    rows = [{k: v for k, v in ROW.items() if k not in ("watts",)}]
    del rows[0]["joules_per_output_token"]
    table = read_table(written(tmp_path / "t.csv", rows), **CHECKS)
    assert not table.has("joules_per_output_token")
    assert not table.has("watts")
    assert table.has("latency_seconds")


BAD_CELLS = [
    ({"output_tokens_per_second": ""}, "output_tokens_per_second", "required"),
    ({"output_tokens_per_second": "fast"}, "output_tokens_per_second", "not a number"),
    ({"watts": "1000 W"}, "watts", "not a number"),
    ({"watts": "nan"}, "watts", "not finite"),
    ({"watts": "inf"}, "watts", "not finite"),
    ({"concurrency": "-3"}, "concurrency", "more than 0"),
    ({"concurrency": "0"}, "concurrency", "more than 0"),
    ({"prompt_tokens": "-1"}, "prompt_tokens", "0 or more"),
    ({"prompt_tokens": "1e30"}, "prompt_tokens", "implausibly large"),
    ({"gpus": "1.5"}, "gpus", "whole number"),
    ({"gpus": "3"}, "gpus", "tensor_parallel x"),
    ({"model": "nobody/knows"}, "model", "unknown model"),
    ({"gpu": "h900"}, "gpu", "unknown gpu"),
    ({"gpu": ""}, "gpu", "required"),
    ({"weight_dtype": "bf17"}, "weight_dtype", "expected one of"),
    ({"watts": "1000000"}, "watts", "looks like mW"),
    ({"watts": "1.0"}, "watts", "looks like kW"),
    ({"watts": "90"}, "watts", "implies 45 W per GPU"),
    ({"joules_per_output_token": "2.8e-7"}, "joules_per_output_token", "kWh"),
    ({"joules_per_output_token": "1000"}, "joules_per_output_token", "mJ"),
    ({}, "(all)", "the same in every cell as row 2"),
]


@pytest.mark.parametrize(("change", "column", "reason"), BAD_CELLS)
def test_a_bad_row_is_set_aside_and_explained(tmp_path, change, column, reason):
    table = serving(tmp_path, {"prompt_tokens": "101"}, change)
    assert table.rows == 2
    (bad,) = table.skipped
    assert (bad.row, bad.column) == (4, column)
    assert reason in bad.reason
    assert table.row_numbers.tolist() == [2, 3]


def test_watts_of_one_gpu_are_told_from_watts_of_all(tmp_path):
    change = {"gpus": "8", "tensor_parallel": "8", "watts": "380"}
    change["joules_per_output_token"] = ""
    assert "one GPU" in serving(tmp_path, change).skipped[0].reason


def test_strict_raises_on_the_first_bad_rows(tmp_path):
    with pytest.raises(ValueError, match=r"row 3, watts = -1"):
        serving(tmp_path, {"watts": "-1"}, strict=True)


def test_energy_that_contradicts_power_is_noted(tmp_path):
    table = serving(tmp_path, {"joules_per_output_token": "0.7"})
    assert table.rows == 2
    assert any("differ by more than 20 %" in n and "(3)" in n for n in table.notes)


def test_a_counted_queue_is_noted(tmp_path):
    table = serving(tmp_path, {"concurrency": "90"})
    assert any("max_num_seqs" in note for note in table.notes)


def test_mixed_gpus_stacks_and_ignored_columns_are_noted(tmp_path):
    other = {**ROW, "gpu": "A100-SXM4-40GB", "stack": "vllm-0.5", "extra": "x"}
    rows = [{**ROW, "extra": "y"}, other]
    table = read_table(written(tmp_path / "t.csv", rows), **CHECKS)
    assert table["gpu"].tolist() == ["h100-sxm", "a100-sxm-40gb"]
    text = " ".join(table.notes)
    assert "2 values of gpu" in text
    assert "2 values of stack" in text
    assert "ignored columns: extra" in text


def test_all_equal_rows_leave_one(tmp_path):
    table = serving(tmp_path, {}, {})
    assert table.rows == 1
    assert len(table.skipped) == 2
    assert any("all rows are the same" in note for note in table.notes)


def test_a_target_that_never_changes_is_noted(tmp_path):
    table = serving(tmp_path, {"concurrency": "32"})
    assert any("watts: the same in all 2 rows" in note for note in table.notes)


def test_gpu_and_stack_come_from_the_caller_where_the_table_has_none(tmp_path):
    row = {k: v for k, v in ROW.items() if k not in {"gpu", "stack"}}
    path = written(tmp_path / "t.csv", [row])
    with pytest.raises(ValueError, match=r"none called stack, gpu .*--gpu and --stack"):
        read_table(path, **CHECKS)
    table = read_table(path, gpu="H100", stack="sglang-0.5", **CHECKS)
    assert table["gpu"].tolist() == ["h100-sxm"]
    assert table["stack"].tolist() == ["sglang-0.5"]


def test_degrees_fill_each_other(tmp_path):
    table = serving(
        tmp_path,
        {"tensor_parallel": "", "prompt_tokens": "1"},
        {"gpus": "", "prompt_tokens": "2"},
    )
    assert table["tensor_parallel"].tolist() == [2.0, 2.0, 2.0]
    assert table["gpus"].tolist() == [2.0, 2.0, 2.0]


def test_rows_of_the_wrong_length_are_set_aside(tmp_path):
    path = written(tmp_path / "t.csv", [ROW])
    path.write_text(path.read_text() + "a,b\n\n")
    (bad,) = read_table(path, **CHECKS).skipped
    assert bad.row == 3
    assert "expected 14 cells, got 2" in bad.reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"a;b;c\n1;2;3\n", "commas"),
        (b"a,a\n1,2\n", "a twice"),
        (b"a,b\n1,2\n", "expected the columns of a serving"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"PAR1 and no more", "expected Parquet"),
        (b"{not json", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[1, 2]", "JSON objects"),
        (b'{"210": 44.5}', "--kind"),
    ],
)
def test_files_that_are_no_tables_say_what_they_lack(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(path, **CHECKS)


def test_an_empty_table_and_a_table_of_bad_rows_raise(tmp_path):
    path = written(tmp_path / "t.csv", [], list(ROW))
    with pytest.raises(ValueError, match="empty table"):
        read_table(path, **CHECKS)
    with pytest.raises(ValueError, match="1 bad of 1"):
        read_table(written(path, [{**ROW, "watts": "x"}]), **CHECKS)
    with pytest.raises(ValueError, match="readable file"):
        read_table(tmp_path / "none.csv", **CHECKS)


def test_a_forced_kind_says_which_columns_are_missing(tmp_path):
    path = written(tmp_path / "t.csv", [{"m": "1", "n": "2"}])
    with pytest.raises(ValueError, match="gemm table, got none called"):
        read_table(path, kind="gemm", **CHECKS)
    with pytest.raises(ValueError, match="expected a kind among"):
        read_table(path, kind="gems", **CHECKS)


def test_parquet_with_nulls_and_dictionaries(tmp_path):
    columns = {
        "gpu": pa.array(["h100-sxm", "h100-sxm"]).dictionary_encode(),
        "backend": ["vllm", "vllm"],
        "table_version": ["1.0", "1.0"],
        "dtype": ["bfloat16", "fp8"],
        "m": [1, 2],
        "n": [3, 4],
        "k": [5, 6],
        "latency_ms": [0.5, -1.0],
        "power_w": [300.0, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "gemm.parquet")
    table = read_table(tmp_path / "gemm.parquet", **CHECKS)
    assert table.kind == "gemm"
    assert table["seconds"].tolist() == [5e-4]
    assert table["joules"].tolist() == [0.15]
    assert table["stack"].tolist() == ["vllm-1.0"]
    assert table.skipped[0].row == 2


def test_a_clock_curve_takes_its_gpu_from_the_file_name(tmp_path):
    path = tmp_path / "h100-sxm_supply_voltage.json"
    path.write_text(json.dumps({"210": 700.0, "1980": None}))
    table = read_table(path, **CHECKS)
    assert table.kind == "clocks_voltage"
    assert table["sm_clock_hz"].tolist() == [210e6, 1980e6]
    assert table["volts"][0] == pytest.approx(0.7)
    assert math.isnan(table["volts"][1])


def test_a_forward_pass_checks_its_power(tmp_path):
    row = {
        "stack": "hf-eager",
        "gpu": "h100-sxm",
        "model": "org/m",
        "batch": "1",
        "prompt_tokens": "128",
        "seconds": "0.5",
        "joules": "100",
    }
    rows = [row, {**row, "joules": "2.8e-5"}]
    table = read_table(written(tmp_path / "t.csv", rows), **CHECKS)
    assert table.kind == "forward"
    assert table["watts"].tolist() == [200.0]
    assert "kWh" in table.skipped[0].reason


def test_subset_keeps_row_numbers(tmp_path):
    table = serving(tmp_path, {"concurrency": "32"})
    part = table.subset(table["concurrency"] < 50.0)
    assert part.row_numbers.tolist() == [3]
    with pytest.raises(ValueError, match="expected a column"):
        table["nothing"]


cell = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "1", "-1", "nan", "inf", "1e400", "0", "700", "true", '"']),
    st.floats().map(str),
)


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), kind=st.sampled_from(sorted(SCHEMAS)))
def test_garbage_under_good_headers_never_crashes(tmp_path, data, kind):
    schema = SCHEMAS[kind]
    header = [c.spellings[0][0] if c.spellings else c.name for c in schema.columns]
    rows = data.draw(
        st.lists(st.lists(cell, min_size=len(header) - 1, max_size=len(header)))
    )
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *rows])
    path = tmp_path / "garbage.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", errors="replace", newline="")
    try:
        table = read_table(path, **CHECKS)
    except ValueError:
        return
    assert table.rows > 0
    for values in table.columns.values():
        assert len(values) == table.rows
        assert values.dtype.kind == "U" or not np.isinf(values).any()


@settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_any_file_reads_or_raises_value_error(tmp_path, content):
    path = tmp_path / "any"
    if isinstance(content, str):
        content = content.encode("utf-8", "replace")
    path.write_bytes(content)
    try:
        read_table(path, **CHECKS)
    except ValueError as error:
        assert str(path) in str(error)


FILES = [
    ("serving/mlenergy_v3.csv", "serving", 373),
    ("serving/mlenergy_v2.csv", "serving", 284),
    ("serving/argonne.csv", "serving", 147),
    ("serving/memory_gap.csv", "serving", 220),
    ("prefill/energaizer_a100.csv", "forward", 109),
    ("prefill/energaizer_a10.csv", "forward", 73),
    ("prefill/energaizer_dvfs.csv", "forward", 217),
    ("clocks/a100-sxm_supply_voltage.json", "clocks_voltage", 81),
    ("clocks/a100-pcie-40gb_supply_voltage.json", "clocks_voltage", 81),
    ("clocks/h100-sxm_supply_voltage.json", "clocks_voltage", 110),
    ("clocks/a100-sxm_idle_power.json", "clocks_idle", 81),
    ("clocks/a100-pcie-40gb_idle_power.json", "clocks_idle", 81),
    ("clocks/h100-sxm_idle_power.json", "clocks_idle", 110),
    ("clocks/rtxpro6000_vllm_powercap.csv", "powercap", 28),
    ("ops/gemm.parquet", "gemm", 215_202),
    ("ops/attention_prefill.parquet", "attention_prefill", 53_292),
    ("ops/attention_decode.parquet", "attention_decode", 53_061),
    ("ops/moe.parquet", "moe", 54_139),
    ("ops/collectives.csv", "collectives", 18_182),
    ("ops/expert_alltoall_sm_sweep.csv", "alltoall", 13_822),
]


@pytest.mark.data
@pytest.mark.parametrize(("file", "kind", "rows"), FILES)
def test_every_measured_table_reads_in_full(data_folder, file, kind, rows):
    table = read_table(data_folder / file, **LENIENT)
    assert (table.kind, table.rows, table.skipped) == (kind, rows, ())


@pytest.mark.data
def test_units_of_measured_tables(data_folder):
    sweep = read_table(data_folder / "ops/expert_alltoall_sm_sweep.csv", **LENIENT)
    assert sweep["dispatch_seconds"].min() == pytest.approx(24.1273468e-6)
    capped = read_table(data_folder / "clocks/rtxpro6000_vllm_powercap.csv", **LENIENT)
    assert set(capped["gpu"].tolist()) == {"rtx-pro-6000"}
    implied = capped["joules_per_output_token"] * capped["output_tokens_per_second"]
    assert implied == pytest.approx(capped["watts"], rel=1e-6)
    links = read_table(data_folder / "ops/collectives.csv", **LENIENT)
    gathers = links.subset(links["operation"] == "all_gather")
    n = gathers["gpus"]
    bus = gathers["bytes"] / gathers["seconds"] * (n - 1.0) / n
    assert bus == pytest.approx(gathers["bus_bytes_per_s"], rel=1e-6)
