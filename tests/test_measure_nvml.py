import os
import signal

import pytest

from jaxlens.measure.clocks import locked_clock
from jaxlens.measure.gauges import GpuGauge, Recorder
from jaxlens.measure.guards import fitness, newcomers, require_fit
from jaxlens.measure.nvml import open_gpu
from jaxlens.measure.refusals import Unavailable
from tests.fake_nvml import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    LIBRARY_NOT_FOUND,
    NO_PERMISSION,
    NOT_FOUND,
    NOT_SUPPORTED,
    ByInput,
    FakeNvml,
)

pynvml = pytest.importorskip("pynvml", reason="the extra `measure` is not installed")


@pytest.fixture
def install(monkeypatch):
    def put(**replies):
        library = FakeNvml(**replies)
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return library

    return put


def test_readings_are_in_si_units(install):
    install()
    gpu = open_gpu()
    assert gpu.name == "NVIDIA H200"
    assert gpu.uuid.startswith("GPU-1111")
    assert gpu.driver == "570.124.06"
    assert gpu.joules() == 123_456.789  # the counter holds millijoules
    assert gpu.watts() == 98.7
    assert gpu.sm_clock_hz() == 1.98e9
    assert gpu.memory_clock_hz() == 3.201e9
    assert gpu.temperature_celsius() == 41
    assert gpu.modes().power_limit_watts == 700.0
    assert gpu.modes().ecc is True
    assert gpu.modes().mig is False
    assert gpu.supported_sm_clocks_hz() == (3.45e8, 1.41e9, 1.98e9)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (LIBRARY_NOT_FOUND, "no NVIDIA driver library"),
        (DRIVER_NOT_LOADED, "driver is not loaded"),
        (GPU_IS_LOST, "fallen off the bus"),
    ],
)
def test_a_missing_driver_is_said_plainly_with_the_way_out(install, code, words):
    install(nvmlInitWithFlags=code)
    with pytest.raises(Unavailable, match=words) as refused:
        open_gpu()
    assert "--device cpu" in str(refused.value)


def test_a_missing_gpu_is_said_plainly(install):
    library = install(nvmlDeviceGetHandleByIndex_v2=NOT_FOUND)
    with pytest.raises(Unavailable, match="GPU number 3, got: there is no such GPU"):
        open_gpu(3)
    assert library.called("nvmlShutdown")


def test_a_sensor_that_a_gpu_lacks_is_unknown_and_no_error(install):
    install(nvmlDeviceGetTotalEnergyConsumption=NOT_SUPPORTED)
    gpu = open_gpu()
    assert gpu.joules() is None
    gauge = GpuGauge(gpu)
    assert gauge.has_energy  # from sampled power
    assert gauge.read().watts == 98.7
    assert "energy comes from sampled power" in fitness(gpu).notes[0]


def test_a_function_that_an_old_driver_lacks_is_unknown_and_no_error(install):
    library = install()
    del library.replies["nvmlDeviceGetMigMode"]
    assert open_gpu().modes().mig is None


def test_a_gpu_that_is_lost_on_the_way_ends_the_recording(install):
    replies = iter([(1000,)] * 3)
    install(
        nvmlDeviceGetTotalEnergyConsumption=lambda: next(replies, GPU_IS_LOST),
    )
    gauge = GpuGauge(open_gpu())
    with pytest.raises(Unavailable, match="fallen off the bus"), Recorder(gauge):
        signal.sigtimedwait([], 0.1)


def test_a_quiet_gpu_is_fit(install):
    install()
    found = fitness(open_gpu())
    assert found.notes == ()
    assert require_fit(found) == ()


def test_other_processes_are_refused_by_pid(install):
    install(nvmlDeviceGetComputeRunningProcesses_v3=[4711, 4712])
    found = fitness(open_gpu())
    with pytest.raises(Unavailable, match="pid 4711, 4712"):
        require_fit(found)
    assert "4711" in require_fit(found, allow=True)[0]


def test_hidden_users_show_by_their_load(install):
    install(nvmlDeviceGetUtilizationRates={"gpu": 37, "memory": 5})
    with pytest.raises(Unavailable, match="somebody else uses it"):
        require_fit(fitness(open_gpu()))


def test_mig_is_refused_and_ecc_off_is_noted(install):
    install(nvmlDeviceGetMigMode=(1, 1), nvmlDeviceGetEccMode=(0, 0))
    found = fitness(open_gpu())
    assert "ECC is off" in found.notes[0]
    with pytest.raises(Unavailable, match="MIG is on"):
        require_fit(found)


def test_a_lowered_power_limit_is_noted(install):
    install(nvmlDeviceGetEnforcedPowerLimit=(400_000,))
    assert fitness(open_gpu()).notes == (
        "power limit 400 W is below the default 700 W",
    )


def test_newcomers_are_processes_that_were_not_there_before(install):
    install(nvmlDeviceGetComputeRunningProcesses_v3=[1, 2, 3])
    assert newcomers(open_gpu(), frozenset({1, 2})) == {3}


def test_throttle_reasons_have_names(install):
    bits = (0x44,)
    install(
        nvmlDeviceGetCurrentClocksThrottleReasons=bits,
        nvmlDeviceGetCurrentClocksEventReasons=bits,
    )
    assert open_gpu().throttle_reasons() == (
        "software power cap",
        "hardware thermal slowdown",
    )


def test_an_old_driver_tells_the_reasons_under_their_old_name(install):
    library = install(nvmlDeviceGetCurrentClocksThrottleReasons=(0x4,))
    del library.replies["nvmlDeviceGetCurrentClocksEventReasons"]
    assert open_gpu().throttle_reasons() == ("software power cap",)


def test_links_are_counted_where_they_are_up(install):
    assert install() and open_gpu().nvlinks() == 18
    install(nvmlDeviceGetNvLinkState=ByInput({0: (1,), 1: (0,), 2: (1,)}, 2))
    assert open_gpu().nvlinks() == 2


def test_a_clock_is_locked_next_to_the_wish_and_given_back(install):
    library = install()
    with locked_clock(open_gpu(), 1.4e9) as clock:
        assert clock == 1.41e9
        assert library.called("nvmlDeviceSetGpuLockedClocks")[0][-2:] == (1410, 1410)
        assert not library.called("nvmlDeviceResetGpuLockedClocks")
    assert len(library.called("nvmlDeviceResetGpuLockedClocks")) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_clock_is_given_back_on_errors_and_interrupts(install, error):
    library = install()
    with pytest.raises(error), locked_clock(open_gpu(), 1.98e9):
        raise error
    assert len(library.called("nvmlDeviceResetGpuLockedClocks")) == 1


def test_a_clock_is_given_back_when_the_process_is_told_to_end(install):
    library = install()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), locked_clock(open_gpu(), 1.98e9):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1.0)
    assert len(library.called("nvmlDeviceResetGpuLockedClocks")) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_the_right_no_clock_is_locked_and_none_given_back(install):
    library = install(nvmlDeviceSetGpuLockedClocks=NO_PERMISSION)
    with (
        pytest.raises(Unavailable, match="lacks the right; ask an administrator"),
        locked_clock(open_gpu(), 1.98e9),
    ):
        pytest.fail("the block has to be left out")
    assert not library.called("nvmlDeviceResetGpuLockedClocks")


def test_a_clock_out_of_range_says_what_there_is(install):
    library = install()
    with (
        pytest.raises(ValueError, match="expected 345 to 1980 MHz, got 3000 MHz"),
        locked_clock(open_gpu(), 3e9),
    ):
        pytest.fail("the block has to be left out")
    assert not library.called("nvmlDeviceSetGpuLockedClocks")
