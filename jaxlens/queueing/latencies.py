"""Time to first token at load, beside the bare prefill time; tokens and power at that load.

A server with continuous batching decodes every step; prompts fill what is left of the token
budget, first come first served, while a slot is free. `occupancy` finds the mean step at a
rate of arrivals, `crowding` how the number of sequences fluctuates, `waits` what a request
waits for. Quantiles come from the first three moments of these parts: a shifted gamma
distribution for all but the slot, whose wait is zero or exponential.

Measured: against `tests/discrete_event_server.py`, see `docs/load_and_pools.md`.
"""

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.deployments import Deployment, Workload
from jaxlens.power import static_watts
from jaxlens.predictions import Estimate, predict
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.queueing.crowding import (
    SMALLEST,
    SOFTNESS,
    Clusters,
    Crowd,
    crowd,
    steps_filled,
)
from jaxlens.queueing.occupancy import Occupancy, Server, occupancy
from jaxlens.queueing.step_laws import StepLaw, step_laws
from jaxlens.queueing.waits import NORMAL_99, first_token, quantiles, slot_wait
from jaxlens.serving import requested_clock
from jaxlens.smooth import smooth_min
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float

TAIL_SOFTNESS = 1e-3
REQUEST_TAIL = 2.6  # standard deviations to the p99 of a request's TPOT, by simulation


@pytree
class Arrivals:
    """How requests come in, over all replicas, which they reach at random."""

    requests_per_second: Scalar = 1.0
    burstiness: Scalar = (
        1.0  # squared coefficient of variation of the gaps; Poisson is 1
    )
    prompt_tokens_cv: Scalar = 0.0  # coefficient of variation of prompt lengths


MOST_ARRIVALS: dict[str, tuple[str, float, str]] = {
    "requests_per_second": ("arrivals", 1e6, "requests per second over all replicas"),
    "burstiness": ("burstiness", 1e3, "1 is Poisson, 0 evenly spaced"),
    "prompt_tokens_cv": ("prompt cv", 10.0, "0 is one length for all"),
}


def check_arrivals(arrivals: Arrivals) -> Arrivals:
    """Returns `arrivals` as floats, each within what is plausible.

    Raises:
        ValueError: where, what was expected, what came and what it means.
    """
    values = {}
    for name, (where, most, meaning) in MOST_ARRIVALS.items():
        value = float(getattr(arrivals, name))
        if not 0.0 <= value <= most:
            raise ValueError(
                f"{where}: expected a number from 0 to {most:,.10g}, got {value:g}; "
                f"{meaning}."
            )
        values[name] = value
    return Arrivals(**values)


@pytree
class LoadEstimate:
    """Latency and power at a given rate of arrivals. Beyond the capacity still finite."""

    utilisation: Scalar  # of the capacity
    load_slack: Scalar  # 1 - utilisation: negative if requests pile up
    capacity_requests_per_second: Scalar
    running_sequences: Scalar  # decoding, over all replicas, mean over time
    seconds_to_first_token: Scalar
    seconds_to_first_token_p50: Scalar
    seconds_to_first_token_p99: Scalar
    seconds_own_prefill: Scalar  # of the mean TTFT, beside the sequences that decode
    seconds_step_wait: (
        Scalar  # ... until the next step, and for prompts in the same step
    )
    seconds_prefill_wait: Scalar  # ... for prompts before it
    seconds_slot_wait: Scalar  # ... for one of the batch limit's slots
    slot_wait_probability: Scalar
    seconds_per_output_token: Scalar  # TPOT, mean over requests
    seconds_per_output_token_p99: Scalar  # over requests
    seconds_between_tokens_p99: Scalar  # over tokens
    watts_per_gpu: Scalar
    joules_per_output_token: Scalar  # over all GPUs, idle time included


def at_load(
    model: Model,
    profile: Profile,
    deployment: Deployment,
    workload: Workload,
    arrivals: Arrivals,
    estimate: Estimate | None = None,
) -> LoadEstimate:
    """Returns latency and power of a deployment under `arrivals`: scalar in, scalars out.

    The batch of the deployment is the limit of sequences in flight, not their number.
    Differentiable in every float, also without arrivals and in overload; prices one decode
    step beside `predict` (two with experts) and adds some 900 operations.

    Args:
        model: What is served.
        profile: Chip and stack.
        deployment: Layout and knobs.
        workload: Lengths.
        arrivals: Over all replicas.
        estimate: Of the same deployment, where it is known.
    """
    if estimate is None:
        estimate = predict(model, profile, deployment, workload)
    seconds, joules = step_laws(model, profile, deployment, workload, estimate)
    lanes = deployment.data_parallel * deployment.pipeline_parallel
    server = Server(
        law=seconds,
        slots=deployment.batch / lanes,
        budget_tokens=elementary.minimum(
            deployment.chunk_tokens, profile.stack.chunk_tokens
        ),
        prompt_tokens=elementary.maximum(workload.prompt_tokens, 1.0),
        prompt_tokens_cv=arrivals.prompt_tokens_cv,
        output_tokens=elementary.maximum(workload.output_tokens, 1.0),
        output_tokens_cv=workload.output_tokens_cv,
    )
    idle = static_watts(requested_clock(profile.chip, deployment), profile.chip)
    rate = arrivals.requests_per_second / lanes
    # A random share 1 / n of a renewal process.
    burstiness = 1.0 + (arrivals.burstiness - 1.0) / lanes
    return server_load(server, rate, burstiness, joules, idle, lanes, estimate.gpus)


def server_load(
    server: Server,
    rate: Scalar,
    burstiness: Scalar,
    joules: StepLaw | None = None,
    idle_watts: Scalar = 0.0,
    lanes: Scalar = 1.0,
    gpus: Scalar = 1.0,
) -> LoadEstimate:
    """Returns latency and power of `lanes` equal servers, each at `rate`.

    Args:
        server: One of them.
        rate: Requests per second that reach it.
        burstiness: Squared coefficient of variation of the gaps between them.
        joules: Of its steps, per GPU; without it no power is given.
        idle_watts: Per GPU, while nothing runs.
        lanes: How many servers there are.
        gpus: Over all servers.
    """
    mean = occupancy(server, rate)
    clusters = Clusters(mean.served_rate, burstiness)
    crowded = crowd(server, mean, clusters)
    slot = slot_wait(server, mean, clusters, crowded)
    first = first_token(server, mean, clusters, crowded)
    total = first.own + first.step_wait + first.prefill_wait + slot.mean
    request_p99, token_p99 = _token_tails(server, mean, crowded)
    p50, p99 = quantiles(first, slot)
    watts, joules_per_token = _power(
        server, mean, crowded, joules, idle_watts, gpus, lanes
    )
    return LoadEstimate(
        utilisation=mean.utilisation,
        load_slack=1.0 - mean.utilisation,
        capacity_requests_per_second=lanes * mean.capacity,
        running_sequences=lanes * crowded.running,
        seconds_to_first_token=total,
        seconds_to_first_token_p50=p50,
        seconds_to_first_token_p99=p99,
        seconds_own_prefill=first.own,
        seconds_step_wait=first.step_wait,
        seconds_prefill_wait=first.prefill_wait,
        seconds_slot_wait=slot.mean,
        slot_wait_probability=slot.probability,
        seconds_per_output_token=crowded.token_seconds,
        seconds_per_output_token_p99=request_p99,
        seconds_between_tokens_p99=token_p99,
        watts_per_gpu=watts,
        joules_per_output_token=joules_per_token,
    )


def _token_tails(
    server: Server, mean: Occupancy, crowd: Crowd
) -> tuple[Scalar, Scalar]:
    """The p99 of TPOT over requests, and of the time between tokens.

    Between tokens: a step of as many sequences as a token sees, and a gamma tail
    (Cornish-Fisher) of the prompts in it; at most a step with a full budget. A request
    averages over its tokens what changes from step to step.
    """
    sequences = smooth_min(mean.sequences + crowd.variance, server.slots, SOFTNESS)
    plain = mean.fixed_seconds + mean.sequence_seconds * sequences
    prompts = elementary.maximum(crowd.token_seconds - plain, SMALLEST * plain)
    variance = crowd.step_variance
    skew = (NORMAL_99 * NORMAL_99 - 1.0) / 6.0 * variance / prompts
    beyond = prompts + NORMAL_99 * elementary.sqrt(variance) + skew
    most = mean.sequences + crowd.variance
    most = most + NORMAL_99 * elementary.sqrt(
        mean.sequences * crowd.variance + SMALLEST
    )
    most = smooth_min(most, server.slots, SOFTNESS)
    full = mean.fixed_seconds + mean.sequence_seconds * most
    full = full + mean.prompt_seconds / steps_filled(mean)
    between = smooth_min(plain + beyond, full, TAIL_SOFTNESS)
    spread = 1.0 + server.output_tokens_cv * server.output_tokens_cv
    decoded = elementary.maximum(server.output_tokens - 1.0, 1.0)
    token = crowd.token_seconds
    per_sequence = mean.sequence_seconds * mean.sequence_seconds
    slow = crowd.slowness * token * token
    slow = slow + 0.5 * per_sequence * crowd.running * crowd.variance
    deviation = elementary.sqrt(variance * spread / decoded + slow)
    request = smooth_min(token + REQUEST_TAIL * deviation, between, TAIL_SOFTNESS)
    return request, between


def _power(
    server: Server,
    mean: Occupancy,
    crowd: Crowd,
    joules: StepLaw | None,
    idle_watts: Scalar,
    gpus: Scalar,
    lanes: Scalar,
) -> tuple[Scalar, Scalar]:
    """Watts per GPU and joules per output token; an idle server draws static power."""
    if joules is None:
        return 0.0, 0.0
    busy = elementary.maximum(crowd.busy, SMALLEST)
    sequences = mean.sequences / busy
    tokens = mean.requests_per_step * server.prompt_tokens / busy
    sequences = elementary.minimum(sequences, server.slots)
    ratio = joules.at(sequences, tokens) / server.law.at(sequences, tokens)
    watts = busy * ratio + (1.0 - busy) * idle_watts
    rate = mean.served_rate * server.output_tokens
    return watts, watts * gpus / (rate * lanes)
