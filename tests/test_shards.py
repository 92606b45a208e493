import errno
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxlens.cli
from jaxlens import batch
from jaxlens.cli import main
from jaxlens.shards import files as shard_files
from jaxlens.shards import look, read_all, write_all
from jaxlens.shards.manifests import NAME
from jaxlens.spaces import choices, integers, point, space

pytest.importorskip("pyarrow")

ASKED = space(choices("batch", [1, 8, 64, 512]), integers("clock_hz", 1, 25))  # 100
ROWS = 7  # of a shard: 14 of them and a rest


def power(scale, values):
    return {
        "batch": values["batch"],
        "watts_per_gpu": scale * values["batch"] * values["clock_hz"],
        "stages": jnp.asarray(3, jnp.int32),
    }


def broken(scale, values):
    return {"seconds": jnp.where(values["clock_hz"] == 20.0, jnp.nan, scale)}


def written(folder, **options):
    return write_all(power, 2.0, ASKED, folder, shard_rows=ROWS, **options)


def same(one, other):
    assert [s.checksum for s in one.shards] == [s.checksum for s in other.shards]
    left, right = read_all(one.folder), read_all(other.folder)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def test_what_is_read_back_is_what_was_evaluated(tmp_path):
    found = written(tmp_path / "out", profiles=["h100-sxm.vllm-0.11"])
    rows, expected = read_all(tmp_path / "out"), batch.evaluate(power, 2.0, ASKED)
    np.testing.assert_array_equal(rows["index"], np.arange(100))
    for name, values in expected.items():
        np.testing.assert_array_equal(rows[name], values)
    assert rows["watts_per_gpu"].dtype == np.float32
    assert point(ASKED, 57)["batch"] == rows["batch"][57]
    assert found.complete
    assert (found.rows, len(found.shards), found.missing) == (100, 15, ())
    assert found.plan.profiles == ("h100-sxm.vllm-0.11",)
    assert {c.name: c.unit for c in found.plan.columns}["watts_per_gpu"] == "W"
    assert list(read_all(tmp_path / "out", ["batch"])) == ["batch"]


def test_the_size_of_a_shard_is_none_of_the_chunks_business(tmp_path, monkeypatch):
    one = written(tmp_path / "one")
    monkeypatch.setattr(batch, "CHUNK", 32)
    same(one, written(tmp_path / "other"))


def test_what_is_there_is_not_evaluated_again(tmp_path, monkeypatch):
    written(tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    gap = tmp_path / "shard-00000004.parquet"
    gap.unlink()
    asked, columns = [], batch.columns

    def counting(function, shared, space, first, count, *rest):
        asked.append((first, count))
        return columns(function, shared, space, first, count, *rest)

    monkeypatch.setattr(batch, "columns", counting)
    seen = []
    assert written(tmp_path, progress=seen.append).complete
    assert asked == [(0, 1), (4 * ROWS, ROWS)]  # the first row checks the model
    assert sum(seen) == 100
    del stamps[gap]
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    asked.clear()
    assert written(tmp_path).complete
    assert asked == []


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_shards import written
process, most, seen = int(sys.argv[1]), int(sys.argv[2]), [0]
def progress(rows):
    seen[0] += rows
    if seen[0] > most:
        os.kill(os.getpid(), signal.SIGKILL)
written({folder!r}, part=(process, 2), progress=progress)
"""


def test_killed_processes_leave_a_gap_that_another_run_fills(tmp_path):
    whole = written(tmp_path / "whole")
    folder = tmp_path / "killed"
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(process), str(most)], env=environment
        )
        for process, most in ((0, 1000), (1, 25))
    ]
    assert [process.wait(120) for process in running] == [0, -signal.SIGKILL]
    found = look(folder)
    assert not found.complete
    assert {index % 2 for index in found.missing} == {1}
    assert 0 < len(found.missing) <= 6
    with pytest.raises(ValueError, match=r"missing .*run the sweep again"):
        read_all(folder)
    assert read_all(folder, partial=True)["index"].size == found.rows < 100
    same(written(folder, part=(1, 2)), whole)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_parts_that_know_nothing_of_each_other_make_one_output(tmp_path):
    for process in (2, 0, 1):
        found = written(tmp_path / "parts", part=(process, 3))
    same(found, written(tmp_path / "whole"))
    few = write_all(power, 1.0, ASKED, tmp_path / "few", part=(5, 6))
    assert (few.rows, few.missing) == (0, (0,))  # one shard, which is another's


def test_10_18_points_are_refused_with_their_size(tmp_path):
    huge = space(*(integers(name, 1, 10**6) for name in ("x", "y", "z")))
    with pytest.raises(ValueError, match=r"1\.2e\+19 bytes.*Pareto front"):
        write_all(power, 1.0, huge, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"expected at most 1e\+03 bytes \(allowed\)"):
        written(tmp_path / "out", most_bytes=1e3)
    assert not (tmp_path / "out").exists()


def test_a_changed_question_leaves_the_old_answer_alone(tmp_path):
    before = written(tmp_path)
    other = space(choices("batch", [1, 8, 64, 513]), integers("clock_hz", 1, 25))
    with pytest.raises(ValueError, match="axis batch has other values"):
        write_all(power, 2.0, other, tmp_path)
    with pytest.raises(ValueError, match="numbers that all rows share"):
        write_all(power, 3.0, ASKED, tmp_path)
    with pytest.raises(ValueError, match="shards of 7 rows became 8"):
        write_all(power, 2.0, ASKED, tmp_path, shard_rows=8)
    assert write_all(power, 2.0, ASKED, tmp_path).plan.shard_rows == ROWS
    same(before, look(tmp_path))


def test_a_model_that_has_changed_is_noticed_before_its_rows_mix(tmp_path, monkeypatch):
    written(tmp_path)
    (tmp_path / "shard-00000000.parquet").unlink()
    columns = batch.columns
    monkeypatch.setattr(
        batch, "columns", lambda *a: {n: v * 2 for n, v in columns(*a).items()}
    )
    with pytest.raises(
        ValueError, match="other numbers for batch, stages, watts_per_gpu"
    ):
        written(tmp_path)


def test_a_nan_names_its_row_and_keeps_what_came_before(tmp_path):
    with pytest.raises(ValueError, match=r"NaN for seconds.*index 19.*'clock_hz': 20"):
        write_all(broken, 1.0, ASKED, tmp_path, shard_rows=ROWS)
    assert look(tmp_path).rows == 14


def bent(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def test_damage_is_named_with_its_cure(tmp_path):
    written(tmp_path)
    path = tmp_path / "shard-00000003.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for attempt in (lambda: look(tmp_path), lambda: written(tmp_path)):
        with pytest.raises(ValueError, match=r"shard-00000003.*damaged.*delete it"):
            attempt()
    path.write_bytes(whole)
    bent(path)
    for attempt in (lambda: look(tmp_path, verify=True), lambda: read_all(tmp_path)):
        with pytest.raises(ValueError, match=r"shard-00000003.*damaged.*delete it"):
            attempt()
    path.unlink()
    assert written(tmp_path).complete
    look(tmp_path, verify=True)


def test_foreign_files_are_named_and_left(tmp_path):
    written(tmp_path / "one")
    other = write_all(power, 5.0, ASKED, tmp_path / "other", shard_rows=ROWS)
    path = tmp_path / "one" / "shard-00000002.parquet"
    shutil.copy(other.shards[2].path, path)
    with pytest.raises(ValueError, match=r"shard-00000002.*another sweep"):
        written(tmp_path / "one")
    shutil.copy(other.shards[2].path, tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=r"got mine\.parquet; nothing was touched"):
        written(tmp_path)
    assert look(tmp_path / "other").complete


def test_a_full_disk_loses_nothing(tmp_path):
    with pytest.raises(ValueError, match="columns: expected some of index, batch"):
        read_all(written(tmp_path / "whole").folder, ["price"])
    half = (
        look(tmp_path / "whole").file_bytes // len(look(tmp_path / "whole").shards) // 2
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, hard))
    try:
        with pytest.raises(ValueError, match=r"which are safe.*goes on from there"):
            written(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert look(tmp_path / "out").rows == 0
    same(written(tmp_path / "out"), look(tmp_path / "whole"))


@pytest.fixture
def tiny_disk():
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True)
    if not mounted or mounted.returncode:
        folder.rmdir()
        pytest.skip("mounting a small disk needs administrator rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_a_really_full_disk_loses_nothing(tiny_disk, tmp_path):
    folder, whole = tiny_disk / "out", written(tmp_path)
    with pytest.raises(ValueError, match="No space left on device") as caught:
        written(folder)
    assert caught.value.__cause__.errno == errno.ENOSPC
    before = look(folder)
    assert 0 < before.rows < 100
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    subprocess.run(["mount", "-o", "remount,size=1m", str(tiny_disk)], check=True)
    same(written(folder), whole)


def test_a_process_that_still_runs_keeps_its_file(tmp_path):
    written(tmp_path)
    host = shard_files.socket.gethostname()
    gone = subprocess.Popen(["true"])
    gone.wait()
    own = tmp_path / f".shard-00000001.parquet.{host}.{os.getppid()}"
    dead = tmp_path / f".shard-00000001.parquet.{host}.{gone.pid}"
    elsewhere = tmp_path / ".shard-00000001.parquet.elsewhere.1"
    for path in (own, dead, elsewhere):
        path.touch()
    (tmp_path / "shard-00000001.parquet").unlink()
    assert written(tmp_path).complete
    assert own.exists() and elsewhere.exists() and not dead.exists()


def test_wrong_parts_are_refused(tmp_path):
    for part in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="part: expected a process"):
            written(tmp_path, part=part)
    with pytest.raises(ValueError, match="shard rows: expected at least 1"):
        write_all(power, 2.0, ASKED, tmp_path, shard_rows=-1)


def test_without_pyarrow_the_cure_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install .jaxlens\[sweep\]"):
        written(tmp_path)


def test_other_readers_see_the_same_rows(tmp_path):
    dataset = pytest.importorskip("pyarrow.dataset")
    written(tmp_path)
    rows = dataset.dataset(tmp_path, format="parquet")
    assert rows.schema.field("watts_per_gpu").metadata == {b"unit": b"W"}
    light = dataset.field("watts_per_gpu") < 100.0
    few = rows.to_table(columns=["index", "watts_per_gpu"], filter=light)
    wanted = np.flatnonzero(read_all(tmp_path)["watts_per_gpu"] < 100.0)
    np.testing.assert_array_equal(few.column("index").to_numpy(), wanted)


DOCUMENT = Path(__file__).parents[1] / "docs" / "full_output.md"


def test_the_document_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    """What is not installed is passed over: pandas, polars or DuckDB."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|text)\n(.*?)```", DOCUMENT.read_text(), re.S)
    names, ran = {"__name__": "document"}, []
    for kind, text in blocks:
        if kind == "text":
            assert capsys.readouterr().out == text
            continue
        library = re.search(r"^import (\w+)", text, re.M)
        if library and not importlib.util.find_spec(library[1]):
            continue
        exec(compile(text, str(DOCUMENT), "exec"), names)
        ran.append(library[1] if library else "jaxlens")
    assert ran[:3] == ["jaxlens", "jaxlens", "pyarrow"]
    cheapest = read_all("sweep")["joules_per_output_token"].min()
    assert names["best"].num_rows == 3
    if ran[-1] == "pandas":
        assert names["least"].min() == cheapest


def test_the_command_line_says_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jaxlens.cli, "keep_compilations", lambda: None)
    written(tmp_path, part=(0, 2))
    assert main(["shards", str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert not content["complete"]
    assert (content["rows"], content["rows_wanted"]) == (51, 100)
    assert content["missing"] == [1, 3, 5, 7, 9, 11, 13]
    assert content["shards"][0]["checksum"] == look(tmp_path).shards[0].checksum
    assert main(["shards", str(tmp_path)]) == 0
    assert "run the same sweep again" in capsys.readouterr().out
    written(tmp_path, part=(1, 2))
    assert main(["shards", str(tmp_path), "--verify"]) == 0
    assert "complete" in capsys.readouterr().out
    (tmp_path / NAME).write_text("{")
    assert main(["shards", str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err
