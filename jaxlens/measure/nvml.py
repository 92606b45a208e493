"""One NVIDIA GPU through NVML: energy, power, clocks, temperature, modes and processes.

Source: NVIDIA, NVML API reference, 2025, https://docs.nvidia.com/deploy/nvml-api/.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxlens.measure.refusals import Unavailable
from jaxlens.measure.throttling import names

CURES = {
    "NVMLError_LibraryNotFound": "no NVIDIA driver library (libnvidia-ml) is installed",
    "NVMLError_LibRmVersionMismatch": (
        "driver and library versions differ; reboot or reload the driver"
    ),
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is not loaded",
    "NVMLError_NoPermission": "this user lacks the right; ask an administrator",
    "NVMLError_NotSupported": "this GPU or driver does not offer it",
    "NVMLError_GpuIsLost": "the GPU has fallen off the bus; reset or reboot",
    "NVMLError_NotFound": "there is no such GPU",
    "NVMLError_InvalidArgument": "there is no such GPU",
    "NVMLError_Timeout": "the driver did not answer in time",
    "NVMLError_Unknown": "the driver reports an unknown error",
}


@dataclass(frozen=True, kw_only=True)
class Modes:
    """Settings of a GPU that a measurement has to name; None where it does not tell."""

    ecc: bool | None
    mig: bool | None
    persistence: bool | None
    power_limit_watts: float | None
    default_power_limit_watts: float | None


class Gpu:
    """An open NVML handle. Methods return SI units, or None where not supported."""

    def __init__(self, pynvml: Any, handle: Any, index: int) -> None:
        self._nvml = pynvml
        self._handle = handle
        self.index = index
        self.name = self._required("its name", pynvml.nvmlDeviceGetName)
        self.uuid = self._optional(pynvml.nvmlDeviceGetUUID) or ""
        self.driver = str(pynvml.nvmlSystemGetDriverVersion())

    def close(self) -> None:
        """Ends the use of NVML."""
        self._nvml.nvmlShutdown()

    def joules(self) -> float | None:
        """Returns the energy drawn since the driver was loaded (counter of mJ)."""
        counted = self._optional(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if counted is None else counted / 1e3

    def watts(self) -> float | None:
        """Returns the power, a mean over a period that depends on the chip."""
        milliwatts = self._optional(self._nvml.nvmlDeviceGetPowerUsage)
        return None if milliwatts is None else milliwatts / 1e3

    def sm_clock_hz(self) -> float | None:
        """Returns the clock of the SMs."""
        return self._clock(self._nvml.NVML_CLOCK_SM)

    def memory_clock_hz(self) -> float | None:
        """Returns the clock of the memory."""
        return self._clock(self._nvml.NVML_CLOCK_MEM)

    def temperature_celsius(self) -> float | None:
        """Returns the temperature of the die."""
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        return self._optional(self._nvml.nvmlDeviceGetTemperature, sensor)

    def throttle_reasons(self) -> tuple[str, ...]:
        """Returns why the clock is below its highest, empty where nothing is known."""
        mask = self._optional(self._nvml.nvmlDeviceGetCurrentClocksEventReasons)
        if mask is None:  # what drivers before 535 call the same mask
            mask = self._optional(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return names(int(mask or 0))

    def busy_share(self) -> float | None:
        """Returns the share of the last period in which any kernel ran."""
        rates = self._optional(self._nvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else rates.gpu / 100.0

    def processes(self) -> frozenset[int]:
        """Returns the ids of processes that compute on the GPU, as the host counts."""
        running = self._optional(self._nvml.nvmlDeviceGetComputeRunningProcesses)
        return frozenset(int(process.pid) for process in running or ())

    def modes(self) -> Modes:
        """Returns ECC, MIG, persistence and power limits."""
        nvml = self._nvml
        ecc = self._optional(nvml.nvmlDeviceGetEccMode)
        mig = self._optional(nvml.nvmlDeviceGetMigMode)
        persistence = self._optional(nvml.nvmlDeviceGetPersistenceMode)
        limit = self._optional(nvml.nvmlDeviceGetEnforcedPowerLimit)
        default = self._optional(nvml.nvmlDeviceGetPowerManagementDefaultLimit)
        return Modes(
            ecc=None if ecc is None else bool(ecc[0]),
            mig=None if mig is None else bool(mig[0]),
            persistence=None if persistence is None else bool(persistence),
            power_limit_watts=None if limit is None else limit / 1e3,
            default_power_limit_watts=None if default is None else default / 1e3,
        )

    def highest_clock_hz(self, domain: str) -> float | None:
        """Returns the highest clock of "sm" or "memory"."""
        kinds = {"sm": self._nvml.NVML_CLOCK_SM, "memory": self._nvml.NVML_CLOCK_MEM}
        megahertz = self._optional(self._nvml.nvmlDeviceGetMaxClockInfo, kinds[domain])
        return megahertz * 1e6 if megahertz else None

    def memory_bytes(self) -> float | None:
        """Returns the size of the memory."""
        memory = self._optional(self._nvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else float(memory.total)

    def memory_bus_bits(self) -> int | None:
        """Returns the width of the memory bus."""
        bits = self._optional(self._nvml.nvmlDeviceGetMemoryBusWidth)
        return int(bits) if bits else None

    def nvlinks(self) -> int:
        """Returns how many NVLinks are up; asking for links that it lacks is no error."""
        nvml, count = self._nvml, 0
        for link in range(nvml.NVML_NVLINK_MAX_LINKS):
            try:
                up = nvml.nvmlDeviceGetNvLinkState(self._handle, link)
            except nvml.NVMLError:
                continue
            count += int(up == nvml.NVML_FEATURE_ENABLED)
        return count

    def pcie(self) -> tuple[int, int] | None:
        """Returns generation and lanes of PCIe, the most that GPU and machine allow."""
        nvml = self._nvml
        generation = self._optional(nvml.nvmlDeviceGetMaxPcieLinkGeneration)
        lanes = self._optional(nvml.nvmlDeviceGetMaxPcieLinkWidth)
        return (int(generation), int(lanes)) if generation and lanes else None

    def neighbours(self) -> int:
        """Returns how many GPUs the machine has, this one among them."""
        try:
            return max(1, int(self._nvml.nvmlDeviceGetCount()))
        except self._nvml.NVMLError:
            return 1

    def supported_sm_clocks_hz(self) -> tuple[float, ...]:
        """Returns the SM clocks that can be locked at the highest memory clock."""
        memory = self._optional(self._nvml.nvmlDeviceGetSupportedMemoryClocks)
        if not memory:
            return ()
        clocks = self._optional(
            self._nvml.nvmlDeviceGetSupportedGraphicsClocks, max(memory)
        )
        return tuple(sorted(megahertz * 1e6 for megahertz in clocks or ()))

    def lock_sm_clock(self, hertz: float) -> None:
        """Locks the SM clock. Needs administrator rights."""
        megahertz = round(hertz / 1e6)
        lock = self._nvml.nvmlDeviceSetGpuLockedClocks
        self._required(f"a locked clock of {megahertz} MHz", lock, megahertz, megahertz)

    def unlock_sm_clock(self) -> None:
        """Gives the SM clock back to the driver."""
        self._required("unlocked clocks", self._nvml.nvmlDeviceResetGpuLockedClocks)

    def _clock(self, domain: int) -> float | None:
        megahertz = self._optional(self._nvml.nvmlDeviceGetClockInfo, domain)
        return None if megahertz is None else megahertz * 1e6

    def _required(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            raise Unavailable(
                f"GPU {self.index}: expected {what}, got: {plain(error)}."
            ) from error

    def _optional(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Returns the reply, None where the GPU does not offer it; other errors rise."""
        nvml = self._nvml
        silent = (
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_NoPermission,
            nvml.NVMLError_FunctionNotFound,
        )
        try:
            return call(self._handle, *arguments)
        except silent:
            return None
        except nvml.NVMLError as error:
            raise Unavailable(
                f"GPU {self.index}: expected an answer to {call.__name__}, got: "
                f"{plain(error)}."
            ) from error


def open_gpu(index: int = 0, *, uuid: str | None = None) -> Gpu:
    """Returns the GPU called `uuid`, or the one at `index` of NVML's list.

    NVML counts all GPUs of the machine, CUDA only the visible ones: prefer the UUID.
    """
    try:
        pynvml: Any = importlib.import_module("pynvml")  # an extra
    except ImportError as error:
        raise Unavailable(
            "NVML: expected the package nvidia-ml-py, got none; "
            "pip install 'jaxlens[measure]'."
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Unavailable(
            f"NVML: expected an NVIDIA driver, got: {plain(error)}; "
            "measure the processor with --device cpu."
        ) from error
    try:
        if uuid is not None:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        else:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return Gpu(pynvml, handle, index)
    except pynvml.NVMLError as error:
        pynvml.nvmlShutdown()
        wanted = uuid or f"number {index}"
        raise Unavailable(
            f"NVML: expected a GPU {wanted}, got: {plain(error)}."
        ) from error


def plain(error: Exception) -> str:
    """Returns an NVML error in plain words."""
    kind = type(error).__name__
    return CURES.get(kind, str(error) or kind)
