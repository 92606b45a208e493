"""Streams over several processes: each takes its part of the indices, all get the survey.

Processes find each other through JAX: by themselves under Slurm, Open MPI and Kubernetes,
with mpi4py under any MPI, else by an address, a number of processes and a rank. Each works
on the devices of its own; they talk once, at the end.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxlens.streams import Function, Keep, Progress, Space, Survey, merge
from jaxlens.streams import stream as stream_here
from jaxlens.surveys import from_bytes, to_bytes

FOUND, FAILED, IDLE = b"s", b"e", b"i"  # how a message begins
DETECTIONS = ("slurm", "ompi", "mpi4py", "k8s")


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    detection: str | None = None,
    timeout_seconds: int = 300,
) -> None:
    """Makes this process one of several. Call it before anything else uses JAX.

    Args:
        coordinator: Address and port of process 0, such as "10.0.0.1:4321". By default
            what Slurm, Open MPI or Kubernetes say.
        processes: How many processes there are; by default likewise.
        process: Which of them this one is, from 0 on; by default likewise.
        detection: Whom to ask, one of `DETECTIONS`; by default whoever is there.
        timeout_seconds: How long to wait for the others.

    Raises:
        ValueError: arguments contradict each other, or the others do not come.
    """
    _check(coordinator, processes, process, detection)
    if coordinator is not None:
        detection = "deactivate"
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process,
            cluster_detection_method=detection,
            initialization_timeout=timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"cluster: could not join the other processes: {error}; give coordinator, "
            f"number of processes and rank, and see that its port can be reached."
        ) from error


def leads() -> bool:
    """Returns whether this process speaks for all: the first, or the only one."""
    return jax.process_index() == 0


def own_part(first: int, count: int, process: int, processes: int) -> tuple[int, int]:
    """Returns first index and number of the points of one process.

    >>> [own_part(10, 8, process, 3) for process in range(3)]
    [(10, 2), (12, 3), (15, 3)]
    """
    begin = count * process // processes
    return first + begin, count * (process + 1) // processes - begin


def stream(
    function: Function,
    shared: Any,
    space: Space,
    keep: Keep,
    *,
    first: int = 0,
    count: int | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Survey:
    """Returns the survey of all processes, in each of them: `streams.stream`, in parts.

    Args:
        function: As there, and all else likewise.
        shared: What all configurations have in common.
        space: The configurations.
        keep: What to keep of them.
        first: Index of the first configuration.
        count: How many; by default all that follow.
        progress: Called with the points of this process.
        checkpoint: Folder of one file for each process. If processes die, the same number
            of them goes on where they ended.
        options: Further arguments of `streams.stream`.

    Raises:
        ValueError: what any of the processes raised.
    """
    count = space.size - first if count is None else count
    process, processes = jax.process_index(), jax.process_count()
    begin, length = own_part(first, count, process, processes)
    path = None
    if checkpoint is not None:
        Path(checkpoint).mkdir(parents=True, exist_ok=True)
        path = Path(checkpoint) / f"{process}-of-{processes}.survey"

    def own() -> Survey:
        return stream_here(
            function,
            shared,
            space,
            keep,
            first=begin,
            count=length,
            progress=progress,
            checkpoint=path,
            **options,
        )

    if processes == 1:
        return own()
    surveys = _survey_of_each(own if length > 0 else None)
    return merge(surveys)


def _survey_of_each(own: Callable[[], Survey] | None) -> list[Survey]:
    """What each process found. A failure of one is told to all, so that none waits."""
    failure: Exception | None = None
    message = IDLE
    if own is not None:
        try:
            message = FOUND + to_bytes(own())
        except Exception as error:
            failure = error
            message = FAILED + f"{type(error).__name__}: {error}".encode()
    messages = _gathered(message)
    if failure is not None:
        raise failure
    for process, one in enumerate(messages):
        if one[:1] == FAILED:
            raise ValueError(f"process {process}: {one[1:].decode()}")
    return [
        from_bytes(one[1:], where=f"process {process}")
        for process, one in enumerate(messages)
        if one[:1] == FOUND
    ]


def _gathered(message: bytes) -> list[bytes]:
    """The message of each process, in all of them."""
    length = np.array(len(message), np.int32)
    lengths = np.asarray(multihost_utils.process_allgather(length)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    every = np.asarray(multihost_utils.process_allgather(padded))
    pairs = zip(every, lengths, strict=True)
    return [row[:length].tobytes() for row, length in pairs]


def _check(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    detection: str | None,
) -> None:
    given: Sequence[object] = (coordinator, processes, process)
    if any(one is not None for one in given) and None in given:
        raise ValueError(
            "cluster: expected coordinator, number of processes and rank together, got "
            f"{coordinator}, {processes} and {process}; give none to ask the scheduler."
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(
            f"cluster: expected a rank from 0 to {processes - 1}, got {process}."
        )
    if coordinator is not None and ":" not in coordinator:
        raise ValueError(
            f"cluster: expected an address with its port such as 10.0.0.1:4321, "
            f"got {coordinator}."
        )
    if detection is not None and detection not in DETECTIONS:
        raise ValueError(
            f"cluster: expected detection by one of {', '.join(DETECTIONS)}, "
            f"got {detection!r}."
        )
