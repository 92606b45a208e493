"""Whether anything else ran on the processor during a window, as Linux counts it.

Three counters, each where the system has it: time that the hypervisor gave to other virtual
machines (steal in /proc/stat), time in which any process waited for a processor (pressure),
and time in which threads of this process were ready but did not run (schedstat).

Source: Linux kernel documentation, "The /proc Filesystem" and "PSI - Pressure Stall
Information", 2024, https://docs.kernel.org.
"""

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
STEAL = 8  # position in a line of /proc/stat, after its name
WAITING_SHARE = 0.1  # of a window in which some process waits: others are about
DELAYED_SHARE = 0.01  # of a window that this process itself was held up


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Counters since the start of the system or process; None where there is none."""

    stolen_seconds: float | None = None
    waiting_seconds: float | None = None
    delayed_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What happened beside a window of `span_seconds`."""

    span_seconds: float = 0.0
    stolen_seconds: float = 0.0
    waiting_seconds: float = 0.0
    delayed_seconds: float = 0.0

    @property
    def found(self) -> bool:
        """Whether the window is better left out."""
        return (
            self.stolen_seconds > 0.0
            or self.waiting_seconds > WAITING_SHARE * self.span_seconds
            or self.delayed_seconds > DELAYED_SHARE * self.span_seconds
        )


def counters(proc: Path = PROC) -> Counters:
    """Returns the counters now."""
    return Counters(
        stolen_seconds=_stolen(proc / "stat"),
        waiting_seconds=_waiting(proc / "pressure" / "cpu"),
        delayed_seconds=_delayed(proc / "self" / "task"),
    )


def between(before: Counters, after: Counters, span_seconds: float) -> Disturbance:
    """Returns what happened from `before` to `after`; counters that lack count nothing.

    >>> start = Counters(stolen_seconds=1.0)
    >>> between(start, Counters(stolen_seconds=1.5), 2.0).stolen_seconds
    0.5
    """

    def grown(first: float | None, last: float | None) -> float:
        return 0.0 if first is None or last is None else max(0.0, last - first)

    return Disturbance(
        span_seconds=span_seconds,
        stolen_seconds=grown(before.stolen_seconds, after.stolen_seconds),
        waiting_seconds=grown(before.waiting_seconds, after.waiting_seconds),
        delayed_seconds=grown(before.delayed_seconds, after.delayed_seconds),
    )


def _stolen(path: Path) -> float | None:
    """Returns seconds of all processors together: `cpu user nice ... steal ...`."""
    words = _words(path)
    if len(words) <= STEAL or words[0] != "cpu":
        return None
    return int(words[STEAL]) / os.sysconf("SC_CLK_TCK")


def _waiting(path: Path) -> float | None:
    """Returns the total of `some avg10=... total=MICROSECONDS`."""
    totals = [word for word in _words(path) if word.startswith("total=")]
    return int(totals[0].removeprefix("total=")) / 1e6 if totals else None


def _delayed(folder: Path) -> float | None:
    """Returns the wait for a processor, summed over threads (nanoseconds in schedstat)."""
    try:
        threads = [_words(thread / "schedstat") for thread in folder.iterdir()]
    except OSError:
        return None
    known = [int(words[1]) for words in threads if len(words) > 1]
    return sum(known) / 1e9 if known else None


def _words(path: Path) -> list[str]:
    """Returns the words of the first line; none where the file is not readable."""
    try:
        with path.open() as lines:
            return lines.readline().split()
    except OSError:
        return []
