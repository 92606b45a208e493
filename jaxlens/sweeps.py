"""Every deployment of one model on one kind of GPU: its knobs, results and slacks.

What depends on sizes is a signed slack at every point: relative, negative where a limit is
missed. Nothing raises.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.batch import Columns, elementwise, evaluate
from jaxlens.deployments import UNLIMITED, Workload
from jaxlens.economics import economics
from jaxlens.expressions import slack
from jaxlens.limits import power_slacks
from jaxlens.predictions import Estimate, predict
from jaxlens.questions import AT_LOAD, CHIP_NAMES, FIELDS, Question, device_knobs
from jaxlens.queueing import Arrivals, LoadEstimate, at_load
from jaxlens.spaces import Space

Scalar = Float[Array, ""] | float

OPEN = 0.5 * UNLIMITED  # above it a knob is left open
EQUAL = 1e-6  # relative, in float32


def sweep(
    question: Question,
    space: Space,
    progress: Callable[[int], None] | None = None,
) -> Columns:
    """Returns knobs, results and slacks of every deployment of a space."""
    return evaluate(outcome, question, space, progress)


@elementwise
def outcome(question: Question, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns knobs, results and slacks of one deployment; scalar in, scalars out.

    Results are those of steady state with all sequences in flight or, where there are
    arrivals, at that load: then the batch is a limit. Power budgets hold for the former.
    """
    layout = elementary.position(values["layout"])
    knobs = device_knobs(question, values, layout)
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
        "layout": elementary.entry(question.layouts.slack, layout),
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
    requests = elementary.minimum(
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
    locked = elementary.minimum(clock / chip.min_hz - 1.0, 1.0 - clock / chip.max_hz)
    free = (question.hertz < 0.5) | (clock > OPEN)
    capped = elementary.minimum(cap / chip.idle_watts - 1.0, 1.0 - cap / chip.tdp_watts)
    sms = 1.0 - knobs["communication_sms"] / (chip.sms - 1.0)
    slack_clock = elementary.where(free, 1.0, _tolerant(locked))
    slack_cap = elementary.where(cap > OPEN, 1.0, _tolerant(capped))
    return elementary.minimum(elementary.minimum(slack_clock, slack_cap), sms)


def _tolerant(slack: Scalar) -> Scalar:
    """Bounds are met by what is as large, in float32."""
    return elementary.where(elementary.absolute(slack) < EQUAL, 0.0, slack)


def _bound_slack(
    question: Question, results: Mapping[str, Scalar], layout: Array
) -> Scalar:
    """The least slack of the bounds that a space has: of degrees, and of the others."""
    chip = question.profile.chip
    known = {**results, **{name: getattr(chip, name) for name in CHIP_NAMES}}
    least = elementary.entry(question.layouts.bound_slack, layout)
    for bound in question.bounds:
        least = elementary.minimum(least, slack(bound, known))
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
        "rate": load.load_slack if load else elementary.ones_like(prefill),
    }


def _power_slacks(question: Question, estimate: Estimate) -> dict[str, Scalar]:
    """Slack of every power budget, 0 at worst where it is soft; and the worst excess."""
    slacks = power_slacks(
        question.limits, question.profile.chip, estimate, question.rates.host_watts
    )
    excess: Scalar = 0.0
    held = {}
    for name, value in slacks.items():
        excess = elementary.maximum(excess, -value)
        soft = question.soft[name] > 0.5
        held[f"slack_{name}"] = elementary.where(
            soft, elementary.maximum(value, 0.0), value
        )
    return {"power_excess": excess, **held}
