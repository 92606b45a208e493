import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlens.fingerprints import fingerprint
from jaxlens.shards.manifests import (
    NAME,
    Column,
    Plan,
    axis_entries,
    check_same,
    read_plan,
    unit_of,
    write_plan,
)
from jaxlens.spaces import choices, grid, integers, space

ASKED = space(choices("batch", [1, 8, 64]), integers("tp", 1, 4))


def plan(asked=ASKED, **changes):
    return Plan(
        **{
            "function": "module.function",
            "shared": fingerprint(1.0),
            "space": fingerprint(asked),
            "axes": axis_entries(asked),
            "rows": asked.size,
            "shard_rows": 5,
            "columns": (Column(name="clock_hz", type="float32", unit="Hz"),),
            "first_row": {"clock_hz": 1e9},
            "version": "1.0",
            "profiles": ("h100-sxm.vllm-0.11",),
            "created": "2026-01-01T00:00:00+00:00",
        }
        | changes
    )


def test_a_plan_is_read_back_as_it_was_written(tmp_path):
    write_plan(tmp_path, plan())
    assert read_plan(tmp_path) == plan()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_shards_cover_the_rows_once():
    asked = plan()  # 12 rows in shards of 5
    assert [asked.range(i) for i in range(asked.shards)] == [(0, 5), (5, 5), (10, 2)]


@given(
    rows=st.integers(1, 10**12),
    shard_rows=st.integers(1, 10**9),
    processes=st.integers(1, 7),
)
@settings(max_examples=50, deadline=None)
def test_parts_of_any_size_cover_the_rows_once(rows, shard_rows, processes):
    shard_rows = max(shard_rows, rows // 50)
    asked = plan(rows=rows, shard_rows=shard_rows)
    parts = [range(process, asked.shards, processes) for process in range(processes)]
    ranges = sorted(asked.range(shard) for part in parts for shard in part)
    assert ranges[0][0] == 0
    assert sum(ranges[-1]) == rows
    for (first, count), (following, _) in pairwise(ranges):
        assert (first + count, count) == (following, shard_rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"function": "module.other"}, "function module.function became module.other"),
        ({"shared": fingerprint(2.0)}, "the numbers that all rows share"),
        ({"version": "1.1"}, "jaxlens 1.0 became 1.1"),
        ({"shard_rows": 6}, "shards of 5 rows became 6"),
        ({"first_row": {"clock_hz": 2e9}}, "other numbers for clock_hz"),
        ({"columns": ()}, r"other columns \(clock_hz\)"),
        ({"space": fingerprint("bounds")}, "constraints of the space"),
    ],
)
def test_what_changed_is_named(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        check_same(tmp_path, plan(), plan(**changes))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (space(choices("batch", [1, 8]), integers("tp", 1, 4)), "3 values became 2"),
        (space(choices("batch", [1, 8, 65]), integers("tp", 1, 4)), "batch has other"),
        (space(integers("tp", 1, 4), choices("batch", [1, 8, 64])), "became tp, batch"),
    ],
)
def test_a_changed_space_names_the_axis(tmp_path, asked, words):
    with pytest.raises(ValueError, match=words):
        check_same(tmp_path, plan(), plan(asked))


def test_other_processors_may_round_otherwise(tmp_path):
    check_same(tmp_path, plan(), plan(first_row={"clock_hz": 1.00001e9}, created="now"))
    check_same(tmp_path, plan(), plan(first_row={}))  # not evaluated


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: text.replace('"rows": 12', '"rows": 13'), "its fingerprint"),
        (lambda text: text.replace('"rows": 12', '"rows": -1'), "its entries"),
        (lambda text: text.replace('"axes"', '"axis"'), "its entries"),
        (lambda text: '{"shards": 3}', "expected format"),
        (lambda text: "[]", "expected format"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, damage, words):
    write_plan(tmp_path, plan())
    path = tmp_path / NAME
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=words):
        read_plan(tmp_path)


def test_a_folder_without_a_manifest_is_none(tmp_path):
    with pytest.raises(ValueError, match="expected the output of a sweep"):
        read_plan(tmp_path / "nowhere")


def test_the_manifest_says_its_units(tmp_path):
    write_plan(tmp_path, plan())
    content = json.loads((tmp_path / NAME).read_text())
    assert content["columns"] == [{"name": "clock_hz", "type": "float32", "unit": "Hz"}]
    assert content["axes"][0]["name"] == "batch"
    assert content["profiles"] == ["h100-sxm.vllm-0.11"]
    assert unit_of("memory_slack_bytes") == "B"
    assert unit_of("seconds_per_output_token") == "s"


def test_fingerprints_tell_values_apart_and_not_their_types():
    assert fingerprint(1) == fingerprint(np.float32(1.0)) == fingerprint(True)
    assert fingerprint([1.0, 2.0]) != fingerprint([2.0, 1.0])
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    assert fingerprint([[1.0], [2.0]]) != fingerprint([[1.0, 2.0]])
    assert fingerprint({"a", "b"}) == fingerprint({"b", "a"})
    assert fingerprint(grid("x", 0.0, 1.0, 5)) != fingerprint(grid("x", 0.0, 1.0, 6))
    assert fingerprint(None) != fingerprint("None")
    inside, beside = {"a": {"b": 1.0, "c": 2.0}}, {"a": {"b": 1.0}, "c": 2.0}
    assert fingerprint(inside) != fingerprint(beside)
    with pytest.raises(ValueError, match="got object"):
        fingerprint(object())


def test_a_fingerprint_covers_every_field():
    first = plan()
    assert fingerprint(first) == fingerprint(plan())
    for field in dataclasses.fields(Plan):
        changed = dataclasses.replace(first, **{field.name: "other"})
        assert fingerprint(changed) != fingerprint(first)
