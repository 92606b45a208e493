"""A kernel as torch runs it: how its inputs are made, what it does with them, what it moves."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxlens.measure.devices import Cpu, Device
from jaxlens.measure.refusals import Unavailable
from jaxlens.measure.windows import Loop

Tensors = Mapping[str, Any]

ELEMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0}
MEMORY_SHARE = 0.5  # of the device's memory that inputs may take
MOST_SETS = 256
CACHE_TURNS = 2.0  # caches that all input sets together fill
GRAPH_SECONDS = 0.02  # that one replay should last
SHORT_SECONDS = 2e-4  # launches below this may be bound by the host


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One operation, before any input exists."""

    make: Callable[[], Tensors]  # one fresh set of random inputs
    run: Callable[[Tensors], Any]
    random: tuple[str, ...]  # inputs that take new random values
    set_bytes: float
    flop: float
    moved_bytes: float  # to and from memory, if caches hold nothing
    source: str  # which implementation runs


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Inputs that exist, and the loop over them."""

    loop: Loop
    sets: int
    fills_cache: bool  # whether the sets together exceed the last cache
    replayed: bool  # through CUDA graphs


def prepare(
    kernel: Kernel, device: Device, *, replay: bool = True, shared: bool = False
) -> Prepared:
    """Returns the loop over enough input sets that no cache holds them all.

    Launches that are too short for the host to keep up are replayed from a CUDA graph.
    With `shared`, a processor's inputs lie where those of other kernels do: not for kernels
    that run at the same time.
    """
    count = set_count(kernel.set_bytes, device)
    with device.laid_out() if shared and isinstance(device, Cpu) else nullcontext():
        sets = [kernel.make() for _ in range(count)]
    calls: Sequence[Callable[[], Any]] = [partial(kernel.run, one) for one in sets]
    for call in calls:
        call()
    device.synchronize()
    per_call = 1
    if replay and device.kind == "cuda":
        single = device.seconds(calls, max(10, len(calls))) / max(10, len(calls))
        if single < SHORT_SECONDS:
            launches = math.ceil(GRAPH_SECONDS / max(single, 1e-6))
            calls, per_call = device.replayable(calls, min(2000, launches))
    return Prepared(
        loop=Loop(
            calls=calls,
            launches_per_call=per_call,
            # New bits change the power of a GPU; a processor's time does not see them.
            refresh=partial(_refresh, sets, kernel.random, device)
            if device.kind == "cuda"
            else lambda: None,
        ),
        sets=count,
        fills_cache=count * kernel.set_bytes > device.cache_bytes,
        replayed=per_call > 1,
    )


def set_count(set_bytes: float, device: Device) -> int:
    """Returns how many input sets to cycle through: at least 2, if they fit."""
    room = MEMORY_SHARE * device.memory_bytes / max(set_bytes, 1.0)
    if room < 1.0:
        raise Unavailable(
            f"measure: expected {set_bytes / 1e9:.2f} GB of inputs to fit, got "
            f"{device.memory_bytes / 1e9:.1f} GB of memory; leave the case out."
        )
    wanted = math.ceil(CACHE_TURNS * device.cache_bytes / max(set_bytes, 1.0))
    return int(min(max(2, min(wanted, MOST_SETS)), room))


def torch_dtype(device: Device, name: str) -> Any:
    """Returns torch's number format called `name`."""
    spelled = {"fp8": "float8_e4m3fn"}.get(name, name)
    dtype = getattr(device.torch, spelled, None)
    if name not in ELEMENT_BYTES or dtype is None:
        raise ValueError(
            f"measure: expected a dtype among {', '.join(ELEMENT_BYTES)}, got {name!r}."
        )
    return dtype


def normal(device: Device, dtype: Any, *shape: int) -> Any:
    """Returns a tensor of normal random values: power depends on the bits that switch."""
    torch = device.torch
    if isinstance(device, Cpu) and dtype == torch.float32:
        placed = device.placed(shape, random=True)
        if placed is not None:
            return placed
    if dtype.is_floating_point and dtype.itemsize > 1:
        return torch.randn(shape, dtype=dtype, device=device.place)
    wide = torch.randn(shape, dtype=torch.float32, device=device.place)
    return wide.to(dtype)


def blank(device: Device, dtype: Any, *shape: int) -> Any:
    """Returns a tensor that a result will be written to."""
    if isinstance(device, Cpu) and dtype == device.torch.float32:
        placed = device.placed(shape, random=False)
        if placed is not None:
            return placed
    return device.torch.empty(shape, dtype=dtype, device=device.place)


def _refresh(sets: Sequence[Tensors], names: Sequence[str], device: Device) -> None:
    """Writes new random values in place, so that graphs keep their addresses."""
    for tensors in sets:
        for name in names:
            tensor = tensors[name]
            if tensor.dtype.itemsize > 1:
                tensor.normal_()
            else:
                tensor.copy_(normal(device, tensor.dtype, *tensor.shape))
    device.synchronize()
