import time

import pytest
import torch

from jaxlens.measure import rounds, runs
from jaxlens.measure.arenas import Arena
from jaxlens.measure.benches import Bench
from jaxlens.measure.cases import case
from jaxlens.measure.devices import Cpu, physical_cores
from jaxlens.measure.disturbances import Disturbance
from jaxlens.measure.gauges import CpuGauge
from jaxlens.measure.kernels import prepare
from jaxlens.measure.operations import kernel
from jaxlens.measure.records import Records
from jaxlens.measure.visits import visiting_rules
from jaxlens.measure.windows import Rules, Window

RULES = Rules(
    window_seconds=0.001, warmup_seconds=0.0, fewest_windows=4, most_windows=12
)
CASES = [
    case("gemm", {"m": m, "n": 16, "k": 16, "dtype": "float32"}) for m in (1, 2, 3)
]
DISTURBED = Disturbance(span_seconds=0.001, stolen_seconds=0.01)


@pytest.fixture(scope="module")
def bench():
    return Bench(device=Cpu(), gauge=CpuGauge(), rules=RULES)


def window(seconds, disturbance=None):
    return Window(
        seconds=seconds,
        launches=1,
        span_seconds=0.001,
        watts=None,
        sm_clock_hz=None,
        memory_clock_hz=None,
        temperature_celsius=None,
        throttle_reasons=frozenset(),
        disturbance=disturbance or Disturbance(),
    )


class Visits:
    """Windows as told in place of real ones, and which case was visited when."""

    def __init__(self, told):
        self.order, self._told = [], told

    def __call__(self, device, gauge, loop, rules):
        self.order.append(loop)
        size = len(set(map(id, self.order)))
        return self._told(self.order.count(loop), size)


def run(bench, tmp_path, monkeypatch, told, **more):
    visits = Visits(told)
    monkeypatch.setattr(rounds, "visit", visits)
    records = Records(tmp_path / "run.parquet")
    tally = runs.run_cases(
        CASES, bench, records, {"gpu": "x"}, report=lambda text: None, **more
    )
    return visits.order, records, tally


def test_cases_are_visited_in_turn(bench, tmp_path, monkeypatch):
    order, records, tally = run(
        bench, tmp_path, monkeypatch, lambda time, of: window(1.0)
    )
    assert tally.measured == 3 and len(order) == 3 * RULES.fewest_windows
    assert order[:3] == order[3:6] == order[6:9]
    assert [row["windows"] for row in records.rows] == [4, 4, 4]
    assert all(row["tight"] and row["seconds_spread"] == 0.0 for row in records.rows)


def test_cases_that_scatter_get_more_rounds(bench, tmp_path, monkeypatch):
    def told(time, case):
        return window(1.0 if case == 1 else 1.0 + 0.1 * time)

    _, records, tally = run(bench, tmp_path, monkeypatch, told)
    windows = {row["case"]: row["windows"] for row in records.rows}
    # The first visit of each case is told alike, and the others by how many came so far.
    assert max(windows.values()) == RULES.most_windows
    assert tally.loose >= 1
    assert (
        len(records.rows) == 3
    )  # a row that becomes more exact takes the first one's place


def test_disturbed_windows_are_left_out_where_enough_remain(
    bench, tmp_path, monkeypatch
):
    def told(time, of):
        return window(2.0, DISTURBED) if time % 2 else window(1.0)

    _, records, tally = run(bench, tmp_path, monkeypatch, told)
    for row in records.rows:
        assert row["seconds"] == 1.0
        assert row["windows"] == 4 and row["discarded_windows"] >= 4
        assert row["stolen_seconds"] > 0.0
    assert tally.discarded_windows == tally.disturbed_windows >= 12


def test_a_machine_that_is_never_quiet_is_measured_all_the_same(
    bench, tmp_path, monkeypatch
):
    def told(time, of):
        return window(1.0 + 0.001 * time, DISTURBED)

    _, records, tally = run(bench, tmp_path, monkeypatch, told)
    for row in records.rows:  # and for long: its windows may agree on a disturbance
        assert row["discarded_windows"] == 0
        assert row["disturbed_windows"] == row["windows"] == RULES.most_windows
    assert tally.disturbed_windows == tally.windows


def test_a_case_with_its_fewest_windows_is_on_disk(bench, tmp_path, monkeypatch):
    found = []

    def told(time, of):
        found.append(len(Records(tmp_path / "run.parquet").rows))
        return window(1.0 + time)

    run(bench, tmp_path, monkeypatch, told)
    assert found[:10] == [0] * 10  # three whole rounds, and the first case's fourth
    assert found[10:13] == [1, 2, 3]


def test_what_does_not_fit_into_the_time_is_left_whole(bench, tmp_path, monkeypatch):
    def told(time_, of):
        time.sleep(0.02)
        return window(1.0)

    # Twelve visits of 20 ms do not fit into 0.15 s; four do, twice at most.
    order, records, tally = run(
        bench, tmp_path, monkeypatch, told, deadline=time.monotonic() + 0.15
    )
    assert tally.measured + tally.left == 3
    assert tally.left >= 1
    assert len(records.rows) == tally.measured
    assert len(order) <= 12


def test_groups_are_sized_by_the_time_that_is_left(bench):
    assert rounds.group_size(500, bench, None) == 500
    assert rounds.group_size(500, bench, time.monotonic() - 1.0) == 1
    rules = visiting_rules(None, allow_disturbed=False)
    usual = Bench(device=bench.device, gauge=bench.gauge, rules=rules)
    size = rounds.group_size(500, usual, time.monotonic() + 60.0)
    assert 20 <= size <= 60.0 / (rules.fewest_windows * rules.window_seconds)


def test_blocks_are_short_and_their_times_per_launch(bench):
    calls = []
    spans = bench.device.spans([lambda: calls.append(0), lambda: calls.append(1)], 0.01)
    assert all(0.0 < span < 1e-3 for span in spans)
    assert calls[:4] == [0, 0, 1, 0] or calls[:4] == [0, 1, 0, 1]
    assert abs(calls.count(0) - calls.count(1)) <= 1


def test_inputs_of_all_cases_lie_in_the_same_memory(bench):
    def rows(one, **more):
        calls = prepare(kernel(one, bench.device), bench.device, **more).loop.calls
        return [call.args[0]["rows"] for call in calls]

    with torch.inference_mode():
        first, second = (rows(one, shared=True) for one in CASES[:2])
        apart = rows(CASES[0])
    places = {tensor.data_ptr() for tensor in first}
    assert len(places) == len(first)
    assert places & {tensor.data_ptr() for tensor in second}
    assert not places & {tensor.data_ptr() for tensor in apart}
    assert torch.isfinite(first[0]).all() and first[0].std() > 0.0


def test_an_arena_hands_out_aligned_memory_until_it_is_used_up():
    arena = Arena(torch, 2**21, random=True)
    first, second = arena.take(3, 5), arena.take(16)
    assert first.shape == (3, 5) and first.data_ptr() % 2**21 == 0
    assert second.data_ptr() - first.data_ptr() == 64
    assert arena.take(2**19) is None
    arena.reset()
    assert arena.take(2**19).data_ptr() == first.data_ptr()


def test_threads_are_chosen_and_shown():
    before = torch.get_num_threads()
    try:
        assert Cpu(threads=2).name.endswith("2 threads")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert Cpu().threads == min(before, physical_cores())
