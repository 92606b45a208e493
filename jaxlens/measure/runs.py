"""One run over the cases of a suite: every result on disk at once, no case ends the run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlens.measure.benches import Bench, Columns, measure_kernel
from jaxlens.measure.cases import Case
from jaxlens.measure.collectives import measure_collective
from jaxlens.measure.devices import Cpu
from jaxlens.measure.overlap_pairs import measure_overlap
from jaxlens.measure.records import GOOD, Records, Row
from jaxlens.measure.refusals import Disturbed
from jaxlens.measure.rounds import Keeper, run_rounds
from jaxlens.measure.sm_limits import measure_share
from jaxlens.measure.statuses import status_of
from jaxlens.measure.steps import measure_step

SPECIAL: Mapping[str, Callable[[Case, Bench], Columns]] = {
    "overlap": measure_overlap,
    "sm_share": measure_share,
    "forward": measure_step,
    "collectives": measure_collective,
}
# Kernels that had less than the whole GPU: their time has a name of its own, so that nobody
# takes it for that of the kernel alone. So does that of kernels at a locked clock.
APART = frozenset({"overlap", "sm_share"})
ATTEMPTS = 3  # at a case that something else disturbs
PAUSE_SECONDS = 10.0  # between them


@dataclass
class Tally:
    """What became of the cases."""

    measured: int = 0
    kept: int = 0  # measured by an earlier run already
    loose: int = 0  # measured, but the interval is wider than asked for
    left: int = 0  # not begun when the time was over
    windows: int = 0  # on a processor
    disturbed_windows: int = 0  # beside which something else ran
    discarded_windows: int = 0  # of those, left out
    problems: list[str] = field(default_factory=list)

    def count(self, row: Mapping[str, Any]) -> None:
        """Adds what became of one case."""
        if row["status"] != GOOD:
            self.problems.append(f"{row['case']}: {row['status']}")
            return
        self.measured += 1
        self.loose += row.get("tight") is False
        discarded = row.get("discarded_windows")
        if discarded is not None:
            self.windows += row["windows"] + discarded
            self.disturbed_windows += row["disturbed_windows"]
            self.discarded_windows += discarded


@dataclass(frozen=True, kw_only=True)
class Book:
    """Where the rows of a run go."""

    records: Records | None  # None on ranks that do not write
    tally: Tally
    report: Callable[[str], None]

    def keep(self, row: Row) -> None:
        """Puts a row on disk."""
        if self.records is not None:
            self.records.add(row)

    def finish(self, row: Row) -> None:
        """Puts a row on disk, counts it and tells of it."""
        self.keep(row)
        self.tally.count(row)
        if self.records is not None:
            self.report(line(row))


def run_cases(
    cases: Sequence[Case],
    bench: Bench,
    records: Records | None,
    shared: Mapping[str, Any],
    *,
    runs: int = 1,
    deadline: float | None = None,
    prefix: str = "",
    report: Callable[[str], None] = print,
) -> Tally:
    """Measures `cases` `runs` times and keeps a row for each; returns a tally.

    On a GPU one case after the other, each at a stretch: it has to be warm. On a processor
    kernels in rounds, since what disturbs them comes and goes.

    Args:
        cases: What to measure, most telling first.
        bench: With what.
        records: Where rows go; None on ranks that do not write.
        shared: Columns of every row.
        runs: How often, for their repeatability.
        deadline: `time.monotonic` after which no case is begun.
        prefix: Of the kind under which rows are kept.
        report: Takes one line per case.
    """
    book = Book(records=records, tally=Tally(), report=report)
    for run in range(1, runs + 1):
        asked: list[tuple[Case, Row]] = []
        for one in cases:
            identity = {"case": one.name, "kind": prefix + one.kind, "run": run}
            row: Row = {**shared, **identity, "weight": one.weight, **dict(one.sizes)}
            if bench.agree(float(records is not None and records.has(row))):
                book.tally.kept += 1
            else:
                asked.append((one, row))
        in_turn = []
        if isinstance(bench.device, Cpu):
            in_turn = [(one, row) for one, row in asked if one.kind not in SPECIAL]
            asked = [(one, row) for one, row in asked if one.kind in SPECIAL]
        keeper = Keeper(interim=book.keep, final=book.finish)
        book.tally.left += run_rounds(
            in_turn, bench, keeper, deadline=_part(deadline, runs - run), report=report
        )
        _one_by_one(asked, bench, book, deadline, prefix)
    return book.tally


def _one_by_one(
    asked: Sequence[tuple[Case, Row]],
    bench: Bench,
    book: Book,
    deadline: float | None,
    prefix: str,
) -> None:
    for one, row in asked:
        if bench.agree(float(_late(deadline))):
            book.tally.left += 1
            continue
        found = row | attempted(one, bench, deadline)
        if prefix or one.kind in APART:
            found["limited_seconds"] = found.pop("seconds", None)
        book.finish(found)


def attempted(one: Case, bench: Bench, deadline: float | None = None) -> Columns:
    """Returns the columns of a case, or a `status` that says why there are none.

    A disturbed case is tried again after a pause, unless that would be after the deadline.
    """
    status = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            late = _late(deadline, PAUSE_SECONDS)
            if bench.agree(float(late)):
                break
            time.sleep(PAUSE_SECONDS)
        try:
            with bench.device.torch.inference_mode():
                found = SPECIAL.get(one.kind, measure_kernel)(one, bench)
            _refuse_intruders(bench)
            return {**found, "status": GOOD}
        except Exception as error:
            status = status_of(error)
            if not isinstance(error, Disturbed):
                break
        finally:
            _free(bench)
    return {"status": status}


def _part(deadline: float | None, runs_after: int) -> float | None:
    """Returns when a run should end that leaves as much time to each of those after it."""
    if deadline is None:
        return None
    now = time.monotonic()
    return now + (deadline - now) / (1 + runs_after)


def _late(deadline: float | None, ahead_seconds: float = 0.0) -> bool:
    return deadline is not None and time.monotonic() + ahead_seconds > deadline


def line(row: Mapping[str, Any]) -> str:
    """Returns what a user sees of a row."""
    if row["status"] != GOOD:
        return f"{row['case']}: {row['status']}"
    seconds = row.get("seconds", row.get("limited_seconds"))
    parts = [f"{seconds * 1e6:.4g} µs ± {row['seconds_spread']:.1%}"]
    if row.get("watts") is not None:
        parts.append(f"{row['watts']:.4g} W")
    if row.get("joules") is not None:
        parts.append(f"{row['joules'] * 1e3:.4g} mJ")
    if row.get("kernels_ratio") is not None:
        ratio, wide = row["kernels_ratio"], row["kernels_ratio_spread"]
        parts.append(f"kernels alone {ratio:.3f} ± {wide:.3f} of it")
    if row.get("tight") is False:
        parts.append("interval wider than asked for")
    if row.get("steady") is False:
        parts.append("not steady after warm-up")
    return f"{row['case']}: {', '.join(parts)}"


def _refuse_intruders(bench: Bench) -> None:
    came = bench.intruders()
    if bench.agree(float(len(came))) and not bench.rules.allow_disturbed:
        shown = ", ".join(map(str, sorted(came))) or "on another rank"
        raise Disturbed(f"another process came to the GPU: pid {shown}")


def _free(bench: Bench) -> None:
    if bench.device.kind == "cuda":
        bench.device.torch.cuda.empty_cache()
