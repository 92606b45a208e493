"""The settings of one step that are compared: tensor parallel x batch x stages x SMs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxlens.deployments import Deployment
from jaxlens.fronts import pareto_front
from jaxlens.layouts import check_layout
from jaxlens.optimize.staging import (
    PHASES,
    Columns,
    Question,
    Split,
    memory_slack_bytes,
    prices,
)
from jaxlens.requests import Request

Positions = Int[np.ndarray, "setting 4"]
KNOBS = ("tensor_parallel", "batch", "stages", "communication_sms")
OBJECTIVES = ("seconds", "joules_per_token")
MOST_STAGES = 16


@dataclass(frozen=True, kw_only=True)
class SplitSpace:
    """A grid; positions in it are rows of indices, one for each of `KNOBS`."""

    tensor_parallel: tuple[int, ...]
    batch: tuple[int, ...]
    stages: tuple[int, ...]
    communication_sms: tuple[int, ...]
    largest_batch: tuple[int, ...]  # that fits in memory, for each tensor parallel
    sequences_are_rows: bool  # decode: no more chunks than sequences

    @property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """Values of the four knobs."""
        return tuple(getattr(self, name) for name in KNOBS)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each knob has."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def size(self) -> int:
        """Settings of the grid, feasible or not."""
        return int(np.prod(self.counts))


def question(request: Request, phase: str, tokens: float) -> Question:
    """Returns what all settings of a phase have in common.

    Args:
        request: Model, GPU and the knobs that are not chosen.
        phase: "prefill" or "decode".
        tokens: Of each prompt; in decode, in the cache of each sequence.
    """
    if phase not in PHASES:
        raise ValueError(f"phase: expected one of {', '.join(PHASES)}, got {phase!r}.")
    if not 1.0 <= tokens <= 1e7:
        raise ValueError(
            f"tokens: expected a number from 1 to 1e7, got {tokens:g}; "
            f"they count those of one prompt, or in the cache of one sequence."
        )
    return Question(
        phase=phase,
        model=request.model,
        profile=request.profile,
        base=replace(request.deployment, overlap=True),
        tokens=float(tokens),
    )


def split_space(
    request: Request,
    asked: Question,
    *,
    tensor_parallel: Sequence[int] = (2, 4, 8),
    batch: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    stages: Sequence[int] = tuple(range(1, MOST_STAGES + 1)),
    communication_sms: Sequence[int] | None = None,
) -> SplitSpace:
    """Returns the checked space; by default every SM count and 1 to 16 stages.

    Raises:
        ValueError: one GPU, a degree that does not divide the model, stages below 1, more
            communication SMs than there are, or nothing that fits in memory.
    """
    sms = round(float(request.profile.chip.sms))
    if communication_sms is None:
        communication_sms = range(1, sms)
    axes = {
        "tp": _whole("tp", tensor_parallel, 1, 4096, "whole degrees of parallelism"),
        "batch": _whole("batch", batch, 1, 10**6, "sequences of one step"),
        "stages": _whole("stages", stages, 1, 64, "1 is no overlap"),
        "sms": _whole(
            "communication SMs",
            communication_sms,
            1,
            sms - 1,
            f"{request.card.chip} has {sms}, and the rest multiply meanwhile",
        ),
    }
    _check_degrees(request, axes["tp"])
    largest = tuple(largest_batch(asked, degree) for degree in axes["tp"])
    if max(largest) < axes["batch"][0]:
        raise ValueError(
            f"memory: expected at least {axes['batch'][0]} sequence(s) of "
            f"{float(asked.tokens):g} tokens to fit, got none with tp "
            f"{axes['tp'][-1]}; take more GPUs, a smaller batch or fewer tokens."
        )
    return SplitSpace(
        tensor_parallel=axes["tp"],
        batch=axes["batch"],
        stages=axes["stages"],
        communication_sms=axes["sms"],
        largest_batch=largest,
        sequences_are_rows=asked.phase == "decode",
    )


def largest_batch(asked: Question, tensor_parallel: int) -> int:
    """Returns the largest batch that fits in memory: slack is linear in the batch."""

    def slack(batch: float) -> float:
        split = Split(
            tensor_parallel=float(tensor_parallel),
            batch=batch,
            stages=1.0,
            communication_sms=1.0,
        )
        return float(memory_slack_bytes(asked, split))

    with jax.enable_x64(True):
        one, two = slack(1.0), slack(2.0)
    return 0 if one < 0.0 else int(1.0 + one / max(one - two, 1.0))


def splits(space: SplitSpace, positions: Positions) -> dict[str, np.ndarray]:
    """Returns the values of the knobs at `positions`."""
    return {
        name: np.asarray(axis, float)[positions[:, column]]
        for column, (name, axis) in enumerate(zip(KNOBS, space.axes, strict=True))
    }


def feasible(space: SplitSpace, positions: Positions) -> Bool[np.ndarray, " setting"]:
    """Returns which settings fit in memory and leave each chunk at least one row."""
    values = splits(space, positions)
    fits = values["batch"] <= np.asarray(space.largest_batch)[positions[:, 0]]
    if space.sequences_are_rows:
        fits &= values["stages"] <= values["batch"]
    return fits


def everything(space: SplitSpace) -> Positions:
    """Returns the positions of all settings."""
    return np.indices(space.counts).reshape(4, -1).T


def evaluate(asked: Question, space: SplitSpace, positions: Positions) -> Columns:
    """Returns the prices at `positions` as columns."""
    return prices(asked, splits(space, positions))


def points(
    columns: Columns, fits: Bool[np.ndarray, " setting"]
) -> Float[np.ndarray, "setting 2"]:
    """Returns latency and energy per token, NaN where a setting is infeasible."""
    found = np.stack([columns[name] for name in OBJECTIVES], axis=1)
    return np.where(fits[:, None], found, np.nan)


def exhaustive_front(asked: Question, space: SplitSpace) -> tuple[Positions, Columns]:
    """Returns the true front, fastest first, from a price for every setting."""
    positions = everything(space)
    positions = positions[feasible(space, positions)]
    columns = evaluate(asked, space, positions)
    best = pareto_front(points(columns, np.ones(len(positions), bool)))
    return positions[best], {name: values[best] for name, values in columns.items()}


def _whole(
    where: str, values: Sequence[int], low: int, high: int, cure: str
) -> tuple[int, ...]:
    for value in values:
        if not low <= value <= high or value != round(value):
            raise ValueError(
                f"{where}: expected whole numbers from {low} to {high}, "
                f"got {value:g}; {cure}."
            )
    if not values:
        raise ValueError(f"{where}: expected at least one value, got none; {cure}.")
    return tuple(sorted({round(value) for value in values}))


def _check_degrees(request: Request, degrees: tuple[int, ...]) -> None:
    if degrees[0] < 2:
        raise ValueError(
            "tp: expected 2 GPUs or more, got 1; one GPU has no collective to overlap."
        )
    for degree in degrees:
        layout: Deployment = replace(
            request.deployment, tensor_parallel=float(degree), batch=1.0
        )
        problems = check_layout(request.shape, request.profile.chip, layout)
        if problems:
            raise ValueError(problems[0])
