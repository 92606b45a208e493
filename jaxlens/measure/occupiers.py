"""A kernel that holds some SMs and does nothing, so that others have to do with the rest.

For drivers without green contexts. Blocks of 1024 threads, two to an SM, leave no room for a
thread of any other kernel; those that land beyond the wanted SMs end at once. The kernel
sleeps while it waits, and how many SMs it holds in full is counted, not assumed.

While it runs nothing may wait for the whole device, nor load a kernel for the first time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxlens.measure.devices import Cuda
from jaxlens.measure.refusals import Unavailable

THREADS = 1024
LIMIT_MILLISECONDS = 120_000  # a forgotten occupier ends by itself
SOURCE = """
extern "C" __global__ void __launch_bounds__(1024, 2)
occupy(volatile int* stop, int* held, int wanted, int milliseconds) {
  unsigned sm; asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  if (sm >= (unsigned)wanted) return;
  if (threadIdx.x == 0) atomicAdd(&held[sm], 1);
  unsigned long long start, now, limit = milliseconds * 1000000ull;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do {
    __nanosleep(100000);
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (!*stop && now - start < limit);
}
"""


@contextmanager
def occupied(device: Cuda, sms: int) -> Iterator[int]:
    """Holds `sms` SMs while the block runs; yields how many are held in full."""
    torch = device.torch
    if not 0 < sms < device.sms:
        raise ValueError(
            f"SM share: expected 1 to {device.sms - 1} SMs to hold, got {sms}."
        )
    kernel = _compiled(torch)
    stop = torch.zeros(1, dtype=torch.int32).pin_memory()
    held = torch.zeros(device.sms, dtype=torch.int32, device=device.place)
    side = torch.cuda.Stream(device.place)
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            kernel(
                grid=(8 * device.sms, 1, 1),
                block=(THREADS, 1, 1),
                args=(stop, held, sms, LIMIT_MILLISECONDS),
            )
        yield _settled(torch, held)
    finally:
        stop.fill_(1)
        side.synchronize()


def _compiled(torch: Any) -> Any:
    compile_kernel = getattr(torch.cuda, "_compile_kernel", None)
    if compile_kernel is None:
        raise Unavailable(
            "SM shares: expected a torch that compiles CUDA kernels, got "
            f"{torch.__version__}; use a driver of CUDA 12.5 or later."
        )
    return compile_kernel(SOURCE, "occupy")


def _settled(torch: Any, held: Any) -> int:
    """Returns the SMs with both blocks, once the count has stopped changing."""
    counts: list[int] = []
    with torch.cuda.stream(torch.cuda.Stream(held.device)):
        for _ in range(200):
            time.sleep(0.005)
            counts.append(int((held.to("cpu") >= 2).sum()))
            if counts[-1] > 0 and counts[-5:] == [counts[-1]] * 5:
                return counts[-1]
    raise Unavailable("SM shares: the occupier did not settle on its SMs.")
