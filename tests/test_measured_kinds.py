"""Tables of the kinds that `jaxlens measure` writes: read, told apart, and compared."""

import machine_runs
import pytest

from jaxlens.calibration.schemas import SCHEMAS, recognise
from jaxlens.calibration.tables import read_table
from jaxlens.calibration.validation import TARGETS, validate
from jaxlens.fitted_profiles import toml_text
from jaxlens.measure.records import Records
from jaxlens.profiles import load_profile

PRIOR = load_profile("h200-sxm", "torch")
ORIGIN = {
    "backend": "torch",
    "suite": "full",
    "tight": True,
    "fills_cache": True,
    "bytes": 1e9,
    "throttle_reasons": "",
    "status": "ok",
}


def limited(row):
    """The row at a locked clock: its kind and its time have names of their own."""
    row = {**row, "kind": f"clock_{row['kind']}", "clock_setting": "1410 MHz"}
    seconds = row.pop("seconds")
    return {**row, "limited_seconds": seconds}


@pytest.fixture(scope="module")
def rows():
    """Rows as the priors of an H200 under torch have them."""
    cases = [*machine_runs.cases(every=9), *machine_runs.limited_cases()]
    cases += machine_runs.steps()
    free = machine_runs.measured(cases, PRIOR, noise=0.0)
    free = [{**ORIGIN, **row} for row in free]
    slow = [{**row, "sm_clock_hz": 1.41e9} for row in free if row["kind"] != "sm_share"]
    slow = [limited(row) for row in machine_runs.measured(slow, PRIOR, noise=0.0)]
    shares = [row for row in free if row["kind"] == "sm_share"]
    for row in shares:
        row |= {"granted_sms": row["sms"], "sm_limit": "green context"}
    idle = [{**machine_runs.PROVENANCE, **row} for row in machine_runs.idle(PRIOR)]
    for row in idle:
        row["sm_clock_mhz"] = row["sm_clock_hz"] / 1e6
    pairs = [{**machine_runs.PROVENANCE, **ORIGIN, **pair} for pair in overlaps()]
    return [*free, *slow, *idle, *pairs]


def overlaps():
    for bound, slowdown in (("compute", 1.3), ("memory", 2.0)):
        rows = 8192 if bound == "compute" else 16
        yield {
            "case": f"overlap/{bound}",
            "kind": "overlap",
            "m": rows,
            "n": 8192,
            "k": 8192,
            "dtype": "bfloat16",
            "copied_bytes": 2**30,
            "limited_seconds": 2e-3,
            "seconds_alone": 1.6e-3 if bound == "compute" else 5e-5,
            "copy_seconds_alone": 2.6e-4,
            "product_slowdown": slowdown,
            "copy_slowdown": slowdown,
            "seconds_spread": 0.01,
        }


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    """The files of a run, as the harness writes them."""
    records = Records(tmp_path_factory.mktemp("run") / "run.parquet")
    records.rows = rows[:-1]
    records.add(rows[-1])
    for kind in records.kinds():
        records._write_kind(kind)
    return records


KINDS = (
    "copy",
    "elementwise",
    "sm_share",
    "overlap",
    "loaded_idle",
    *(name for name in SCHEMAS if name.startswith("clock_")),
)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_each_kind_are_told_by_their_columns(run, kind):
    table = read_table(run.kind_path(kind), strict=True)
    assert table.kind == kind
    assert set(table["gpu"]) == {"h200-sxm"}
    for column in TARGETS[kind].values():
        assert table.has(column), column
    assert not [note for note in table.notes if "ignored columns" in note]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_what_tells_a_kind_tells_no_other(kind):
    for signature in SCHEMAS[kind].signature:
        assert recognise(signature, where="here").kind == kind


@pytest.mark.parametrize(
    "kind", ["copy", "elementwise", "sm_share", "loaded_idle", "clock_gemm"]
)
def test_prices_meet_rows_that_were_made_of_them(run, kind):
    found = validate([run.kind_path(kind)])
    for target in TARGETS[kind]:
        assert found[target]["mape"] < 0.01, target
    assert found["skipped"] == 0


def test_energy_beside_an_occupier_is_not_compared(run, tmp_path):
    rows = [row for row in run.rows if row["kind"] == "sm_share"]
    occupied = Records(tmp_path / "run.parquet")
    occupied.rows = [{**row, "sm_limit": "occupier"} for row in rows]
    occupied._write_kind("sm_share")
    found = validate([occupied.kind_path("sm_share")])
    assert "time" in found and "energy" not in found


def test_slowdowns_follow_from_shared_memory(run):
    found = validate([run.kind_path("overlap")], by=("m",))
    groups = found["by"]["m"]
    # Bound by memory, both take twice as long; bound by FLOPs, little more than alone.
    assert groups["16"]["product_slowdown"]["mape"] < 0.25
    assert groups["8192"]["copy_slowdown"]["mape"] < 0.25
    assert groups["8192"]["rows"] == 1


def test_a_whole_run_is_compared_by_kind(run):
    found = validate([run.path], by=("kind",))
    assert found["kind"] == "run"
    groups = found["by"]["kind"]
    assert {"gemm", "copy", "moe", "sm_share", "clock_gemm", "overlap"} <= set(groups)
    assert found["time"]["mape"] < 0.01 and found["energy"]["mape"] < 0.01
    assert "time" not in groups["overlap"]
    assert found["power"]["rows"] == 1


def test_rows_that_failed_are_set_aside(run, tmp_path):
    failed = {**run.rows[0], "status": "out of memory: leave the case out", "run": 2.0}
    path = machine_runs.write(tmp_path / "run.parquet", [*run.rows[:9], failed])
    table = read_table(path)
    (bad,) = table.skipped
    assert (bad.column, bad.row) == ("status", 10)
    assert "out of memory" in bad.value


@pytest.fixture
def foreign(run, tmp_path):
    """The run on a chip that only the file beside it describes."""
    own = tmp_path / "own.parquet"
    rows = [{**row, "gpu": "gpu-of-mine"} for row in run.rows if "clock" not in row]
    records = Records(own)
    records.rows = rows
    for kind in ("gemm", "copy", "clocks_idle"):
        records._write_kind(kind)
    machine_runs.write(own, rows)
    return records


def describe(records, **facts):
    from jaxlens.profile_files import CHIPS, read_entry

    entry = read_entry(CHIPS, "h200-sxm")
    tables = {
        "identity": {**entry.identity, "id": "gpu-of-mine", "aliases": []} | facts,
        "facts": {},
        "coefficients": {},
    }
    for name, value in entry.values.items():
        stated = {"value": value.value, "unit": value.unit, "source": value.source}
        if value.spread is None:
            tables["facts"][name] = stated
        else:
            tables["coefficients"][name] = {**stated, "spread": value.spread}
    path = records.path.with_name(f"{records.path.stem}.chip.toml")
    path.write_text(toml_text(tables))


def test_a_chip_that_nobody_describes_is_refused(foreign):
    with pytest.raises(ValueError, match="unknown gpu"):
        read_table(foreign.kind_path("gemm"))


@pytest.mark.parametrize("kind", ["gemm", "copy", "clocks_idle"])
def test_the_chip_file_beside_a_table_describes_its_chip(foreign, kind):
    describe(foreign)
    found = validate([foreign.kind_path(kind)])
    for target in TARGETS[kind]:
        assert found[target]["mape"] < 0.01, target


def test_the_whole_run_of_a_described_chip_is_compared(foreign):
    describe(foreign)
    found = validate([foreign.path], by=("kind",))
    assert found["time"]["mape"] < 0.01


def test_power_is_checked_against_the_described_chip(foreign):
    describe(foreign)
    heavy = [{**row, "watts": 5e3} for row in foreign.rows if row["kind"] == "copy"]
    path = machine_runs.write(foreign.path, heavy)
    with pytest.raises(ValueError, match=r"expected .* W"):
        read_table(path)


def test_no_energy_is_predicted_of_a_processor(foreign):
    describe(foreign, vendor="processor")
    found = validate([foreign.path])
    assert "energy" not in found and "time" in found
    assert any("processor" in note for note in found["notes"])


def test_versions_of_torch_are_priced_as_torch(run, tmp_path):
    rows = [{**r, "stack": "torch-2.6"} for r in run.rows if r["kind"] == "copy"]
    found = validate([machine_runs.write(tmp_path / "run.copy.parquet", rows)])
    assert found["time"]["mape"] < 0.01
    assert "torch-2.6: priced as torch." in found["notes"]
