"""Cases of a processor measured in rounds: each is visited for a moment, then the next.

Disturbances last seconds to minutes. Rounds spread the windows of every case over the whole
run, so that each sees the machine at rest at some time, and all see the same machine. A case
that has its fewest windows is kept at once, and kept again when it needs no more.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxlens.measure.benches import (
    Bench,
    Columns,
    kernel_columns,
    measurement_columns,
)
from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Cpu
from jaxlens.measure.kernels import Kernel, Prepared, prepare
from jaxlens.measure.operations import kernel as kernel_of
from jaxlens.measure.records import GOOD, Row
from jaxlens.measure.statuses import status_of
from jaxlens.measure.visits import is_complete, summed_up, visit
from jaxlens.measure.windows import Rules, Window

CHECK_EVERY = 4  # rounds between looks at whether a case needs more
VISIT_SECONDS = 0.01  # beside the window: the wait for a first launch, and bookkeeping
FIRST_RESULTS_SECONDS = 120.0  # after which the first cases should be on disk


@dataclass
class Visited:
    """A case with its windows so far."""

    case: Case
    row: Row
    windows: list[Window] = field(default_factory=list)
    done: bool = False
    kernel: Kernel | None = None
    prepared: Prepared | None = None

    def visit(self, bench: Bench) -> None:
        """Adds one window."""
        device = bench.device
        assert isinstance(device, Cpu)
        with device.torch.inference_mode():
            if self.kernel is None or self.prepared is None:
                self.kernel = kernel_of(self.case, device)
                self.prepared = prepare(self.kernel, device, shared=True)
            loop = self.prepared.loop
            self.windows.append(visit(device, bench.gauge, loop, bench.rules))

    def columns(self, bench: Bench) -> Columns:
        """Returns what the windows say so far."""
        assert self.kernel is not None and self.prepared is not None
        result = summed_up(self.windows, bench.rules)
        return {
            **measurement_columns(result, bench.idle_watts),
            **kernel_columns(self.kernel, self.prepared),
            "threads": bench.device.torch.get_num_threads(),
            "status": GOOD,
        }


@dataclass(frozen=True)
class Keeper:
    """Where rows go."""

    interim: Callable[[Row], None]  # a case with its fewest windows
    final: Callable[[Row], None]  # a case that is done, or failed


def run_rounds(
    rows: Sequence[tuple[Case, Row]],
    bench: Bench,
    keeper: Keeper,
    *,
    deadline: float | None = None,
    report: Callable[[str], None] = print,
) -> int:
    """Measures cases in rounds; returns how many were left when the time was over.

    Args:
        rows: Cases with the columns that their rows have anyway.
        bench: With what; its device is a processor.
        keeper: Takes rows as they come.
        deadline: `time.monotonic` after which nothing more is begun.
        report: Takes a line about how far it is.
    """
    waiting = [Visited(case, row) for case, row in rows]
    while waiting and not _late(deadline):
        size = group_size(len(waiting), bench, deadline)
        group, waiting = waiting[:size], waiting[size:]
        waiting = _run_group(group, bench, keeper, deadline, report) + waiting
        if _late(deadline):
            break
    return len(waiting)


def visit_seconds(rules: Rules) -> float:
    """Returns how long one visit of one case takes, about."""
    return VISIT_SECONDS + rules.warmup_seconds + rules.window_seconds


def group_size(cases: int, bench: Bench, deadline: float | None) -> int:
    """Returns how many cases to go round, so that all get their fewest windows in time."""
    rules = bench.rules
    left = FIRST_RESULTS_SECONDS
    if deadline is not None:
        left = min(left, 0.8 * (deadline - time.monotonic()))
    fitting = int(left / (rules.fewest_windows * visit_seconds(rules)))
    return max(1, min(cases, fitting))


def _run_group(
    group: list[Visited],
    bench: Bench,
    keeper: Keeper,
    deadline: float | None,
    report: Callable[[str], None],
) -> list[Visited]:
    """Measures one group; returns the cases that did not get their fewest windows."""
    fewest, most = bench.rules.fewest_windows, bench.rules.most_windows
    going, begin, number = list(group), time.monotonic(), 0
    try:
        while going and not _late(deadline):
            number += 1
            if number % CHECK_EVERY == 1:
                report(f"round {number} of at most {most}: {len(going)} cases")
            going = [one for one in going if _goes_on(one, bench, keeper)]
            if deadline is not None and number < fewest:
                round_seconds = (time.monotonic() - begin) / number
                rounds = (deadline - time.monotonic()) / max(round_seconds, 1e-9)
                going = going[: max(1, int(len(going) * rounds / (fewest - number)))]
    finally:  # also when interrupted: later windows of what is on disk count too
        for one in group:
            if not one.done and len(one.windows) >= fewest:
                _finish(one, bench, keeper)
    return [one for one in group if not one.done]


def _goes_on(one: Visited, bench: Bench, keeper: Keeper) -> bool:
    """Visits a case; returns whether it needs another round."""
    try:
        one.visit(bench)
    except Exception as error:
        one.done = True
        keeper.final(one.row | {"status": status_of(error)})
        return False
    count, fewest = len(one.windows), bench.rules.fewest_windows
    if count >= bench.rules.most_windows:
        _finish(one, bench, keeper)
    elif count >= fewest and (count - fewest) % CHECK_EVERY == 0:
        if is_complete(one.windows, bench.rules):
            _finish(one, bench, keeper)
        elif count == fewest:
            keeper.interim(one.row | one.columns(bench))
    return not one.done


def _finish(one: Visited, bench: Bench, keeper: Keeper) -> None:
    """Keeps a case for good and frees its inputs."""
    keeper.final(one.row | one.columns(bench))
    one.done, one.prepared = True, None


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline
