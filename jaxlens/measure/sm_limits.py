"""Kernels on a part of the SMs: by a green context, else beside an occupier."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxlens.measure.benches import (
    Bench,
    Columns,
    kernel_columns,
    measurement_columns,
)
from jaxlens.measure.cases import Case, case
from jaxlens.measure.devices import Cuda
from jaxlens.measure.driver import green_context
from jaxlens.measure.kernels import prepare
from jaxlens.measure.occupiers import occupied
from jaxlens.measure.operations import kernel as kernel_of
from jaxlens.measure.refusals import Unavailable
from jaxlens.measure.windows import measured


def measure_share(one: Case, bench: Bench) -> Columns:
    """Returns time and energy of a kernel on about `sms` SMs, and how many it had.

    The whole GPU stays awake, so watts above idle do not scale with the share. Beside an
    occupier they include what the occupier draws.
    """
    device = bench.device
    if not isinstance(device, Cuda):
        raise Unavailable("SM shares: expected a GPU, got a processor.")
    outer = {"sms", "operation_kind"}
    sizes = {name: value for name, value in one.sizes if name not in outer}
    inner = case(one.text("operation_kind"), sizes)
    kernel = kernel_of(inner, device)
    prepared = prepare(kernel, device, replay=False)
    device.synchronize()
    with limited(device, one.number("sms")) as (granted, method):
        result = measured(device, bench.gauge, prepared.loop, bench.rules, bench.agree)
    return {
        **measurement_columns(result, bench.idle_watts),
        **kernel_columns(kernel, prepared),
        "granted_sms": granted,
        "sm_share": granted / device.sms,
        "sm_limit": method,
    }


@contextmanager
def limited(device: Cuda, sms: int) -> Iterator[tuple[int, str]]:
    """Makes `device` launch on `sms` SMs; yields how many it got and by which means."""
    if sms >= device.sms:
        yield device.sms, "whole GPU"
        return
    context = green_context(sms, index=device.place.index)
    try:
        address, granted = context.__enter__()
    except Unavailable:
        with occupied(device, device.sms - sms) as held:
            yield device.sms - held, "occupier"
        return
    try:
        device.stream = device.torch.cuda.ExternalStream(address, device.place)
        yield granted, "green context"
    finally:
        device.synchronize()
        device.stream = None
        context.__exit__(None, None, None)
