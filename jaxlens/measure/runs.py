"""One run over the cases of a suite: every result on disk at once, no case ends the run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlens.measure.benches import Bench, Columns, measure_kernel
from jaxlens.measure.cases import Case
from jaxlens.measure.collectives import measure_collective
from jaxlens.measure.devices import is_out_of_memory
from jaxlens.measure.overlap_pairs import measure_overlap
from jaxlens.measure.records import GOOD, Records, Row
from jaxlens.measure.refusals import Disturbed
from jaxlens.measure.sm_limits import measure_share
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
    problems: list[str] = field(default_factory=list)


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
    """Measures `cases` in `runs` rounds and keeps a row for each; returns a tally.

    Args:
        cases: What to measure, most telling first.
        bench: With what.
        records: Where rows go; None on ranks that do not write.
        shared: Columns of every row.
        runs: Rounds over all cases, for their repeatability.
        deadline: `time.monotonic` after which no case is begun.
        prefix: Of the kind under which rows are kept.
        report: Takes one line per case.
    """
    tally = Tally()
    for run in range(1, runs + 1):
        for one in cases:
            identity = {"case": one.name, "kind": prefix + one.kind, "run": run}
            row: Row = {**shared, **identity, "weight": one.weight, **dict(one.sizes)}
            late = deadline is not None and time.monotonic() > deadline
            if bench.agree(float(records is not None and records.has(row))):
                tally.kept += 1
            elif bench.agree(float(late)):
                tally.left += 1
            else:
                row |= attempted(one, bench)
                if prefix or one.kind in APART:
                    row["limited_seconds"] = row.pop("seconds", None)
                _count(row, tally)
                if records is not None:
                    records.add(row)
                    report(line(row))
    return tally


def attempted(one: Case, bench: Bench) -> Columns:
    """Returns the columns of a case, or a `status` that says why there are none.

    A disturbed case is tried again after a pause.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            with bench.device.torch.inference_mode():
                found = SPECIAL.get(one.kind, measure_kernel)(one, bench)
            _refuse_intruders(bench)
            return {**found, "status": GOOD}
        except Disturbed as error:
            reason = f"refused: {error}"
        except Exception as error:
            if is_out_of_memory(error):
                return {"status": "out of memory: leave the case out or free memory"}
            return {"status": f"failed: {_first_line(error)}"}
        finally:
            _free(bench)
    return {"status": reason}


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
    if row.get("tight") is False:
        parts.append("interval wider than asked for")
    if row.get("steady") is False:
        parts.append("not steady after warm-up")
    return f"{row['case']}: {', '.join(parts)}"


def _count(row: Mapping[str, Any], tally: Tally) -> None:
    if row["status"] == GOOD:
        tally.measured += 1
        tally.loose += row.get("tight") is False
    else:
        tally.problems.append(f"{row['case']}: {row['status']}")


def _refuse_intruders(bench: Bench) -> None:
    came = bench.intruders()
    if bench.agree(float(len(came))) and not bench.rules.allow_disturbed:
        shown = ", ".join(map(str, sorted(came))) or "on another rank"
        raise Disturbed(f"another process came to the GPU: pid {shown}")


def _free(bench: Bench) -> None:
    if bench.device.kind == "cuda":
        bench.device.torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
