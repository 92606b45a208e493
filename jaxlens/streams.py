"""Streams of configurations: what is best in a space that is too large to hold.

    keep = Keep(
        objectives=(Objective("joules_per_output_token"),),
        front=(Objective("joules_per_output_token"), Objective("seconds_per_output_token")),
    )
    survey = stream(outcome, question, space, keep)
    survey.top["joules_per_output_token"].index, survey.front.columns, survey.quantiles(...)

The function that is swept is scalar in, scalars out by name; columns `slack_<reason>` are
negative where a limit is missed, and a point is feasible if none is. Only the columns that
a `Keep` names are computed; all of them are for the points that are kept, in float64.

A range of indices goes in chunks through one compiled program, on every core or device. A
chunk is a number of blocks of fixed size, and that number is traced: it grows until calls
cost nothing beside their work, without compiling again. What is found depends neither on
chunks nor on threads, devices or hosts; only how coarse a front becomes that outgrows its
capacity does.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from threading import Lock
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxlens import findings, reductions
from jaxlens.batch import QUICK_SIZE, Function
from jaxlens.chunks import cast, chunk_program, column_names, exact, part
from jaxlens.chunks import compilations as compilations
from jaxlens.fingerprints import fingerprint
from jaxlens.keeps import Groups as Groups
from jaxlens.keeps import Histogram as Histogram
from jaxlens.keeps import Keep as Keep
from jaxlens.keeps import Objective as Objective
from jaxlens.keeps import Plan, as_mapping, numbers, plan
from jaxlens.spaces import Space, digits, point
from jaxlens.surveys import Chosen, Survey, load, save, select
from jaxlens.surveys import merge as merge

CPU_BLOCK = (
    8192  # points that are evaluated at once: temporaries stay in a core's cache
)
DEVICE_BLOCK = 2**18
LARGEST_CALL = 2**29  # points
CALL_SECONDS = 0.25  # of a chunk: its overhead is below 1 %, and an interrupt is swift
POLL_SECONDS = 0.1

Progress = Callable[[int, int], None]


def stream(
    function: Function,
    shared: Any,
    space: Space,
    keep: Keep,
    *,
    first: int = 0,
    count: int | None = None,
    progress: Progress | None = None,
    devices: Sequence[Any] | None = None,
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    block: int | None = None,
) -> Survey:
    """Returns what `keep` asks for of `count` configurations from index `first` on.

    An interrupt (Ctrl-C) ends it early with what is known so far, `interrupted` set.

    Args:
        function: `function(shared, values)`, of a module: compiled once per structure of
            its arguments and of `keep`, whatever their numbers.
        shared: What all configurations have in common, a pytree of floats.
        space: The configurations.
        keep: What to keep of them.
        first: Index of the first configuration.
        count: How many; by default all that follow.
        progress: Called now and then with how many are done, and of how many.
        devices: Devices to share the work; by default all of this process.
        threads: Threads on one CPU device; by default one a core.
        checkpoint: File that holds what is known, written now and then and at the end. If
            it is there already, the stream goes on where it ended.
        checkpoint_seconds: Time between writes.
        block: Points that a device evaluates at once; a power of two.

    Raises:
        ValueError: the range leaves the space, a column is unknown, a result is NaN (the
            message names the configuration) or a checkpoint is of another question.
    """
    count = space.size - first if count is None else count
    if not (first >= 0 and count > 0 and first + count <= space.size):
        raise ValueError(
            f"stream: expected a range within the {space.size} configurations of the "
            f"space, got {count} from index {first} on."
        )
    names = column_names(function, shared, space)
    asked = _Asked(function, shared, space, keep, names, first, count)
    before = _resumed(asked, checkpoint)
    work = _Work(asked, before)
    if work.left:
        lanes = _lanes(asked, devices, threads, block)
        _run(work, lanes, progress, checkpoint, checkpoint_seconds)
    survey = work.survey()
    if checkpoint is not None:
        save(survey, checkpoint)
    return survey


@dataclass(frozen=True, eq=False)
class _Asked:
    function: Function
    shared: Any
    space: Space
    keep: Keep
    names: tuple[str, ...]
    first: int
    count: int
    plan: Plan = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        name = f"{self.function.__module__}.{self.function.__qualname__}"
        parts = [name, self.shared, self.space, as_mapping(self.keep)]
        object.__setattr__(self, "plan", plan(self.keep, self.names))
        object.__setattr__(self, "fingerprint", fingerprint(parts))


class _Work:
    """Ranges to do, and what was found in those that are done. Shared by threads."""

    def __init__(self, asked: _Asked, before: Survey | None) -> None:
        self.asked, self.stopped = asked, False
        none = findings.no_finds(asked.plan), findings.no_counts(asked.plan)
        self._base, self._counts = (before.finds, before.counts) if before else none
        self._points = before.points if before else _no_points(asked.names)
        self._finds: dict[int, tuple[findings.Finds, ...]] = {}
        self._lock = Lock()
        covered = self._counts.covered
        self.left = list(findings.gaps(covered, asked.first, asked.count))
        self.seconds, self.timed = 0.0, 0
        if before is not None and not self.left:
            self.seconds, self.timed = before.seconds, before.timed

    @property
    def done(self) -> int:
        """How many points have been evaluated."""
        return self._counts.evaluated

    def take(self, pieces: int, most: int) -> list[tuple[int, int]]:
        """Returns the next ranges, rising; none if there are none or work is stopped."""
        taken: list[tuple[int, int]] = []
        with self._lock:
            while self.left and len(taken) < pieces and not self.stopped:
                begin, length = self.left.pop(0)
                taken.append((begin, min(length, most)))
                if length > most:
                    self.left.insert(0, (begin + most, length - most))
        return taken

    def publish(
        self, lane: int, finds: tuple[findings.Finds, ...], counts: findings.Counts
    ) -> None:
        """Notes all that a lane has found so far, and the counts of its last ranges."""
        with self._lock:
            self._finds[lane] = finds
            self._counts = findings.add(self._counts, counts)

    def survey(self) -> Survey:
        """Returns all that is known."""
        asked = self.asked
        with self._lock:
            every = [
                self._base,
                *(one for some in self._finds.values() for one in some),
            ]
            counts, seconds, timed = self._counts, self.seconds, self.timed
        shift = int(numbers(asked.keep).epsilon_shift)
        finds = reduce(lambda a, b: findings.join(a, b, asked.plan, shift), every)
        refine = _Refine(asked)
        self._points = select(self._points, findings.indices(finds), refine)
        return Survey(
            keep=asked.keep,
            names=asked.names,
            first=asked.first,
            count=asked.count,
            fingerprint=asked.fingerprint,
            finds=finds,
            counts=counts,
            points=self._points,
            seconds=seconds,
            timed=timed,
            interrupted=counts.evaluated < asked.count,
        )


@dataclass(frozen=True, eq=False)
class _Refine:
    asked: _Asked

    def __call__(self, index: Int[np.ndarray, " point"]) -> dict[str, np.ndarray]:
        asked = self.asked
        return exact(asked.function, asked.shared, asked.space, index)


@dataclass(eq=False)
class _Lane:
    """One thread's program and what its devices keep."""

    number: int
    asked: _Asked
    program: Any
    devices: int
    block: int
    given: tuple[Any, ...]
    kept: Any
    blocks: int = 1  # of a chunk

    def step(self, work: _Work) -> bool:
        """Evaluates the next chunk of each device; returns whether there was one."""
        asked = self.asked
        ranges = work.take(self.devices, self.blocks * self.block)
        if not ranges:
            return False
        began = time.perf_counter()
        idle = [(asked.first, 0)] * (self.devices - len(ranges))
        starts = [digits(asked.space, begin) for begin, _ in (*ranges, *idle)]
        offsets = [begin - asked.first for begin, _ in (*ranges, *idle)]
        places = [divmod(offset, reductions.LOW_RANGE) for offset in offsets]
        lengths = [length for _, length in (*ranges, *idle)]
        self.kept, tallies = self.program(
            *self.given,
            np.array(starts, np.float32),
            np.array(places, np.int32),
            np.array(lengths, np.int32),
            self.kept,
        )
        kept, tallies = jax.device_get((self.kept, tallies))
        counts = findings.no_counts(asked.plan)
        for position, covered in enumerate(ranges):
            tally = part(tallies, position)
            _reject_nan(asked, tally, covered)
            counts = findings.add(counts, findings.counted(tally, (covered,)))
        every = (part(kept, position) for position in range(self.devices))
        finds = tuple(findings.found(one, asked.first) for one in every)
        work.publish(self.number, finds, counts)
        largest = LARGEST_CALL // self.block
        if time.perf_counter() - began < CALL_SECONDS and self.blocks < largest:
            self.blocks *= 2
        return True


def _lanes(
    asked: _Asked,
    devices: Sequence[Any] | None,
    threads: int | None,
    block: int | None,
) -> list[_Lane]:
    used = tuple(jax.local_devices() if devices is None else devices)
    cpu = used[0].platform == "cpu"
    block = block or (CPU_BLOCK if cpu else DEVICE_BLOCK)
    if block & (block - 1) or not 1 <= block <= 2**22:
        raise ValueError(f"block: expected a power of two up to 2^22, got {block}.")
    quick = asked.count <= QUICK_SIZE
    program = chunk_program(asked.function, asked.plan, block, quick and cpu, used)
    given = (
        cast(asked.shared, np.float32),
        cast(asked.space, np.float32),
        numbers(asked.keep),
        np.array(asked.space.counts, np.float32),
    )
    several = (threads or _cores()) if cpu and len(used) == 1 else 1
    nothing = jax.device_get(reductions.nothing(asked.plan))
    nothing = jax.tree.map(lambda leaf: np.stack([leaf] * len(used)), nothing)
    if len(used) == 1:
        nothing = jax.device_put(nothing, used[0])
    return [
        _Lane(number, asked, program, len(used), block, given, nothing)
        for number in range(several)
    ]


def _run(
    work: _Work,
    lanes: list[_Lane],
    progress: Progress | None,
    checkpoint: str | os.PathLike[str] | None,
    checkpoint_seconds: float,
) -> None:
    def report() -> None:
        if progress is not None:
            progress(work.done, work.asked.count)

    def steps(lane: _Lane) -> None:
        while lane.step(work):
            pass

    try:
        start, before = time.perf_counter(), work.done
        lanes[0].step(work)  # alone: it compiles
        report()
        if work.left:
            start, before = time.perf_counter(), work.done
        with ThreadPoolExecutor(len(lanes)) as pool:
            try:
                futures = [pool.submit(steps, lane) for lane in lanes]
                written = time.perf_counter()
                for _ in _until_done(futures):
                    report()
                    work.seconds = time.perf_counter() - start
                    work.timed = work.done - before
                    due = time.perf_counter() - written > checkpoint_seconds
                    if checkpoint is not None and due:
                        save(work.survey(), checkpoint)
                        written = time.perf_counter()
            finally:
                work.stopped = True
    except KeyboardInterrupt:
        work.stopped = True


def _until_done(futures: list[Future[None]]) -> Iterator[None]:
    """Waits for all, in turns of `POLL_SECONDS`; raises what one of them raised."""
    left = set(futures)
    while left:
        done, left = wait(left, POLL_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        yield


def _resumed(asked: _Asked, checkpoint: str | os.PathLike[str] | None) -> Survey | None:
    if checkpoint is None or not Path(checkpoint).exists():
        return None
    before = load(checkpoint)
    same = (before.fingerprint, before.first, before.count) == (
        asked.fingerprint,
        asked.first,
        asked.count,
    )
    if not same or before.names != asked.names:
        raise ValueError(
            f"{checkpoint}: expected the checkpoint of this stream, got one of another "
            f"function, space, range, `Keep` or of other numbers; remove it or name "
            f"another file."
        )
    return before


def _no_points(names: Sequence[str]) -> Chosen:
    return Chosen(np.zeros(0, np.int64), {name: np.zeros(0) for name in names})


def _reject_nan(asked: _Asked, tally: Any, covered: tuple[int, int]) -> None:
    if int(tally.first_nan) == reductions.FAR:
        return
    index = covered[0] + int(tally.first_nan)
    names = np.array(reductions.read(asked.plan))[tally.nan > 0].tolist()
    raise ValueError(
        f"stream: expected numbers, got NaN for {', '.join(names)} in "
        f"{int(tally.nan.max())} of {covered[1]} configurations, first at index {index}, "
        f"{point(asked.space, index)}; check the coefficients of chip and stack."
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
