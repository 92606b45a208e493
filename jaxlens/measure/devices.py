"""The processor or a GPU as something that runs launches and tells how long they took."""

import importlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Protocol

from jaxlens.measure.arenas import Arena, keep_freed_memory
from jaxlens.measure.refusals import Unavailable

Launch = Callable[[], Any]
Clock = Callable[[], float]
BLOCK_SECONDS = 3e-4  # of a processor's time: shorter than a slice of the scheduler
LONG_SECONDS = 1e-3  # of a block that another process is likely to interrupt
ARENA_CACHES = 8.0  # last caches that inputs may fill
ARENA_SHARE = 0.1  # of free memory that they may take


class Device(Protocol):
    """Where kernels run."""

    kind: str  # "cpu" or "cuda"
    name: str
    torch: Any
    place: Any  # torch.device
    cache_bytes: float  # last cache before memory
    memory_bytes: float
    sms: int  # 0 on a processor

    def seconds(self, launches: Sequence[Launch], count: int) -> float:
        """Returns the time that `count` launches take, in turn and back to back."""
        ...

    def synchronize(self) -> None:
        """Waits for everything that was launched."""
        ...

    def replayable(
        self, launches: Sequence[Launch], count: int
    ) -> tuple[Sequence[Launch], int]:
        """Returns launches that stand for several each, and for how many."""
        ...


class Cpu:
    """The processor, timed by the monotonic clock.

    Long blocks of one thread are timed by the thread's own clock: it stands still while another
    process has the core, and goes like any other while not. Reading it takes a microsecond.

    Args:
        threads: How many torch uses; by default what it is set to, but no more than there are
            physical cores, since two threads on one core slow each other down.
    """

    kind = "cpu"
    sms = 0

    def __init__(self, threads: int | None = None) -> None:
        self.torch = torch = import_torch()
        self.place = torch.device("cpu")
        most = min(torch.get_num_threads(), physical_cores())
        self.threads = most if threads is None else threads
        if self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)
        self.clock = time.thread_time if self.threads == 1 else time.perf_counter
        self.name = f"cpu: {processor_name()}, {self.threads} threads"
        self.cache_bytes = cache_bytes()
        self.memory_bytes = float(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        )
        self._arenas: tuple[Arena, Arena] | None = None  # inputs, results
        self._laying_out = False

    @contextmanager
    def laid_out(self) -> Iterator[None]:
        """Takes inputs and results that are made in the block from the device's arenas."""
        if self._arenas is None:
            size = min(ARENA_CACHES * self.cache_bytes, ARENA_SHARE * self.memory_bytes)
            self._arenas = (
                Arena(self.torch, size, random=True),
                Arena(self.torch, 0.5 * size, random=False),
            )
        for arena in self._arenas:
            arena.reset()
        self._laying_out = True
        try:
            yield
        finally:
            self._laying_out = False

    def placed(self, shape: Sequence[int], *, random: bool) -> Any:
        """Returns float32 numbers from an arena, None outside `laid_out` or without room."""
        if not self._laying_out or self._arenas is None:
            return None
        return self._arenas[0 if random else 1].take(*shape)

    def seconds(self, launches: Sequence[Launch], count: int) -> float:
        """Returns the time that `count` launches take, in turn and back to back.

        The median over short blocks times their number: a scheduler that takes the
        processor away for some of them does not count.
        """
        size = len(launches)
        if count < 2 * size:
            turn = [launches[i % size] for i in range(count)]
            return _timed(turn, 1)
        first = _timed(launches, 1)
        turns = max(1, min(count // size, round(BLOCK_SECONDS / max(first, 1e-9))))
        blocks = max(1, round(count / (size * turns)))
        spans = [_timed(launches, turns) for _ in range(blocks)]
        return statistics.median(spans) * count / (size * turns)

    def spans(
        self, launches: Sequence[Launch], seconds: float, lead_seconds: float = 0.0
    ) -> list[float]:
        """Returns the seconds per launch of short blocks that run for about `seconds`.

        Launches run in turn, for `lead_seconds` before they count. A block is a few of them,
        or all of them a few times.
        """
        all_seconds = _led(launches, lead_seconds)
        blocks, turns = _blocks(launches, all_seconds)
        turn = cycle(blocks)
        is_long = all_seconds * turns > LONG_SECONDS * len(blocks)
        clock = self.clock if is_long else time.perf_counter
        end = time.perf_counter() + seconds
        found: list[float] = []
        while not found or time.perf_counter() < end:
            block = next(turn)
            span = _timed(block, turns, clock)
            found.append(span / (turns * len(block)))
        return found

    def synchronize(self) -> None:
        """Returns at once: nothing runs behind the caller."""

    def replayable(
        self, launches: Sequence[Launch], count: int
    ) -> tuple[Sequence[Launch], int]:
        """Returns the launches themselves: a processor has no graphs to replay."""
        return launches, 1


def _led(launches: Sequence[Launch], seconds: float) -> float:
    """Runs launches in turn for `seconds`; returns how long all take once, about."""
    start = time.perf_counter()
    done = 0
    while done == 0 or time.perf_counter() < start + seconds:
        launches[done % len(launches)]()
        done += 1
    return (time.perf_counter() - start) * len(launches) / done


def _blocks(
    launches: Sequence[Launch], span: float
) -> tuple[list[Sequence[Launch]], int]:
    """Returns blocks of about BLOCK_SECONDS and how often each runs its launches.

    `span` is how long all launches take once.
    """
    if span <= BLOCK_SECONDS:
        return [launches], max(1, round(BLOCK_SECONDS / max(span, 1e-9)))
    count = min(len(launches), max(1, round(span / BLOCK_SECONDS)))
    ends = [round(len(launches) * i / count) for i in range(count + 1)]
    return [launches[a:b] for a, b in pairwise(ends)], 1


def _timed(
    launches: Sequence[Launch], turns: int, clock: Clock = time.perf_counter
) -> float:
    start = clock()
    for _ in range(turns):
        for launch in launches:
            launch()
    return clock() - start


class Cuda:
    """An NVIDIA GPU, timed by CUDA events."""

    kind = "cuda"

    def __init__(self, index: int = 0) -> None:
        self.torch = torch = import_torch()
        if not torch.cuda.is_available():
            raise Unavailable(
                "measure: expected a CUDA GPU and a torch built for it, got torch "
                f"{torch.__version__} without; measure the processor with --device cpu."
            )
        if not 0 <= index < torch.cuda.device_count():
            raise Unavailable(
                f"measure: expected one of {torch.cuda.device_count()} visible GPUs, "
                f"got number {index}."
            )
        self.place = torch.device("cuda", index)
        torch.cuda.set_device(self.place)
        properties = torch.cuda.get_device_properties(index)
        self.name = properties.name
        self.uuid = uuid_of(properties)
        self.sms = int(properties.multi_processor_count)
        self.capability = (properties.major, properties.minor)
        self.cache_bytes = float(getattr(properties, "L2_cache_size", 0) or 50e6)
        self.memory_bytes = float(properties.total_memory)
        self.stream: Any = None  # of a part of the SMs; None for the current one

    def seconds(self, launches: Sequence[Launch], count: int) -> float:
        """Returns the time that `count` launches take, in turn and back to back."""
        cuda = self.torch.cuda
        stream = self.stream or cuda.current_stream()
        start = cuda.Event(enable_timing=True)
        end = cuda.Event(enable_timing=True)
        turns, rest = divmod(count, len(launches))
        with cuda.stream(stream):
            start.record(stream)
            for _ in range(turns):
                for launch in launches:
                    launch()
            for launch in launches[:rest]:
                launch()
            end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def synchronize(self) -> None:
        """Waits for everything that was launched here.

        Streams of others are left out: an occupier of SMs runs until it is stopped.
        """
        self.torch.cuda.current_stream().synchronize()
        if self.stream is not None:
            self.stream.synchronize()

    def replayable(
        self, launches: Sequence[Launch], count: int
    ) -> tuple[Sequence[Launch], int]:
        """Returns the replay of a CUDA graph of about `count` launches.

        One replay costs the host about as much as one launch, so launch-bound kernels run
        back to back. Inputs keep their addresses, so new values in them are seen.
        """
        torch = self.torch
        turns = max(1, round(count / len(launches)))
        side = torch.cuda.Stream(self.place)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for launch in launches:
                launch()
        torch.cuda.current_stream().wait_stream(side)
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(turns):
                for launch in launches:
                    launch()
        return (graph.replay,), turns * len(launches)


def open_device(name: str, threads: int | None = None) -> Cpu | Cuda:
    """Returns the device called `cpu`, `cuda` or `cuda:N`; a processor with `threads`."""
    kind, _, number = name.partition(":")
    if name == "cpu":
        keep_freed_memory()
        return Cpu(threads)
    if kind == "cuda" and (not number or number.isdecimal()):
        return Cuda(int(number or os.environ.get("LOCAL_RANK", 0)))
    raise ValueError(f"--device: expected cpu, cuda or cuda:N, got {name!r}.")


def import_torch() -> Any:
    """Returns the module torch."""
    try:
        return importlib.import_module("torch")  # an extra; slow to import
    except ImportError as error:
        raise Unavailable(
            "measure: expected torch, got none; pip install 'jaxlens[measure]'."
        ) from error


def uuid_of(properties: Any) -> str | None:
    """Returns the UUID of a GPU as NVML spells it, None where torch does not tell."""
    uuid = getattr(properties, "uuid", None)
    if uuid is None:
        return None
    text = str(uuid)
    return text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns what the processor calls itself."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> float:
    """Returns the size of the processor's last cache; 32 MiB where it is not shown."""
    sizes = []
    for size in root.glob("index*/size"):
        text = size.read_text().strip()
        unit = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
        sizes.append(float(text.rstrip("KM")) * unit)
    return max(sizes, default=32.0 * 2**20)


def physical_cores(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Returns the cores that this process may use; threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    cores = set()
    for number in os.sched_getaffinity(0):
        siblings = root / f"cpu{number}" / "topology" / "thread_siblings_list"
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(number))
    return max(1, len(cores))


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether `error` says that the device's memory is full."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
