"""SM clocks locked for the length of a block, and given back whatever happens in it."""

import atexit
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jaxlens.measure.nvml import Gpu
from jaxlens.measure.refusals import Unavailable


def supported_clock(gpu: Gpu, hertz: float) -> float:
    """Returns the lockable SM clock next to `hertz`."""
    clocks = gpu.supported_sm_clocks_hz()
    if not clocks:
        raise Unavailable(
            f"--lock-clocks: expected GPU {gpu.index} to list its clocks, got none; "
            "measure without --lock-clocks."
        )
    if not clocks[0] <= hertz <= clocks[-1]:
        raise ValueError(
            f"--lock-clocks: expected {clocks[0] / 1e6:.0f} to {clocks[-1] / 1e6:.0f} "
            f"MHz, got {hertz / 1e6:.0f} MHz."
        )
    return min(clocks, key=lambda clock: abs(clock - hertz))


@contextmanager
def locked_clock(gpu: Gpu, hertz: float) -> Iterator[float]:
    """Locks the SM clock of `gpu` next to `hertz` and unlocks it on the way out.

    Also on an error, Ctrl-C, SIGTERM, SIGHUP and at interpreter exit. NVML does not tell
    whether somebody had locked another clock before: what is restored is the driver's choice.
    """
    clock = supported_clock(gpu, hertz)
    held = True  # from before the lock, so that an interrupt in between releases it

    def release() -> None:
        nonlocal held
        if held:
            held = False
            gpu.unlock_sm_clock()

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {}
    atexit.register(release)
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                before[number] = signal.signal(number, stop)
        try:
            gpu.lock_sm_clock(clock)
        except Unavailable:
            held = False
            raise
        yield clock
    finally:
        try:
            release()
        finally:
            atexit.unregister(release)
            for number, handler in before.items():
                signal.signal(number, handler)
