"""The deployments of some plans, evaluated: all of them, or what a stream keeps of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxlens import clusters
from jaxlens.batch import Columns
from jaxlens.limits import REASONS, SIZED
from jaxlens.plans import Plan
from jaxlens.shards import SMALLEST_ROW_BYTES, check_room, write_all
from jaxlens.shards.manifests import Manifest
from jaxlens.streams import Groups, Keep, Objective, stream
from jaxlens.surveys import Survey
from jaxlens.sweeps import outcome, sweep

MOST_STREAMED = 10**12  # days, at millions a second
WHOLE_SIZE = 2**20  # deployments that are kept whole by default: 200 MB
FRONT = ("seconds_per_output_token", "seconds_prefill", "joules_per_output_token")
TOP = 64
FRONT_CAPACITY = 2048

Progress = Callable[[int, int], None]


def evaluated(plans: Sequence[Plan], progress: Progress | None = None) -> Columns:
    """Returns every deployment of some plans, as columns; all are held in memory.

    `gpu` is the position of the plan, `index` that in its space.

    Raises:
        ValueError: a result is NaN; the message names kind and configuration.
    """
    report = _summed(plans, progress)
    parts = []
    for position, plan in enumerate(plans):
        try:
            found = sweep(plan.question, plan.space, report)
        except ValueError as error:
            raise ValueError(f"{plan.label}: {error}") from None
        parts.append({**_where(position, np.arange(plan.size)), **found})
    return _joined(parts)


def streamed(
    plans: Sequence[Plan],
    objective: Objective,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> tuple[Columns, tuple[Survey, ...]]:
    """Returns what is best of some plans, in float64, and the surveys of all.

    The best by the objective, over all and of each layout, the nearest that misses a
    limit, and the front of latencies and energy. An interrupt ends it with what is known.
    Several processes take a part each, and all get the whole.

    Args:
        plans: What to evaluate.
        objective: What the best are best by.
        progress: Called with deployments done and in total.
        checkpoint: Folder for what is known, so that a stream that is killed goes on.

    Raises:
        ValueError: there are too many, or a result is NaN; the message names kind and
            configuration.
    """
    total, before = sum(plan.size for plan in plans), 0
    if total > MOST_STREAMED:
        raise ValueError(
            f"space: expected at most {MOST_STREAMED:.0e} deployments, got {total:.3g}; "
            f"list fewer values of {', '.join(_longest(plans))}."
        )
    parts, surveys = [], []
    engine = clusters.stream if several() else stream
    for position, plan in enumerate(plans):

        def report(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        kept = None
        if checkpoint is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
            kept = checkpoint / f"{position}.survey"
        try:
            survey = engine(
                outcome,
                plan.question,
                plan.space,
                _keep(plan, objective),
                progress=report,
                checkpoint=kept,
            )
        except ValueError as error:
            raise ValueError(f"{plan.label}: {error}") from None
        points = survey.points
        parts.append({**_where(position, points.index), **points.columns})
        surveys.append(survey)
        before += plan.size
        if survey.interrupted:
            break
    return _joined(parts), tuple(surveys)


def several() -> bool:
    """Returns whether several processes share the work. See `clusters.connect`."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def write_full(
    plans: Sequence[Plan],
    folder: Path,
    progress: Progress | None = None,
    most_bytes: float | None = None,
) -> list[Manifest]:
    """Returns the manifests of all deployments of some plans, written as Parquet.

    Each kind has a folder of its own within `folder`, named after its label, unless there
    is one alone. What is there already is kept.

    Raises:
        ValueError: there is no room; names the size and the cure.
    """
    check_full(plans, folder, most_bytes)
    total, before = sum(plan.size for plan in plans), 0
    found = []
    for plan in plans:

        def report(done: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        found.append(
            write_all(
                outcome,
                plan.question,
                plan.space,
                _folder(plans, plan, folder),
                profiles=(f"{plan.request.card.chip}.{plan.request.card.stack}",),
                progress=_cumulative(report),
                most_bytes=most_bytes,
            )
        )
        before += plan.size
    return found


def check_full(
    plans: Sequence[Plan], folder: Path, most_bytes: float | None = None
) -> None:
    """Raises `ValueError` with the size of all deployments unless there is room."""
    rows = sum(plan.size for plan in plans)
    check_room(rows, SMALLEST_ROW_BYTES, folder, most_bytes)


def _longest(plans: Sequence[Plan], count: int = 3) -> list[str]:
    """The axes of most values, longest first."""
    axes = sorted(plans[0].space.axes, key=lambda axis: -float(axis.count))
    return [axis.name for axis in axes[:count]]


def _keep(plan: Plan, objective: Objective) -> Keep:
    required = tuple(name for name in REASONS if name not in SIZED)
    return Keep(
        objectives=(objective,),
        top=TOP,
        front=tuple(Objective(name) for name in FRONT),
        front_capacity=FRONT_CAPACITY,
        groups=Groups("layout", len(plan.layouts)),
        required=required,
    )


def _where(position: int, index: np.ndarray) -> Columns:
    return {
        "gpu": np.full(index.size, position),
        "index": np.asarray(index, np.int64),
    }


def _joined(parts: Sequence[Columns]) -> Columns:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _summed(plans: Sequence[Plan], progress: Progress | None) -> Callable[[int], None]:
    total, finished = sum(plan.size for plan in plans), [0]

    def report(count: int) -> None:
        finished[0] += count
        if progress is not None:
            progress(finished[0], total)

    return report


def _cumulative(report: Callable[[int], None]) -> Callable[[int], None]:
    done = [0]

    def add(count: int) -> None:
        done[0] += count
        report(done[0])

    return add


def _folder(plans: Sequence[Plan], plan: Plan, folder: Path) -> Path:
    if len(plans) == 1:
        return folder
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in plan.label)
    return folder / name
