"""Memory in which the inputs of all processor kernels lie, each time at the same place.

Where pages land in physical memory decides which of them fight for the same cache sets: the
same kernel with freshly allocated inputs is up to a tenth faster or slower. One block of
memory in huge pages takes that away, and cases can be visited again at no cost. Kernels run
one at a time, so they share it: inputs in one arena, which nobody writes to, results in
another, so that inputs stay normal numbers.

Source: U. Drepper, "What every programmer should know about memory", 2007, section 7.5 (huge
pages and page colouring), https://www.akkadia.org/drepper/cpumemory.pdf.
"""

import ctypes
import math
import mmap
import sys
from typing import Any

HUGE_BYTES = 2**21
LINE_BYTES = 64
FLOAT_BYTES = 4
TRIM_THRESHOLD, MOST_MAPPED = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h


class Arena:
    """A block of float32 numbers, handed out from the start until it is reset."""

    def __init__(self, torch: Any, size_bytes: float, *, random: bool) -> None:
        size = math.ceil(size_bytes / HUGE_BYTES) * HUGE_BYTES
        block = mmap.mmap(-1, size + HUGE_BYTES)
        self.huge = _advise(block)
        whole = torch.frombuffer(block, dtype=torch.uint8)
        start = -whole.data_ptr() % HUGE_BYTES
        self._numbers = whole[start : start + size].view(torch.float32)
        if random:
            self._numbers.normal_()
        else:
            self._numbers.zero_()
        self._taken = 0

    def reset(self) -> None:
        """Hands out from the start again."""
        self._taken = 0

    def take(self, *shape: int) -> Any:
        """Returns the next tensor of `shape`, None where the arena is used up."""
        count = math.prod(shape)
        start = self._taken
        if start + count > self._numbers.numel():
            return None
        step = LINE_BYTES // FLOAT_BYTES
        self._taken = start + math.ceil(count / step) * step
        return self._numbers[start : start + count].view(shape)


def keep_freed_memory() -> None:
    """Makes the C library keep memory that kernels free, as allocators of servers do.

    By default it gives large results back to the system, or does not, by what was allocated
    before: the same kernel then takes up to ten times as long, for the faults of fresh pages.

    Source: mallopt(3), Linux manual pages, 2024, https://man7.org/linux/man-pages.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MOST_MAPPED, 0)
        mallopt(TRIM_THRESHOLD, -1)


def _advise(block: mmap.mmap) -> bool:
    """Asks for huge pages; returns whether the system knows them."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return False
    try:
        block.madvise(advice)
    except OSError:
        return False
    return True
