"""Every deployment of one model on one kind of GPU: its knobs, results and slacks.

All spaces have the same axes, most of one value: one compiled program serves all of them. What
depends on sizes is a signed slack at every point: relative, negative where a limit is missed.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.batch import Columns, evaluate
from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.device_layouts import (
    DEGREES,
    Layout,
    Layouts,
    degrees_at,
    layout_columns,
)
from jaxlens.device_layouts import layouts as layouts
from jaxlens.economics import Tariff, economics
from jaxlens.expressions import Bound, slack
from jaxlens.limits import BUDGETS, Limits, power_slacks
from jaxlens.limits import REASONS as REASONS
from jaxlens.predictions import Estimate, predict
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree, static
from jaxlens.queueing import Arrivals, LoadEstimate, at_load
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
OPEN = 0.5 * UNLIMITED  # above it a knob is left open
EQUAL = 1e-6  # relative, in float32

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
    bounds: tuple[Bound, ...] = static(default=())


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
        bounds=bounds,
    )


def sweep(
    question: Question,
    space: Space,
    progress: Callable[[int], None] | None = None,
) -> Columns:
    """Returns knobs, results and slacks of every deployment of a space."""
    return evaluate(outcome, question, space, progress)


def outcome(question: Question, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns knobs, results and slacks of one deployment; scalar in, scalars out.

    Results are those of steady state with all sequences in flight or, where there are
    arrivals, at that load: then the batch is a limit. Power budgets hold for the former.
    """
    layout = jnp.asarray(values["layout"]).astype(jnp.int32)
    knobs = _knobs(question, values, layout)
    asked = {name: value for name, value in knobs.items() if name != "sequences"}
    sent = {name: asked.pop(name) for name, o in FIELDS.items() if o == "workload"}
    deployment = replace(question.base, **asked)
    workload = replace(question.workload, **sent)
    full = predict(question.model, question.profile, deployment, workload)
    served, load = full, None
    if question.arrivals is not None:
        load = at_load(
            question.model,
            question.profile,
            deployment,
            workload,
            question.arrivals,
            full,
        )
        served = _served(full, load, question.arrivals, workload)
    results = {"layout": values["layout"], **knobs, **_results(question, served, load)}
    slacks = {
        "layout": question.layouts.slack[layout],
        "batch": knobs["sequences"] / knobs["pipeline_parallel"] - 1.0,
        "chip": _chip_slack(question, values, knobs),
        "where": _bound_slack(question, results, layout),
        **_limit_slacks(question, served, load),
    }
    budgets = _power_slacks(question, full)
    named = {f"slack_{name}": value for name, value in slacks.items()}
    return {**results, **named, **budgets}


def _served(
    full: Estimate, load: LoadEstimate, arrivals: Arrivals, workload: Workload
) -> Estimate:
    """The estimate of a deployment that serves what arrives, as far as it can."""
    requests = jnp.minimum(
        arrivals.requests_per_second, load.capacity_requests_per_second
    )
    return replace(
        full,
        seconds_per_output_token=load.seconds_per_output_token,
        output_tokens_per_second=requests * workload.output_tokens,
        requests_per_second=requests,
        joules_per_output_token=load.joules_per_output_token,
        joules_per_request=load.joules_per_output_token * workload.output_tokens,
        watts_per_gpu=load.watts_per_gpu,
    )


def knobs_at(question: Question, space: Space, index: int) -> dict[str, float]:
    """Returns the knobs of one configuration, as exact as they were declared."""
    values = point(space, index)
    layout = int(values["layout"])
    degrees = {name: float(getattr(question.layouts, name)[layout]) for name in DEGREES}
    found = _placed(question, values, degrees, np)
    return {name: float(value) for name, value in found.items()}


def _knobs(
    question: Question, values: Mapping[str, Scalar], layout: Array
) -> dict[str, Scalar]:
    return _placed(question, values, degrees_at(question.layouts, layout), jnp)


def _placed(
    question: Question,
    values: Mapping[str, Scalar],
    degrees: Mapping[str, Scalar],
    arrays: Any,
) -> dict[str, Scalar]:
    """The knobs of a point, with numpy or JAX; the clock is one that can be locked."""
    chip = question.profile.chip
    replicas, total = degrees["data_parallel"], question.over_all_replicas
    given = values["sequences"]
    wanted = values["clock"] * (question.hertz + (1.0 - question.hertz) * chip.max_hz)
    above = (wanted - chip.min_hz) / chip.step_hz
    steps = arrays.maximum(0.0, arrays.round(above))
    return {
        **degrees,
        "batch": given * (total + (1.0 - total) * replicas),
        "sequences": given * (1.0 - total + total / replicas),
        "clock_hz": arrays.minimum(chip.max_hz, chip.min_hz + steps * chip.step_hz),
        **{name: values[name] for name in FIELDS},
    }


def _results(
    question: Question, estimate: Estimate, load: LoadEstimate | None
) -> dict[str, Scalar]:
    found = {name: getattr(load, name) for name in AT_LOAD} if load else {}
    rate = estimate.output_tokens_per_second
    return {
        "gpus": estimate.gpus,
        "seconds_prefill": estimate.seconds_prefill,
        "seconds_per_output_token": estimate.seconds_per_output_token,
        "output_tokens_per_second": rate,
        "output_tokens_per_second_per_gpu": rate / estimate.gpus,
        "requests_per_second": estimate.requests_per_second,
        "joules_per_output_token": estimate.joules_per_output_token,
        **vars(economics(estimate, question.rates)),
        "watts_per_gpu": estimate.watts_per_gpu,
        "capped_clock_hz": estimate.clock_hz,
        "memory_slack_bytes": estimate.memory_slack_bytes,
        **found,
    }


def _chip_slack(
    question: Question, values: Mapping[str, Scalar], knobs: Mapping[str, Scalar]
) -> Scalar:
    """Slack of clock, power cap and SMs within what the chip allows."""
    chip = question.profile.chip
    clock, cap = values["clock"], values["power_cap_watts"]
    locked = jnp.minimum(clock / chip.min_hz - 1.0, 1.0 - clock / chip.max_hz)
    free = (question.hertz < 0.5) | (clock > OPEN)
    capped = jnp.minimum(cap / chip.idle_watts - 1.0, 1.0 - cap / chip.tdp_watts)
    sms = 1.0 - knobs["communication_sms"] / (chip.sms - 1.0)
    slack_clock = jnp.where(free, 1.0, _tolerant(locked))
    slack_cap = jnp.where(cap > OPEN, 1.0, _tolerant(capped))
    return jnp.minimum(jnp.minimum(slack_clock, slack_cap), sms)


def _tolerant(slack: Scalar) -> Scalar:
    """Bounds are met by what is as large, in float32."""
    return jnp.where(jnp.abs(slack) < EQUAL, 0.0, slack)


def _bound_slack(
    question: Question, results: Mapping[str, Scalar], layout: Array
) -> Scalar:
    """The least slack of the bounds that a space has: of degrees, and of the others."""
    chip = question.profile.chip
    known = {**results, **{name: getattr(chip, name) for name in CHIP_NAMES}}
    least = jnp.asarray(question.layouts.bound_slack)[layout]
    for bound in question.bounds:
        least = jnp.minimum(least, slack(bound, known))
    return least


def _limit_slacks(
    question: Question, estimate: Estimate, load: LoadEstimate | None
) -> dict[str, Scalar]:
    limits = question.limits
    prefill, token = estimate.seconds_prefill, estimate.seconds_per_output_token
    mean = load.seconds_to_first_token if load else prefill
    late = load.seconds_to_first_token_p99 if load else prefill
    return {
        "memory": estimate.memory_slack_bytes / question.profile.chip.hbm_bytes,
        "prefill": 1.0 - prefill / limits.prefill_seconds,
        "ttft": 1.0 - mean / limits.ttft_seconds,
        "ttft_p99": 1.0 - late / limits.ttft_p99_seconds,
        "tpot": 1.0 - token / limits.tpot_seconds,
        "rate": load.load_slack if load else jnp.ones_like(prefill),
    }


def _power_slacks(question: Question, estimate: Estimate) -> dict[str, Scalar]:
    """Slack of every power budget, 0 at worst where it is soft; and the worst excess."""
    slacks = power_slacks(
        question.limits, question.profile.chip, estimate, question.rates.host_watts
    )
    excess: Scalar = 0.0
    held = {}
    for name, value in slacks.items():
        excess = jnp.maximum(excess, -value)
        soft = question.soft[name] > 0.5
        held[f"slack_{name}"] = jnp.where(soft, jnp.maximum(value, 0.0), value)
    return {"power_excess": excess, **held}
