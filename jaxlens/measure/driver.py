"""Parts of a GPU's SMs through green contexts of the CUDA driver (12.5 or later).

Streams of such a context keep to its SMs whichever context is current.

Source: NVIDIA, CUDA driver API reference, "Green Contexts", 2025,
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__GREEN__CONTEXTS.html.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxlens.measure.refusals import Unavailable

SM_RESOURCE = 1
DEFAULT_STREAM = 1  # flag of a green context
NON_BLOCKING = 1  # flag that a stream of a green context has to have


class Resource(ctypes.Structure):
    """A set of SMs. The driver keeps the type first and the count at byte 96 of 144.

    The rest has to be zero: since CUDA 13.1 its end points to a further resource.
    """

    _fields_ = (
        ("type", ctypes.c_int),
        ("padding", ctypes.c_ubyte * 92),
        ("sm_count", ctypes.c_uint),
        ("rest", ctypes.c_ubyte * 44),
    )


def load_driver() -> Any:
    """Returns the driver's library."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Unavailable(
            "SM shares: expected the CUDA driver library, got none."
        ) from error


@contextmanager
def green_context(sms: int, *, index: int = 0, driver: Any = None) -> Iterator[tuple]:
    """Opens a stream on at least `sms` SMs; yields its address and the SMs it got.

    The driver rounds up to what the architecture can split (8 SMs on Hopper). Everything is
    given back at the end of the block.
    """
    cuda = driver if driver is not None else load_driver()
    device = ctypes.c_int()
    _check(cuda, "cuInit", ctypes.c_uint(0))
    _check(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    part = _part(cuda, device, sms)
    context, stream = _created(cuda, device, part), ctypes.c_void_p()
    flags, priority = ctypes.c_uint(NON_BLOCKING), ctypes.c_int(0)
    try:
        made = ctypes.byref(stream)
        _check(cuda, "cuGreenCtxStreamCreate", made, context, flags, priority)
        try:
            yield stream.value, int(part.sm_count)
        finally:
            _check(cuda, "cuStreamDestroy_v2", stream)
    finally:
        _check(cuda, "cuGreenCtxDestroy", context)


def _part(cuda: Any, device: ctypes.c_int, sms: int) -> Resource:
    """Returns one group of at least `sms` SMs."""
    whole, part, rest = Resource(), Resource(), Resource()
    kind = ctypes.c_int(SM_RESOURCE)
    _check(cuda, "cuDeviceGetDevResource", device, ctypes.byref(whole), kind)
    if not 0 < sms <= whole.sm_count:
        raise ValueError(f"SM share: expected 1 to {whole.sm_count} SMs, got {sms}.")
    _check(
        cuda,
        "cuDevSmResourceSplitByCount",
        ctypes.byref(part),
        ctypes.byref(ctypes.c_uint(1)),  # groups
        ctypes.byref(whole),
        ctypes.byref(rest),
        ctypes.c_uint(0),
        ctypes.c_uint(sms),
    )
    return part


def _created(cuda: Any, device: ctypes.c_int, part: Resource) -> ctypes.c_void_p:
    """Returns a green context on the SMs of `part`."""
    described, context = ctypes.c_void_p(), ctypes.c_void_p()
    one, flags = ctypes.c_uint(1), ctypes.c_uint(DEFAULT_STREAM)
    made = ctypes.byref(described), ctypes.byref(part)
    _check(cuda, "cuDevResourceGenerateDesc", *made, one)
    _check(cuda, "cuGreenCtxCreate", ctypes.byref(context), described, device, flags)
    return context


def _check(cuda: Any, function: str, *arguments: Any) -> None:
    try:
        call = getattr(cuda, function)
    except AttributeError as error:
        raise Unavailable(
            f"SM shares: expected a driver of CUDA 12.5 or later, got one without "
            f"{function}."
        ) from error
    code = call(*arguments)
    if code != 0:
        raise Unavailable(f"SM shares: {function} failed with CUDA error {code}.")
