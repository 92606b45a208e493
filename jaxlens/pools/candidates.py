"""Candidates for one pool of disaggregated serving: layouts x batch x clock x replicas.

Each candidate is priced once, at the full rate of requests, whatever the other pool will be:
what two pools do together follows from their loads (`pools.joined`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.batch import Columns, evaluate
from jaxlens.deployments import Deployment, Workload
from jaxlens.device_layouts import (
    Layout,
    Layouts,
    degrees_at,
    layout_columns,
    layouts,
)
from jaxlens.economics import Tariff
from jaxlens.pools.estimates import Pool, PoolLoad, decode_load, prefill_load
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.queueing import Arrivals
from jaxlens.requests import Request, has_network
from jaxlens.spaces import Space, choices, grid, space
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float

PREFILLS = (1.0, 4.0, 16.0, 64.0)  # prompts in flight on one replica
DECODES = tuple(float(2**power) for power in range(11))  # sequences on one replica
LOWEST_CLOCK = 0.4  # of the highest
CLOCKS = 7
MOST_STAGES = 2  # pipeline stages: more make prefills of one prompt no faster


@pytree
class Question:
    """What all candidates of a pool have in common."""

    model: Model
    profile: Profile
    base: Deployment
    workload: Workload
    arrivals: Arrivals
    tariff: Tariff
    layouts: Layouts


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """All candidates for one pool on one kind of GPU: knobs, and loads as columns."""

    request: Request
    question: Question
    columns: Columns
    decodes: bool

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return self.columns["gpus"].size

    @property
    def usable(self) -> np.ndarray:
        """Whether each is accepted by an engine, fits, and keeps up with arrivals."""
        columns = self.columns
        return (
            (columns["slack_layout"] >= 0.0)
            & (columns["memory_slack_bytes"] >= 0.0)
            & (columns["utilisation"] < 1.0)
            & (columns["port_utilisation"] < 1.0)
        )

    def pool(self, index: int) -> Pool:
        """Returns one candidate, with a clock that can be locked exactly."""
        columns, question = self.columns, self.question
        chip = self.request.profile.chip
        low, step = float(chip.min_hz), float(chip.step_hz)
        steps = round((float(columns["clock_hz"][index]) - low) / step)
        names = ("tensor_parallel", "expert_parallel", "pipeline_parallel", "batch")
        knobs = {name: float(columns[name][index]) for name in names}
        clock = min(float(chip.max_hz), low + steps * step)
        return Pool(
            profile=self.request.profile,
            deployment=replace(question.base, clock_hz=clock, **knobs),
            replicas=float(columns["replicas"][index]),
            tariff=question.tariff,
        )

    def load(self, indices: np.ndarray) -> PoolLoad:
        """Returns the loads of some candidates, as arrays."""
        names = [field.name for field in fields(PoolLoad)]
        columns: Any = {name: self.columns[name][indices] for name in names}
        return PoolLoad(**columns)


def candidates(
    request: Request,
    arrivals: Arrivals,
    most_gpus: int,
    *,
    decodes: bool,
    tariff: Tariff | None = None,
    progress: Callable[[int], None] | None = None,
) -> Candidates:
    """Returns every candidate for a pool, each at the full rate of requests.

    Args:
        request: Model, GPU and workload; its layout, batch and clock do not count.
        arrivals: How requests come in.
        most_gpus: Most GPUs of the pool.
        decodes: Whether it decodes; else it prefills.
        tariff: Prices; by default nothing costs money.
        progress: Called with the number of candidates that are finished.
    """
    question = Question(
        model=request.model,
        profile=request.profile,
        base=request.deployment,
        workload=request.workload,
        arrivals=arrivals,
        tariff=Tariff() if tariff is None else tariff,
        layouts=layout_columns(_layouts(request, most_gpus)),
    )
    asked = pool_space(_layouts(request, most_gpus), most_gpus, decodes=decodes)
    outcome = decode_outcome if decodes else prefill_outcome
    columns = evaluate(outcome, question, asked, progress)
    return Candidates(
        request=request, question=question, columns=columns, decodes=decodes
    )


def pool_space(listed: tuple[Layout, ...], most_gpus: int, *, decodes: bool) -> Space:
    """Returns layouts x batch of a replica x clock x replicas."""
    return space(
        choices("layout", range(len(listed))),
        choices("sequences", DECODES if decodes else PREFILLS),
        grid("clock_share", LOWEST_CLOCK, 1.0, CLOCKS),
        choices("replicas", _replicas(most_gpus)),
    )


def prefill_outcome(
    question: Question, values: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """Returns knobs and load of one candidate that prefills."""
    return _outcome(question, values, prefill_load)


def decode_outcome(
    question: Question, values: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """Returns knobs and load of one candidate that decodes."""
    return _outcome(question, values, decode_load)


def _outcome(
    question: Question, values: Mapping[str, Scalar], price: Callable[..., PoolLoad]
) -> dict[str, Any]:
    chip = question.profile.chip
    layout = jnp.asarray(values["layout"]).astype(jnp.int32)
    above = values["clock_share"] * chip.max_hz - chip.min_hz
    steps = jnp.maximum(0.0, jnp.round(above / chip.step_hz))
    degrees = degrees_at(question.layouts, layout)
    stages = degrees["pipeline_parallel"]
    knobs = {
        **degrees,
        "batch": values["sequences"] * stages,
        "clock_hz": jnp.minimum(chip.max_hz, chip.min_hz + steps * chip.step_hz),
    }
    pool = Pool(
        profile=question.profile,
        deployment=replace(question.base, **knobs),
        replicas=values["replicas"],
        tariff=question.tariff,
    )
    load = price(question.model, pool, question.workload, question.arrivals)
    return {
        **knobs,
        "replicas": values["replicas"],
        "slack_layout": question.layouts.slack[layout],
        **vars(load),
    }


def _layouts(request: Request, most_gpus: int) -> tuple[Layout, ...]:
    """Layouts of one replica: more replicas are an axis of their own."""
    stages = [count for count in (1, 2) if count <= min(MOST_STAGES, most_gpus)]
    return layouts(
        request.shape,
        request.profile.chip,
        request.deployment,
        most_gpus,
        network=has_network(request.card),
        degrees={"data_parallel": [1], "pipeline_parallel": stages},
    )


def _replicas(most_gpus: int) -> list[float]:
    """Counts up to `most_gpus`: all to 8, then in steps of at most a quarter."""
    found = [1]
    while found[-1] < most_gpus:
        found.append(min(most_gpus, found[-1] + max(1, found[-1] // 4)))
    return [float(count) for count in found]
