"""NVML's C interface as a table of replies: status codes and values by function name.

It stands in for `libnvidia-ml.so.1` below pynvml, so that pynvml's own calls, structures and
error classes are exercised. Values are those of an H200 as the API reference spells them:
millijoules, milliwatts, megahertz.
"""

import ctypes
from collections.abc import Callable
from typing import Any

SUCCESS, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION = 0, 2, 3, 4
NOT_FOUND, INSUFFICIENT_SIZE = 6, 7
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, GPU_IS_LOST = 9, 12, 15
MEGAHERTZ = (345, 1410, 1980)
CLOCK_SM, CLOCK_MEMORY = 1, 2
LINKS = 18


class ByInput(dict):
    """Replies by the last whole number that the caller passed in."""

    def __init__(self, replies: dict[int, Any], otherwise: int) -> None:
        super().__init__(replies)
        self.otherwise = otherwise


class FakeNvml:
    """A library whose functions answer from `replies` and are written down in `calls`."""

    def __init__(self, **replies: Any) -> None:
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.replies: dict[str, Any] = {
            "nvmlInitWithFlags": (),
            "nvmlShutdown": (),
            "nvmlDeviceGetHandleByIndex_v2": (),
            "nvmlDeviceGetHandleByUUID": (),
            "nvmlDeviceGetName": (b"NVIDIA H200",),
            "nvmlDeviceGetUUID": (b"GPU-11111111-2222-3333-4444-555555555555",),
            "nvmlSystemGetDriverVersion": (b"570.124.06",),
            "nvmlDeviceGetTotalEnergyConsumption": (123_456_789,),
            "nvmlDeviceGetPowerUsage": (98_700,),
            "nvmlDeviceGetClockInfo": ByInput(
                {CLOCK_SM: (1980,), CLOCK_MEMORY: (3201,)}, INVALID_ARGUMENT
            ),
            "nvmlDeviceGetMaxClockInfo": ByInput(
                {CLOCK_SM: (1980,), CLOCK_MEMORY: (3201,)}, INVALID_ARGUMENT
            ),
            "nvmlDeviceGetMemoryBusWidth": (6144,),
            "nvmlDeviceGetMemoryInfo": {
                "total": 150_754_820_096,
                "free": 150_000_000_000,
                "used": 754_820_096,
            },
            "nvmlDeviceGetNvLinkState": ByInput(
                dict.fromkeys(range(LINKS), (1,)), INVALID_ARGUMENT
            ),
            "nvmlDeviceGetMaxPcieLinkGeneration": (5,),
            "nvmlDeviceGetMaxPcieLinkWidth": (16,),
            "nvmlDeviceGetCount_v2": (8,),
            "nvmlDeviceGetTemperature": (41,),
            "nvmlDeviceGetCurrentClocksThrottleReasons": (0,),
            "nvmlDeviceGetCurrentClocksEventReasons": (0,),
            "nvmlDeviceGetUtilizationRates": {"gpu": 0, "memory": 0},
            "nvmlDeviceGetEccMode": (1, 1),
            "nvmlDeviceGetMigMode": (0, 0),
            "nvmlDeviceGetPersistenceMode": (1,),
            "nvmlDeviceGetEnforcedPowerLimit": (700_000,),
            "nvmlDeviceGetPowerManagementDefaultLimit": (700_000,),
            "nvmlDeviceGetComputeRunningProcesses_v3": [],
            "nvmlDeviceGetSupportedMemoryClocks": [3201],
            "nvmlDeviceGetSupportedGraphicsClocks": ByInput(
                {3201: list(MEGAHERTZ)}, NOT_FOUND
            ),
            "nvmlDeviceSetGpuLockedClocks": (),
            "nvmlDeviceResetGpuLockedClocks": (),
            **replies,
        }

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name.startswith("__") or name not in self.replies:
            raise AttributeError(name)
        return lambda *arguments: self._answer(name, arguments)

    def called(self, name: str) -> list[tuple[int, ...]]:
        """Returns the whole-number arguments of every call of `name`."""
        return [arguments for called, arguments in self.calls if called == name]

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        numbers = tuple(
            int(getattr(a, "value", a))
            for a in arguments
            if isinstance(getattr(a, "value", a), int)
        )
        self.calls.append((name, numbers))
        reply = self.replies[name]
        if callable(reply):
            reply = reply()
        if isinstance(reply, ByInput):
            inputs = [a for a in arguments if not _is_output(a)]
            reply = reply.get(_last_number(inputs), reply.otherwise)
        if isinstance(reply, int):
            return reply
        if isinstance(reply, list):
            return _listed(reply, arguments)
        outputs = [a for a in arguments if _is_output(a)]
        if isinstance(reply, dict):
            for field, value in reply.items():
                setattr(outputs[-1]._obj, field, value)
            return SUCCESS
        for output, value in zip(outputs, reply, strict=False):
            _store(output, value)
        return SUCCESS


def _last_number(arguments: list[Any]) -> int:
    values = (getattr(argument, "value", argument) for argument in arguments)
    return [value for value in values if isinstance(value, int)][-1]


def _is_output(argument: Any) -> bool:
    return hasattr(argument, "_obj") or isinstance(argument, ctypes.Array)


def _store(output: Any, value: Any) -> None:
    target = output if isinstance(output, ctypes.Array) else output._obj
    target.value = value


def _listed(values: list[int], arguments: tuple[Any, ...]) -> int:
    """Fills an array, or says that it is too small: a count goes in, another comes out.

    Without an array, or with too small a one, the count becomes the one that is needed.
    """
    count = next(a for a in arguments if hasattr(a, "_obj"))._obj
    array, room = arguments[-1], count.value
    count.value = len(values)
    if not values:
        return SUCCESS
    if array is None or room < len(values):
        return INSUFFICIENT_SIZE
    for i, value in enumerate(values):
        if isinstance(array[i], int):
            array[i] = value
        else:
            array[i].pid = value
    return SUCCESS
