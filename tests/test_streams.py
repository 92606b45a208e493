import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlens import streams
from jaxlens.batch import evaluate
from jaxlens.fronts import best_of_each, pareto_front, top_k
from jaxlens.spaces import LARGEST_AXIS, choices, grid, integers, point, space
from jaxlens.streams import (
    Groups,
    Histogram,
    Keep,
    Objective,
    compilations,
    merge,
    stream,
)
from jaxlens.surveys import load
from tests.streamed import KEEP, trade, trades

SMALL = Keep(objectives=(Objective("cost"),), top=3)
BLOCK = 1024
HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def columns():
    found = evaluate(trade, 1.5, trades())
    slacks = [found["slack_load"], found["slack_rate"]]
    found["feasible"] = np.all([one >= 0.0 for one in slacks], axis=0)
    found["worst"] = np.min(slacks, axis=0)
    return found


@pytest.fixture(scope="module")
def survey():
    return stream(trade, 1.5, trades(), KEEP, block=BLOCK)


def scored(columns, name, sign=1.0):
    return np.where(columns["feasible"], sign * columns[name], np.nan)


def same(a, b):
    """Whether two surveys say the same, but for time."""
    assert a.evaluated == b.evaluated
    assert (a.feasible, a.missing) == (b.feasible, b.missing)
    assert a.infeasible_by_reason == b.infeasible_by_reason
    assert a.infeasible_by_one_reason == b.infeasible_by_one_reason
    np.testing.assert_array_equal(a.nearest.index, b.nearest.index)
    np.testing.assert_array_equal(a.front.index, b.front.index)
    assert a.front_epsilon == b.front_epsilon
    for name, top in a.top.items():
        np.testing.assert_array_equal(top.index, b.top[name].index)
        for column, values in top.columns.items():
            np.testing.assert_array_equal(values, b.top[name].columns[column])
    for name, groups in a.groups.items():
        found = {group: int(one.index[0]) for group, one in groups.items()}
        assert found == {g: int(one.index[0]) for g, one in b.groups[name].items()}
    for one in a.keep.histograms:
        np.testing.assert_array_equal(
            a.histogram(one.column)[1], b.histogram(one.column)[1]
        )


def test_the_best_are_those_of_all_points(columns, survey):
    assert not survey.interrupted
    assert survey.evaluated == trades().size
    assert survey.missing == ()
    for objective in KEEP.objectives:
        expected = top_k(scored(columns, objective.column, objective.sign), KEEP.top)
        np.testing.assert_array_equal(survey.top[objective.column].index, expected)


def test_the_best_are_evaluated_in_float64_with_all_columns(survey):
    best = survey.top["cost"]
    values = point(trades(), int(best.index[0]))
    expected = 1.5 * (values["size"] + 0.3 * values["load"])
    expected *= 0.5 + 0.01 * values["speed"] ** 2
    assert best.columns["cost"][0] == pytest.approx(expected, rel=1e-14)
    assert best.columns["unused"][0] == values["size"]
    assert set(best.columns) == set(survey.names)


def test_the_front_is_what_nothing_beats(columns):
    keep = replace(KEEP, front_capacity=2048)
    found = stream(trade, 1.5, trades(), keep, block=BLOCK)
    objectives = [scored(columns, one.column, one.sign) for one in keep.front]
    expected = pareto_front(np.stack(objectives, axis=1))
    assert not found.overflow
    assert found.front_epsilon == 0.0
    np.testing.assert_array_equal(found.front.index, expected)


def test_the_best_of_each_group_and_of_no_group(columns, survey):
    groups = columns["kind"]
    for name, sign in (("cost", 1.0), ("rate", -1.0)):
        value = np.where(groups < 4, scored(columns, name, sign), np.nan)
        expected = {
            int(groups[i]): int(i) for i in best_of_each(value, groups[:, None])
        }
        found = {group: int(one.index[0]) for group, one in survey.groups[name].items()}
        assert found == expected
        assert 5 not in found and 3 not in found


def test_what_is_ruled_out_and_by_what_alone(columns, survey):
    load, rate = columns["slack_load"] < 0.0, columns["slack_rate"] < 0.0
    assert survey.feasible == columns["feasible"].sum()
    assert survey.infeasible_by_reason == {"load": load.sum(), "rate": rate.sum()}
    alone = {"load": (load & ~rate).sum(), "rate": (rate & ~load).sum()}
    assert survey.infeasible_by_one_reason == alone


def test_the_nearest_infeasible_point_keeps_what_is_required(columns, survey):
    able = ~columns["feasible"] & (columns["slack_load"] >= 0.0)
    expected = np.argmax(np.where(able, columns["worst"], -np.inf))
    assert survey.nearest.index.tolist() == [expected]
    assert survey.nearest.columns["slack_rate"][0] < 0.0


def test_histograms_count_and_quantiles_are_right_to_a_bin(columns, survey):
    values = columns["rate"][columns["feasible"]]
    edges, counts = survey.histogram("rate")
    assert counts.sum() == values.size
    expected, _ = np.histogram(values, edges)
    assert np.abs(counts[1:-1] - expected).sum() <= 4  # values at an edge
    width = edges[1] / edges[0]
    for share, found in zip(
        (0.1, 0.5, 0.99), survey.quantiles("rate", (0.1, 0.5, 0.99)), strict=True
    ):
        assert 1 / width <= found / np.quantile(values, share) <= width
    with pytest.raises(ValueError, match="expected one of"):
        survey.histogram("cost")


def test_chunks_threads_and_ranges_make_no_difference(survey):
    total = trades().size
    same(survey, stream(trade, 1.5, trades(), KEEP, block=BLOCK, threads=1))
    cuts = (0, 4321, 4322, 70_000, total)
    parts = [
        stream(trade, 1.5, trades(), KEEP, block=BLOCK, first=a, count=b - a)
        for a, b in pairwise(cuts)
    ]
    same(survey, merge(parts))
    same(survey, merge(parts[::-1]))
    with pytest.raises(ValueError, match="index 4321 twice"):
        merge([parts[1], parts[1]])
    other = stream(trade, 1.5, trades(), replace(KEEP, top=5), block=BLOCK)
    with pytest.raises(ValueError, match="of one function"):
        merge([parts[0], other])


def test_one_program_serves_other_numbers():
    def asked(shared, sizes, keep):
        stream(trade, shared, trades(sizes), keep, block=BLOCK)

    asked(1.5, 30, KEEP)
    before = compilations(trade)
    asked(2.5, 11, KEEP)
    asked(1.5, 40, replace(KEEP, top=9, front_epsilon=0.01))
    asked(1.5, 4, replace(KEEP, histograms=(Histogram("rate", 1.0, 9.0, 64),)))
    asked(1.5, 4, replace(KEEP, groups=Groups("kind", 3)))
    assert compilations(trade) == before


def test_indices_beyond_32_bits_are_exact():
    asked = space(*(integers(name, 0, 10**6 - 1) for name in "abc"))
    assert asked.size == 10**18
    keep = Keep(objectives=(Objective("a"), Objective("b")), top=2)
    # Across a billion of billions: from just before to just after c and b roll over.
    first = 10**18 - 10**12 - 3000
    found = stream(identity, 0.0, asked, keep, first=first, count=6000, block=BLOCK)
    assert found.top["a"].index.tolist() == [first, first + 1]
    assert found.top["b"].index.tolist() == [first + 3000, first + 3001]
    assert found.top["a"].columns["a"][0] == 999_998.0
    assert found.top["b"].columns["a"][0] == 999_999.0
    last = stream(identity, 0.0, asked, keep, first=10**18 - 5, block=BLOCK)
    assert last.top["a"].index.tolist() == [10**18 - 5, 10**18 - 4]


def identity(shared, values):
    return {name: value + shared for name, value in values.items()}


def test_a_part_beyond_the_low_range_of_indices():
    keep = Keep(objectives=(Objective("a"),), top=1)
    asked = space(integers("a", 0, LARGEST_AXIS - 1), integers("b", 0, 999))
    work = streams._Work(
        streams._Asked(identity, 0.0, asked, keep, ("a", "b"), 0, asked.size), None
    )
    work.left = [(3 * 2**30 - 100, 2 * BLOCK)]  # as if all before were done
    for lane in streams._lanes(work.asked, None, 1, BLOCK):
        assert lane.step(work) and lane.step(work)
    assert work.survey().top["a"].index.tolist() == [3 * 2**30 - 100]


def reciprocal(shared, values):
    return {"share": shared * (values["x"] - 7.0) / (values["x"] - 7.0)}


def test_a_nan_names_its_configuration():
    keep = Keep(objectives=(Objective("share"),))
    with pytest.raises(ValueError, match=r"NaN for share in 1 of.*index 7, \{'x': 7"):
        stream(reciprocal, 1.0, space(integers("x", 0, 20)), keep)


def test_nothing_feasible_leaves_the_nearest_point():
    asked = space(
        integers("size", 1, 4),
        choices("kind", [0.0]),
        grid("speed", 0.1, 0.2, 5),
        grid("load", 1.0, 2.0, 3),
    )
    found = stream(trade, 1.5, asked, KEEP, block=BLOCK)
    assert found.feasible == 0
    assert found.top["cost"].index.size == 0
    assert found.front.index.size == 0
    assert found.groups["cost"] == {}
    assert np.isnan(found.quantiles("rate", [0.5])[0])
    assert found.nearest.index.tolist() == [asked.size - 3]


def test_a_function_without_limits_and_a_keep_of_nothing():
    found = stream(identity, 0.0, space(integers("a", 1, 9)), Keep())
    assert found.feasible == 9
    assert found.top == {} and found.infeasible_by_reason == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": -1}, "range within"),
        ({"first": 10**9}, "range within"),
        ({"count": 0}, "range within"),
        ({"block": 1000}, "power of two"),
    ],
)
def test_what_cannot_be_streamed_says_so(options, message):
    with pytest.raises(ValueError, match=message):
        stream(trade, 1.5, trades(), SMALL, **options)


def test_an_unknown_column_is_named():
    with pytest.raises(ValueError, match=r"expected a column of .* got 'prize'"):
        stream(trade, 1.5, trades(), Keep(objectives=(Objective("prize"),)))
    with pytest.raises(ValueError, match="expected required reasons"):
        stream(trade, 1.5, trades(), Keep(required=("size",)))


def test_progress_reaches_the_total():
    seen = []
    stream(trade, 1.5, trades(), KEEP, block=BLOCK, progress=lambda *a: seen.append(a))
    total = trades().size
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_interrupted_stream_keeps_what_it_knows_and_goes_on(tmp_path, survey):
    path = tmp_path / "known.survey"

    def interrupt(done, total):
        raise KeyboardInterrupt

    options = {"block": BLOCK, "threads": 1, "checkpoint": path}
    part = stream(trade, 1.5, trades(), KEEP, progress=interrupt, **options)
    assert part.interrupted
    assert 0 < part.evaluated < trades().size
    assert part.missing == ((part.evaluated, trades().size - part.evaluated),)
    head = stream(trade, 1.5, trades(), KEEP, count=part.evaluated, block=BLOCK)
    np.testing.assert_array_equal(part.top["cost"].index, head.top["cost"].index)
    whole = stream(trade, 1.5, trades(), KEEP, **options)
    same(survey, whole)
    same(survey, load(path))
    again = stream(trade, 1.5, trades(), KEEP, progress=interrupt, **options)
    same(survey, again)  # nothing was left to do


def test_a_checkpoint_of_another_question_is_refused(tmp_path):
    path = tmp_path / "known.survey"
    stream(trade, 1.5, trades(4), KEEP, block=BLOCK, checkpoint=path)
    for shared, sizes, keep in ((1.6, 4, KEEP), (1.5, 5, KEEP), (1.5, 4, SMALL)):
        with pytest.raises(ValueError, match="of another function, space"):
            stream(trade, shared, trades(sizes), keep, checkpoint=path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected a survey that jaxlens wrote"):
        stream(trade, 1.5, trades(4), KEEP, checkpoint=path)
    assert path.read_bytes() == b"something else"


KILLED = """
import sys
from jaxlens.streams import stream
from tests.streamed import KEEP, trade, trades
def report(done, total):
    print(done, flush=True)
stream(trade, 1.5, trades(150, 100), KEEP, checkpoint=sys.argv[1], checkpoint_seconds=0.0,
       block=1024, threads=1, progress=report)
"""


def test_a_killed_stream_goes_on_and_ends_the_same(tmp_path):
    path = tmp_path / "known.survey"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL) as running:
        for _ in range(1200):
            if path.exists() or running.poll() is not None:
                break
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
    known = load(path)
    asked = trades(150, 100)
    resumed = stream(trade, 1.5, asked, KEEP, checkpoint=path)
    assert resumed.evaluated == asked.size
    assert known.evaluated <= resumed.evaluated
    same(resumed, stream(trade, 1.5, asked, KEEP))


DEVICES = """
import sys, jax
from jaxlens.streams import stream
from jaxlens.surveys import save
from tests.streamed import KEEP, trade, trades
assert jax.device_count() == 8
save(stream(trade, 1.5, trades(), KEEP, block=1024), sys.argv[1])
"""


def test_eight_devices_find_what_one_does(tmp_path, survey):
    path = tmp_path / "eight.survey"
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, "-c", DEVICES, str(path)]
    subprocess.run(command, check=True, cwd=HERE, env=environment)
    same(survey, load(path))


def test_a_failure_in_a_thread_ends_all():
    asked = space(integers("x", 8, 2**21))
    keep = Keep(objectives=(Objective("share"),))
    before = threading.active_count()

    def fail(done, total):
        raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        stream(reciprocal, 1.0, asked, keep, block=BLOCK, progress=fail)
    assert threading.active_count() <= before + 1


def test_a_chosen_device_is_used():
    device = jax.devices()[0]
    found = stream(trade, 1.5, trades(2), SMALL, block=BLOCK, devices=[device])
    assert found.evaluated == trades(2).size
