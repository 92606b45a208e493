import ctypes
import math
from pathlib import Path

import numpy as np
import pytest

from jaxlens.calibration.tables import read_table
from jaxlens.measure.cases import case
from jaxlens.measure.coresets import coreset
from jaxlens.measure.driver import Resource, green_context
from jaxlens.measure.gauges import Reading, Recorder, steady_watts
from jaxlens.measure.gradients import features
from jaxlens.measure.overlap_pairs import Slowdowns, slowdowns
from jaxlens.measure.rapl import open_rapl
from jaxlens.measure.records import Records
from jaxlens.measure.refusals import Disturbed, Unavailable
from jaxlens.measure.windows import Loop, Rules, calls_for, measured
from jaxlens.profiles import load_profile


class SteadyDevice:
    """A device on which a launch takes as long as it is told to, in simulated time."""

    kind = "cpu"

    def __init__(self, seconds):
        self.clock = 0.0
        self.launches = 0
        self._seconds = seconds

    def seconds(self, launches, count):
        span = 0.0
        for _ in range(min(count, 50)):
            span += self._seconds(self.clock)
        span *= count / min(count, 50)
        self.clock += span
        self.launches += count
        return span

    def synchronize(self):
        pass


class SteadyGauge:
    """A counter that grows by `watts` in the simulated time of a device."""

    period_seconds = 0.0
    has_energy = True

    def __init__(self, device, watts, reasons=()):
        self._device, self._watts, self._reasons = device, watts, reasons
        self.joules, self._last = 0.0, 0.0

    def read(self):
        now = self._device.clock
        self.joules += self._watts(now) * (now - self._last)
        self._last = now
        return Reading(
            at_seconds=now, joules=self.joules, throttle_reasons=self._reasons
        )


LOOP = Loop(calls=(lambda: None,))


def test_time_and_energy_of_a_steady_kernel_are_exact():
    device = SteadyDevice(lambda now: 2e-3)
    found = measured(device, SteadyGauge(device, lambda now: 300.0), LOOP, Rules())
    assert found.seconds == pytest.approx(2e-3)
    assert found.joules == pytest.approx(0.6)  # 300 W x 2 ms
    assert found.windows == 3
    assert found.window_seconds >= 1.0
    assert found.tight and found.steady


def test_a_launch_that_stands_for_many_is_divided():
    device = SteadyDevice(lambda now: 2e-3)
    loop = Loop(calls=(lambda: None,), launches_per_call=100)
    found = measured(device, SteadyGauge(device, lambda now: 300.0), loop, Rules())
    assert found.seconds == pytest.approx(2e-5)


def test_warming_up_lasts_until_the_device_is_steady():
    device = SteadyDevice(lambda now: 1e-3 * (1.0 + math.exp(-now / 3.0)))
    found = measured(device, SteadyGauge(device, lambda now: 300.0), LOOP, Rules())
    assert found.warmup_seconds > 5.0
    assert found.seconds == pytest.approx(1e-3, rel=0.03)


def test_what_never_becomes_steady_or_tight_says_so():
    noise = np.random.default_rng(0)
    device = SteadyDevice(lambda now: 1e-3)
    shaky = SteadyDevice(lambda now: 1e-3)
    base = shaky.seconds
    shaky.seconds = lambda launches, count: base(
        launches, round(count * noise.uniform(0.7, 1.3))
    )
    found = measured(shaky, SteadyGauge(shaky, lambda now: 300.0), LOOP, Rules())
    assert found.windows == Rules().most_windows
    assert not found.tight
    assert found.seconds_spread > 0.01
    assert device.launches == 0


def test_throttling_from_outside_is_refused_and_by_the_kernel_itself_is_not():
    device = SteadyDevice(lambda now: 1e-3)
    braked = SteadyGauge(device, lambda now: 300.0, ("power brake from outside",))
    with pytest.raises(Disturbed, match="power brake from outside"):
        measured(device, braked, LOOP, Rules())
    assert measured(device, braked, LOOP, Rules(allow_disturbed=True)).seconds > 0.0
    capped = SteadyGauge(device, lambda now: 700.0, ("software power cap",))
    found = measured(device, capped, LOOP, Rules())
    assert found.throttle_reasons == ("software power cap",)


def test_windows_are_sized_from_measured_run_time():
    for seconds in (1e-6, 1e-3, 3.0):
        device = SteadyDevice(lambda now, s=seconds: s)
        calls = calls_for(device, LOOP, 1.0)
        assert 1.0 <= calls * seconds < max(1.1, seconds * 1.1)


def test_power_does_not_depend_on_where_the_counter_steps():
    # 250 W, read every 5 ms from a counter that steps every 100 ms, windows of 1 s.
    for phase in (0.0, 0.03, 0.07):
        readings = [
            Reading(
                at_seconds=0.005 * i,
                joules=250.0 * 0.1 * math.floor((0.005 * i + phase) / 0.1 + 1e-9),
            )
            for i in range(200)
        ]
        assert steady_watts(readings) == pytest.approx(250.0, rel=0.02)


def test_power_without_a_counter_is_the_mean_of_samples():
    readings = [
        Reading(at_seconds=t, watts=w) for t, w in ((0, 100), (1, 200), (2, 200))
    ]
    assert steady_watts(readings) == 175.0
    assert steady_watts([Reading(at_seconds=0.0), Reading(at_seconds=1.0)]) is None


def test_a_recorder_reads_before_and_after_at_least():
    device = SteadyDevice(lambda now: 1.0)
    with Recorder(SteadyGauge(device, lambda now: 5.0)) as recorder:
        device.seconds(LOOP.calls, 3)
    assert steady_watts(recorder.readings) == 5.0


def test_slowdowns_take_out_what_ran_alone():
    # Each alone 1 s. Together both at half speed until the first ends at 2 s: so does the
    # second. Then: the second has twice the work and runs the rest, 1 s, alone.
    assert slowdowns((1.0, 1.0), (2.0, 2.0)) == Slowdowns(first=2.0, second=2.0)
    assert slowdowns((1.0, 2.0), (2.0, 3.0)) == Slowdowns(first=2.0, second=2.0)
    assert slowdowns((2.0, 1.0), (3.0, 2.0)) == Slowdowns(first=2.0, second=2.0)
    assert slowdowns((1.0, 1.0), (1.0, 2.0)) is None  # one after the other


@pytest.fixture
def powercap(tmp_path):
    for zone, name, counted in (("0", "package-0", 900), ("0:0", "core", 5)):
        folder = tmp_path / f"intel-rapl:{zone}"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{counted}\n")
        (folder / "max_energy_range_uj").write_text("1000\n")
    return tmp_path


def test_processor_energy_counts_packages_once_and_survives_the_wrap(powercap):
    rapl = open_rapl(powercap)
    assert rapl is not None and rapl.joules() == 0.0
    (powercap / "intel-rapl:0" / "energy_uj").write_text("100\n")
    assert rapl.joules() == pytest.approx(200e-6)  # 900 -> 1000 = 0 -> 100
    assert open_rapl(powercap / "nowhere") is None


class FakeDriver:
    """The CUDA driver's C interface, as far as green contexts need it."""

    def __init__(self, *, sms=132, step=8, failing=""):
        self.log = []
        self._sms, self._step, self._failing = sms, step, failing

    def __getattr__(self, name):
        if name == "cuDevSmResourceSplitByCount" and self._failing == "old driver":
            raise AttributeError(name)

        def call(*arguments):
            self.log.append(name)
            if name == self._failing:
                return 801
            if name == "cuDeviceGetDevResource":
                arguments[1]._obj.sm_count = self._sms
            if name == "cuDevSmResourceSplitByCount":
                wanted = arguments[5].value
                arguments[0]._obj.sm_count = -(-wanted // self._step) * self._step
            if name == "cuGreenCtxStreamCreate":
                arguments[0]._obj.value = 0xBEEF
            return 0

        return call


def test_green_contexts_give_a_stream_and_are_given_back():
    assert ctypes.sizeof(Resource) == 144
    driver = FakeDriver()
    with green_context(20, driver=driver) as (stream, granted):
        assert (stream, granted) == (0xBEEF, 24)
    assert driver.log[-2:] == ["cuStreamDestroy_v2", "cuGreenCtxDestroy"]


def test_green_contexts_are_given_back_on_errors():
    driver = FakeDriver(failing="cuGreenCtxStreamCreate")
    with pytest.raises(Unavailable, match="error 801"), green_context(8, driver=driver):
        pytest.fail("the block has to be left out")
    assert driver.log[-1] == "cuGreenCtxDestroy"
    driver = FakeDriver()
    with pytest.raises(KeyboardInterrupt), green_context(8, driver=driver):
        raise KeyboardInterrupt
    assert driver.log[-2:] == ["cuStreamDestroy_v2", "cuGreenCtxDestroy"]


def test_green_contexts_need_a_driver_that_has_them():
    with (
        pytest.raises(Unavailable, match=r"12\.5 or later"),
        green_context(8, driver=FakeDriver(failing="old driver")),
    ):
        pytest.fail("the block has to be left out")
    with (
        pytest.raises(ValueError, match="1 to 132"),
        green_context(0, driver=FakeDriver()),
    ):
        pytest.fail("the block has to be left out")


SHARED = {"gpu": "h200-sxm", "stack": "torch-2.13.0", "status": "ok", "run": 1}


def gemm_row(m, **more):
    one = case("gemm", {"m": m, "n": 64, "k": 32, "dtype": "bfloat16"})
    row = {**SHARED, "case": one.name, "kind": "gemm", **dict(one.sizes)}
    return {**row, "seconds": 1e-5 * m, "tight": True, **more}


def test_rows_are_kept_resumed_and_read_by_kind(tmp_path):
    pytest.importorskip("pyarrow")
    records = Records(tmp_path / "run.parquet")
    records.add(gemm_row(8, watts=300.0))
    records.add({**gemm_row(16), "status": "out of memory", "seconds": None})
    records.add(gemm_row(32, joules=None))
    again = Records(tmp_path / "run.parquet")
    assert len(again.rows) == 3
    assert again.has(gemm_row(8)) and again.has(gemm_row(32))
    assert not again.has(gemm_row(16))  # failed: worth another try
    assert not again.has({**gemm_row(8), "driver": "another"})
    again.add(gemm_row(16))
    table = read_table(tmp_path / "run.gemm.parquet", strict=True)
    assert table.kind == "gemm"
    assert table["m"].tolist() == [8, 32, 16]
    assert table["seconds"].tolist() == pytest.approx([8e-5, 32e-5, 16e-5])
    assert table["watts"][0] == 300.0 and np.isnan(table["watts"][1])
    assert not list(Path(tmp_path).glob("*.partial"))


def test_a_table_of_something_else_is_left_alone(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"a": [1.0]}), tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match="choose another --out"):
        Records(tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=r"ending in \.parquet"):
        Records(tmp_path / "mine.csv")


def test_a_coreset_stands_for_all_cases_of_every_kind():
    pytest.importorskip("kmedoids")
    cases = [
        case("gemm", {"m": 2**i, "n": 4096, "k": 4096, "dtype": "bfloat16"})
        for i in range(12)
    ] + [case("copy", {"bytes": 2**i}) for i in range(16, 32, 2)]
    chosen = coreset(cases, features(cases, load_profile("h200-sxm")), 6)
    assert len(chosen) == 6
    assert {one.kind for one in chosen} == {"gemm", "copy"}
    assert sum(one.weight for one in chosen) == len(cases)
    rows = [one.number("m") for one in chosen if one.kind == "gemm"]
    assert min(rows) <= 64 and max(rows) >= 512  # bound by memory, and by compute


def test_gradients_part_memory_bound_from_compute_bound_products():
    cases = [
        case("gemm", {"m": m, "n": 8192, "k": 8192, "dtype": "bfloat16"})
        for m in (1, 2, 8192)
    ]
    few, same, many = features(cases, load_profile("h200-sxm"))
    assert np.linalg.norm(few - same) < 0.2 * np.linalg.norm(few - many)
