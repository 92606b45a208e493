"""What all deployments of a sweep have in common, and the space of their knobs.

All spaces have the same axes, most of one value: one compiled program serves all of them.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.deployments import Deployment, Workload
from jaxlens.device_layouts import (
    DEGREES,
    Layout,
    Layouts,
    degrees_at,
    layout_columns,
)
from jaxlens.economics import Tariff
from jaxlens.expressions import Bound, Formula
from jaxlens.limits import BUDGETS, Limits
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.queueing import Arrivals
from jaxlens.spaces import (
    Axis,
    Space,
    choices,
    grid,
    integers,
    point,
    space,
    tabled,
)
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float

# Sequences in flight per replica, in steps of half an octave and finer.
SEQUENCES = tuple(
    float(2**power * quarter / 4)
    for power in range(11)
    for quarter in (4, 5, 6, 7)
    if 2**power * quarter % 4 == 0 and 2**power * quarter <= 4096
)
LOWEST_CLOCK = 0.4  # of the highest
CLOCKS = 16

# Axes of every space, slowest first. `sequences` may count those of all replicas, and
# `clock` is a share of the highest clock or hertz: see `Question`.
FIELDS = {
    "prompt_tokens": "workload",
    "output_tokens": "workload",
    "output_tokens_cv": "workload",
    "routing_skew": "base",
    "chunk_tokens": "base",
    "stages": "base",
    "communication_sms": "base",
    "power_cap_watts": "base",
}
AXES = ("layout", *FIELDS, "sequences", "clock")
KNOBS = (
    "tensor_parallel",
    "expert_parallel",
    "pipeline_parallel",
    "data_parallel",
    "batch",
    "sequences",
    "clock_hz",
    *FIELDS,
)
RESULTS = (
    "gpus",
    "seconds_prefill",
    "seconds_per_output_token",
    "output_tokens_per_second",
    "output_tokens_per_second_per_gpu",
    "requests_per_second",
    "joules_per_output_token",
    "output_tokens_per_joule",
    "wall_joules_per_output_token",
    "dollars_per_million_output_tokens",
    "grams_co2_per_million_output_tokens",
    "watts_per_gpu",
    "capped_clock_hz",
    "memory_slack_bytes",
    "power_excess",
)
# Where there are arrivals: fields of `LoadEstimate`.
AT_LOAD = (
    "utilisation",
    "running_sequences",
    "seconds_to_first_token",
    "seconds_to_first_token_p50",
    "seconds_to_first_token_p99",
    "seconds_per_output_token_p99",
)
# Facts of the chip that a bound may have.
CHIP_NAMES = ("node_gpus", "max_hz", "tdp_watts", "hbm_bytes", "sms")


@pytree
class Question:
    """What all configurations of a sweep have in common."""

    model: Model
    profile: Profile
    base: Deployment  # flags, and knobs that the space leaves alone
    workload: Workload
    limits: Limits
    rates: Tariff
    arrivals: Arrivals | None = None  # without them all sequences are always in flight
    layouts: Layouts
    hertz: Scalar = 0.0  # 1: the axis `clock` is in hertz
    over_all_replicas: Scalar = 0.0  # 1: the axis `sequences` is the batch
    soft: Mapping[str, Scalar]  # 1: the power budget of that name excludes nothing
    bounds: tuple[Formula, ...] = ()


def deployment_space(listed: tuple[Layout, ...], **axes: Axis) -> Space:
    """Returns layouts x knobs x sequences x clock, each with a table.

    Args:
        listed: The layouts.
        axes: Axes by name of `AXES`; what is not given has its default: many batches and
            clocks, and one value of every other knob.
    """
    base, workload = Deployment(), Workload()
    defaults: dict[str, Axis] = {
        name: choices(name, [float(getattr(workload if w else base, name))])
        for name, w in ((name, owner == "workload") for name, owner in FIELDS.items())
    }
    defaults["sequences"] = choices("sequences", SEQUENCES)
    defaults["clock"] = grid("clock", LOWEST_CLOCK, 1.0, CLOCKS)
    defaults["layout"] = integers("layout", 0, len(listed) - 1)
    return space(*(tabled(axes.get(name, defaults[name])) for name in AXES))


def question(
    model: Model,
    profile: Profile,
    base: Deployment,
    workload: Workload,
    listed: tuple[Layout, ...],
    *,
    limits: Limits | None = None,
    rates: Tariff | None = None,
    arrivals: Arrivals | None = None,
    soft: tuple[str, ...] = (),
    bounds: tuple[Bound, ...] = (),
    hertz: bool = False,
    over_all_replicas: bool = False,
) -> Question:
    """Returns what the configurations of a sweep share; see `Question`."""
    return Question(
        model=model,
        profile=profile,
        base=base,
        workload=workload,
        limits=limits or Limits(),
        rates=rates or Tariff(),
        arrivals=arrivals,
        layouts=layout_columns(listed),
        hertz=float(hertz),
        over_all_replicas=float(over_all_replicas),
        soft={name: float(name in soft) for name in BUDGETS},
        bounds=tuple(bound.formula for bound in bounds),
    )


def knobs_at(question: Question, space: Space, index: int) -> dict[str, float]:
    """Returns the knobs of one configuration, as exact as they were declared."""
    values = {name: np.float64(value) for name, value in point(space, index).items()}
    layout = int(values["layout"])
    degrees = {name: float(getattr(question.layouts, name)[layout]) for name in DEGREES}
    found = _placed(question, values, degrees)
    return {name: float(value) for name, value in found.items()}


def device_knobs(
    question: Question, values: Mapping[str, Scalar], layout: Array
) -> dict[str, Scalar]:
    """Returns the knobs of one configuration; runs on the device."""
    return _placed(question, values, degrees_at(question.layouts, layout))


def _placed(
    question: Question,
    values: Mapping[str, Scalar],
    degrees: Mapping[str, Scalar],
) -> dict[str, Scalar]:
    """The knobs of a point; the clock is one that can be locked."""
    chip = question.profile.chip
    replicas, total = degrees["data_parallel"], question.over_all_replicas
    given = values["sequences"]
    wanted = values["clock"] * (question.hertz + (1.0 - question.hertz) * chip.max_hz)
    above = (wanted - chip.min_hz) / chip.step_hz
    steps = elementary.maximum(0.0, elementary.nearest(above))
    return {
        **degrees,
        "batch": given * (total + (1.0 - total) * replicas),
        "sequences": given * (1.0 - total + total / replicas),
        "clock_hz": elementary.minimum(chip.max_hz, chip.min_hz + steps * chip.step_hz),
        **{name: values[name] for name in FIELDS},
    }
