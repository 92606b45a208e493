"""One command on several machines: each takes its part, the first one answers."""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BY_HAND = re.compile(r"(?P<rank>\d+)/(?P<count>\d+)@(?P<address>[^@\s]+:\d+)")


@contextmanager
def joined(hosts: str | None) -> Iterator[bool]:
    """Joins the processes that `hosts` stands for; yields whether this one answers.

    Args:
        hosts: None for this process alone, "auto" to ask Slurm, Open MPI or Kubernetes, or
            RANK/COUNT@ADDRESS:PORT with the address of rank 0.

    Raises:
        ValueError: it is neither, or the other processes do not come.
    """
    if hosts is None:
        yield True
        return
    by_hand = BY_HAND.fullmatch(hosts)
    if hosts != "auto" and by_hand is None:
        raise ValueError(
            "hosts: expected auto, or RANK/COUNT@ADDRESS:PORT such as "
            f"0/2@10.0.0.1:4321, got {hosts!r}."
        )
    from jaxlens import clusters  # JAX takes a while to import; not needed for help

    with _talk_to_stderr():
        if by_hand is None:
            clusters.connect()
        else:
            rank, count = int(by_hand["rank"]), int(by_hand["count"])
            clusters.connect(by_hand["address"], count, rank)
        yield clusters.leads()


@contextmanager
def _talk_to_stderr() -> Iterator[None]:
    """Has C libraries, which tell how they connect, write beside the answer, not in it.

    Python's own output still goes where it did.
    """
    sys.stdout.flush()
    shown = sys.stdout
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(os.dup(kept), "w", encoding="utf-8")
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = shown
        ctypes.CDLL(None).fflush(None)  # what they still hold back
        os.dup2(kept, 1)
        os.close(kept)
