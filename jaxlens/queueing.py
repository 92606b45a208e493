"""Time to first token at load: what a request waits for beside its own prefill.

A server with continuous batching decodes every step; prompts fill what is left of the token
budget, first come first served, while a slot is free. A request waits for

    a free slot             if as many sequences run as may: a queue with many servers
    the step in progress    t (1 + V) / 2, V the squared variation of steps
    prompts of its step     those that arrived in the same step share the next one
    prompts before it       that fill the token budget of steps: a queue with budget / L servers
    its own chunks          beside the sequences that decode

and the quantiles come from the first two moments of these parts: a gamma distribution for
all but the slot, whose wait is zero or exponential. Clustered arrivals have gaps of squared
variation c^2 and count as a hyperexponential renewal process with balanced means: counts in a
time T have variance over mean 1 + (c^2 - 1) u / (2 + u) with u = 2 rate T / (1 + c^2), so short
steps hardly see clusters that long queues feel in full.

Sources: J. Kingman, "The single server queue in heavy traffic", Proc. Cambridge Phil. Soc.
57(4), 1961, and A. Allen, "Probability, Statistics and Queueing Theory", 1978 (Allen-Cunneen):
half the sum of the squared variations; W. Kraemer, M. Langenbach-Belz, "Approximate Formulae
for the Delay in the Queueing System GI/G/1", ITC 8, 1976 (clusters at light load);
H. Sakasegawa, "An Approximation Formula L_q = alpha beta^rho / (1 - rho)", Ann. Inst. Stat.
Math. 29, 1977 (many servers); S. Halfin, W. Whitt, "Heavy-Traffic Limits for Queues with Many
Exponential Servers", Operations Research 29(3), 1981 (probability of waiting); W. Whitt, "The
Queueing Network Analyzer", Bell System Technical Journal 62(9), 1983 (splitting of arrivals);
E. Wilson, M. Hilferty, "The Distribution of Chi-Square", PNAS 17, 1931 (gamma quantiles).

Measured: against `tests/discrete_event_server.py`, see `docs/load_and_pools.md`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.deployments import Deployment, Workload
from jaxlens.occupancy import SERVED_SOFTNESS, Occupancy, Server, occupancy
from jaxlens.power import static_watts
from jaxlens.predictions import Estimate, predict
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.serving import requested_clock
from jaxlens.smooth import smooth_min
from jaxlens.step_laws import StepLaw, step_laws
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float

NORMAL_99 = 2.3263
NORMAL_PEAK = 0.39894  # density of a standard normal at 0
LOGIT_PER_NORMAL = 1.702  # the logistic distribution that is closest to the normal
NEAR_FULL = 0.99  # utilisation from which waits grow along their tangent
SOFTNESS = 0.01
RAREST = -15.0  # logarithm of a probability: below it waits do not count
LEAST_VARIATION = 0.01  # squared, of what a request waits for
LEAST_SKEW, MOST_SKEW = 0.1, 6.0  # of a gamma distribution whose quantiles are known
SMALLEST = 1e-6  # of a probability, before its logarithm
# Slow periods, in which prompts queue, hold more sequences than fast ones: their length
# as a share of relaxation times. Fitted to the simulation in the tests.
BACKLOG_PERIOD = 0.4
STEP_PERIOD = 0.7
REQUEST_TAIL = 2.6  # standard deviations to the p99 of a request's TPOT, likewise


@pytree
class Arrivals:
    """How requests come in, over all replicas, which they reach at random."""

    requests_per_second: Scalar = 1.0
    burstiness: Scalar = 1.0  # squared coefficient of variation of the gaps; Poisson is 1
    prompt_tokens_cv: Scalar = 0.0  # coefficient of variation of prompt lengths


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
    seconds_step_wait: Scalar  # ... until the next step, and for prompts in the same step
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
    step beside `predict` (two with experts) and adds some 500 operations.

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
        budget_tokens=jnp.minimum(deployment.chunk_tokens, profile.stack.chunk_tokens),
        prompt_tokens=jnp.maximum(workload.prompt_tokens, 1.0),
        prompt_tokens_cv=arrivals.prompt_tokens_cv,
        output_tokens=jnp.maximum(workload.output_tokens, 1.0),
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
    clusters = _Clusters(mean.served_rate, burstiness)
    crowd = _crowd(server, mean, clusters)
    slot = _slot_wait(server, mean, clusters, crowd)
    first = _first_token(server, mean, clusters, crowd)
    total = first.own + first.step_wait + first.prefill_wait + slot.mean
    request_p99, token_p99 = _token_tails(server, mean, crowd)
    p50, p99 = _quantiles(first, slot)
    watts, joules_per_token = _power(server, mean, crowd, joules, idle_watts, gpus, lanes)
    return LoadEstimate(
        utilisation=mean.utilisation,
        load_slack=1.0 - mean.utilisation,
        capacity_requests_per_second=lanes * mean.capacity,
        running_sequences=lanes * crowd.running,
        seconds_to_first_token=total,
        seconds_to_first_token_p50=p50,
        seconds_to_first_token_p99=p99,
        seconds_own_prefill=first.own,
        seconds_step_wait=first.step_wait,
        seconds_prefill_wait=first.prefill_wait,
        seconds_slot_wait=slot.mean,
        slot_wait_probability=slot.probability,
        seconds_per_output_token=crowd.token_seconds,
        seconds_per_output_token_p99=request_p99,
        seconds_between_tokens_p99=token_p99,
        watts_per_gpu=watts,
        joules_per_output_token=joules_per_token,
    )


class _Clusters:
    """Hyperexponential arrivals with balanced means: how they deviate from Poisson's."""

    def __init__(self, rate: Scalar, burstiness: Scalar) -> None:
        self.squared_variation = burstiness
        self.decay_per_second = 2.0 * rate / (1.0 + burstiness)

    def dispersion(self, seconds: Scalar) -> Scalar:
        """Variance over mean of the arrivals in a time: 1 + (c^2 - 1) u / (2 + u)."""
        spans = self.decay_per_second * seconds
        return 1.0 + (self.squared_variation - 1.0) * spans / (2.0 + spans)

    def companions(self, seconds: Scalar) -> Scalar:
        """Arrivals in a time around one of them, above the mean: (c^2 - 1) u / (2 + u)."""
        return self.dispersion(seconds) - 1.0


@pytree
class _Crowd:
    """Sequences that decode, as a token, an arrival and the slots see them."""

    token_seconds: Scalar
    running: Scalar  # mean over time
    variance: Scalar  # of their number, over its mean
    skew: Scalar  # 0 normal, 1 Poisson, 2 gamma
    cluster: Scalar  # part of the variance that is due to clusters, a factor
    slowness: Scalar  # excess of the mean time over tokens above that over steps
    busy: Scalar  # share of the time
    step_variance: Scalar  # seconds^2, of steps
    dispersion: Scalar  # of arrivals, over the time in which steps correlate


@pytree
class _Wait:
    """A wait that is zero, or exponential with probability `probability`."""

    mean: Scalar
    probability: Scalar
    seconds_if_any: Scalar


@pytree
class _FirstToken:
    """Parts of a TTFT without the slot; moments of what varies."""

    own: Scalar
    step_wait: Scalar
    prefill_wait: Scalar
    variance: Scalar  # seconds^2, of all parts
    third: Scalar  # seconds^3, third central moment


def _per_gap(utilisation: Scalar) -> Scalar:
    """Returns 1 / (1 - u), along its tangent from `NEAR_FULL` on: finite in overload."""
    top = 1.0 / (1.0 - NEAR_FULL)
    below = 1.0 / (1.0 - jnp.minimum(utilisation, NEAR_FULL))
    return below + jnp.maximum(utilisation - NEAR_FULL, 0.0) * top * top


def _crowd(server: Server, mean: Occupancy, clusters: _Clusters) -> _Crowd:
    """A token's step holds B + Var(B) / B sequences: the others and its own.

    Where prompts queue for longer than a sequence decodes, sequences pile up in slow
    steps, by Little's law: tokens see (1 + share Var(t) / t^2) t.
    """
    step, outputs = mean.step_seconds, server.output_tokens
    alone = 1.0 - mean.prefill_utilisation
    relaxed = 2.0 * step / alone
    spread = 1.0 + server.output_tokens_cv * server.output_tokens_cv
    cluster = 1.0 + clusters.companions(outputs * step) / spread
    variance = mean.crowding * cluster
    dispersion = clusters.dispersion(relaxed)
    prompts = _prompt_variance(server, mean, dispersion)
    own = smooth_min(mean.sequences + variance, server.slots, SOFTNESS)
    even = (mean.fixed_seconds + mean.sequence_seconds * own) / alone
    gap = _per_gap(mean.budget_utilisation)
    fill = mean.prompt_share
    piece = mean.prompt_seconds + mean.fixed_seconds * _steps_filled(mean)
    period = BACKLOG_PERIOD * jnp.sqrt(fill * gap) * gap * piece
    period = period + STEP_PERIOD * (1.0 - fill) * step / (alone * alone)
    period = 0.5 * (1.0 + clusters.squared_variation) * period
    slowness = period / (period + outputs * step) * prompts / (step * step)
    token = even * (1.0 + slowness)
    running = mean.served_rate * (outputs - 1.0) * token
    running = smooth_min(running + SMALLEST, server.slots, SOFTNESS)
    prefill = mean.chunks * mean.fixed_seconds + mean.prompt_seconds
    per_sequence = mean.sequence_seconds * mean.sequence_seconds
    return _Crowd(
        token_seconds=token,
        running=running,
        variance=variance + mean.sequences * slowness,
        skew=2.0 - (2.0 - 1.0 / cluster) / mean.crowding,
        cluster=cluster,
        slowness=slowness,
        busy=1.0 - jnp.exp(-running / cluster - mean.served_rate * prefill),
        step_variance=prompts + per_sequence * mean.sequences * variance,
        dispersion=dispersion,
    )


def _steps_filled(mean: Occupancy) -> Scalar:
    """Share of a step's budget that a prompt takes, or how many steps it fills."""
    return mean.prompt_share * mean.chunks


def _prompt_variance(server: Server, mean: Occupancy, dispersion: Scalar) -> Scalar:
    """Variance of a step's seconds due to the prompts that it carries.

    Their number is that of the arrivals in the step before: a branching process,
    s^2 x / (1 - (rate s)^2). Prompts that fill steps alone are one or none.
    """
    carrying = jnp.minimum(mean.requests_per_step * mean.chunks, 1.0)
    fill = mean.prompt_share
    each = mean.prompt_seconds * mean.prompt_seconds / mean.chunks
    each = each * (1.0 + server.prompt_tokens_cv * server.prompt_tokens_cv)
    counted = jnp.maximum(dispersion - fill * carrying, 0.02)
    prefill = mean.prefill_utilisation
    memory = 1.0 - (1.0 - fill) * prefill * prefill
    return each * mean.requests_per_step * counted / memory


def _slot_wait(
    server: Server, mean: Occupancy, clusters: _Clusters, crowd: _Crowd
) -> _Wait:
    """Wait for a slot: below the limit as if there were none, above it a line that drains.

    P = q / (q + sigma Phi(beta) / phi(beta)), with q the mean line if there is one, sigma^2
    the variance of the sequences without a limit, and the limit beta of them away.
    """
    steps = server.output_tokens - 1.0 + mean.chunks
    used = smooth_min(mean.requests_per_step * steps, server.slots, SERVED_SOFTNESS)
    deviation = jnp.sqrt(used * crowd.variance)
    # The power that makes a distribution of that skew nearly normal.
    power = 1.0 - crowd.skew / 3.0
    ratio = jnp.exp(jnp.log(server.slots / used) * power)
    beta = jnp.maximum(used / deviation / power * (ratio - 1.0), 0.0)
    density = NORMAL_PEAK * jnp.exp(-0.5 * beta * beta)
    below = 1.0 / (1.0 + jnp.exp(-LOGIT_PER_NORMAL * beta))
    gap = _per_gap(mean.utilisation)
    variation = clusters.dispersion(steps * mean.step_seconds * gap)
    outputs = server.output_tokens_cv * server.output_tokens_cv
    line = 0.5 * (1.0 + variation) * gap * density
    probability = line / (line + deviation * below)
    seconds = 0.5 * (variation + outputs) * gap / mean.capacity
    return _Wait(
        mean=probability * seconds, probability=probability, seconds_if_any=seconds
    )


def _prefill_wait(server: Server, mean: Occupancy, clusters: _Clusters) -> _Wait:
    """Wait for prompts that fill the budget of steps: Allen-Cunneen with budget / L servers."""
    fill = mean.prompt_share
    rest, root = 1.0 - fill, jnp.sqrt(fill)
    gap = _per_gap(mean.budget_utilisation)
    squared = clusters.squared_variation
    prompts = server.prompt_tokens_cv * server.prompt_tokens_cv
    piece = mean.prompt_seconds + mean.fixed_seconds * _steps_filled(mean)
    piece = piece + mean.sequence_seconds * mean.sequences * _steps_filled(mean)
    free = 1.0 - jnp.minimum(mean.budget_utilisation, 1.0)
    light = free * jnp.maximum(squared - 1.0, 0.0) / (squared + 4.0 * prompts + SMALLEST)
    single = squared / (1.0 + light + 0.5 * light * light)
    variation = fill * single + rest * clusters.dispersion(piece / fill * gap * gap)
    full = root * mean.budget_utilisation + (1.0 - root) * mean.budget_share
    full = jnp.log(jnp.minimum(full, 0.999))
    exponent = jnp.sqrt(2.0 * (1.0 + 1.0 / fill)) - 1.0
    exponent = exponent / jnp.sqrt(fill + rest * variation)
    rarity = jnp.maximum(exponent * full, RAREST)
    waits = jnp.exp(rarity)
    met = jnp.exp(2.0 / (1.0 + variation) * rarity)  # by arrivals, in clusters
    mean_seconds = piece * waits * gap * 0.5 * (variation + prompts)
    return _Wait(
        mean=mean_seconds, probability=met, seconds_if_any=mean_seconds / met
    )


def _first_token(
    server: Server, mean: Occupancy, clusters: _Clusters, crowd: _Crowd
) -> _FirstToken:
    """Moments of a TTFT without the slot.

    While the budget does not bind, a prompt waits for the rest of the step in progress and is
    carried by the next, with all that arrived in the same step. A prompt that fills steps
    alone waits for half a decode step, and for those before it (`_prefill_wait`).
    """
    step, prompt, rate = mean.step_seconds, mean.prompt_seconds, mean.served_rate
    prefill, fill = mean.prefill_utilisation, mean.prompt_share
    prompts = 1.0 + server.prompt_tokens_cv * server.prompt_tokens_cv
    seen = step + crowd.step_variance / step  # the step in progress, biased to long ones
    third = prompt * prompt * prompt / (mean.chunks * mean.chunks)
    third = third * mean.requests_per_step * (3.0 * prompts - 2.0)
    third = third / (1.0 - prefill * prefill * prefill)
    cube = step * step + 3.0 * crowd.step_variance + third / step  # E[t^3] / E[t]
    companions = clusters.companions(seen)
    together = rate * seen + companions
    shared = 0.5 * seen + prompt * together
    steps_variance = jnp.maximum(cube - seen * seen, 0.0)
    count = rate * seen * crowd.dispersion * crowd.dispersion
    count = count / (1.0 - prefill * prefill) + companions
    shared_variance = (
        cube / 3.0
        - 0.25 * seen * seen
        + prompt * prompt * prompts * count
        + prefill * (1.0 + prefill) * steps_variance
    )
    decode = mean.fixed_seconds + mean.sequence_seconds * crowd.running
    step_wait = crowd.busy * ((1.0 - fill) * shared + fill * 0.5 * decode)
    square = (1.0 - fill) * (shared * shared + shared_variance)
    square = crowd.busy * (square + fill * decode * decode / 3.0)
    before = _prefill_wait(server, mean, clusters)
    # A prompt that starts within a step ends within one: half a step more.
    chunks = mean.chunks + 0.5 * crowd.busy * (1.0 - 1.0 / mean.chunks)
    jitter = mean.sequence_seconds * mean.chunks
    variance = (
        square
        - step_wait * step_wait
        + before.mean * (2.0 * before.seconds_if_any - before.mean)
        + prompt * prompt * (prompts - 1.0)
        + crowd.busy * jitter * jitter * crowd.running * crowd.variance
    )
    return _FirstToken(
        own=chunks * decode + prompt,
        step_wait=step_wait,
        prefill_wait=before.mean,
        variance=variance,
        third=_third_moment(server, mean, crowd, before, seen, together, count),
    )


def _third_moment(
    server: Server,
    mean: Occupancy,
    crowd: _Crowd,
    before: _Wait,
    seen: Scalar,
    together: Scalar,
    count: Scalar,
) -> Scalar:
    """Third central moment of a TTFT without the slot: what makes its tail long.

    The rest of a step is uniform, or none with an idle server; prompts that share a step
    are `together`, with variance `count`, like a gamma distribution; prompts before it make
    a wait that is zero or exponential.
    """
    fill, busy, prompt = mean.prompt_share, crowd.busy, mean.prompt_seconds
    squared = server.prompt_tokens_cv * server.prompt_tokens_cv
    cubed = prompt * prompt * prompt
    idle = 1.0 - busy
    rest = 0.25 * busy * idle * idle * seen * seen * seen
    long_steps = 0.25 * cubed * prompt * mean.requests_per_step / mean.step_seconds
    shared = 2.0 * cubed * (1.0 + 3.0 * squared) * count * count / together + long_steps
    waits, exponential = before.probability, before.seconds_if_any
    line = waits * (6.0 - waits * (6.0 - 2.0 * waits))
    line = line * exponential * exponential * exponential
    return (
        rest + busy * (1.0 - fill) * shared + line + 2.0 * cubed * squared * squared
    )


def _quantiles(first: _FirstToken, slot: _Wait) -> tuple[Scalar, Scalar]:
    """The p50 and p99 of a TTFT: a shifted gamma distribution of given moments, and the slot.

    mean + deviation (2 / g) ((1 + z g / 6 - g^2 / 36)^3 - 1) with skew g (Wilson-Hilferty).
    Half of all requests wait less than the median of those that find a slot, as long as
    that is half of them. Deviations of independent parts add up in squares at the p99.
    """
    waited = first.step_wait + first.prefill_wait
    variance = jnp.maximum(first.variance, LEAST_VARIATION * waited * waited)
    deviation = jnp.sqrt(variance + SMALLEST * first.own * first.own)
    skew = first.third / (deviation * deviation * deviation)
    skew = jnp.clip(skew, LEAST_SKEW, MOST_SKEW)

    def quantile(normal: Scalar) -> Scalar:
        root = 1.0 + normal * skew / 6.0 - skew * skew / 36.0
        root = jnp.maximum(root, 0.0)
        beyond = 2.0 / skew * (root * root * root - 1.0)
        return jnp.maximum(waited + deviation * beyond, 0.0)

    def of_slot(beyond: float) -> Scalar:
        odds = jnp.log(slot.probability / beyond + SMALLEST)
        return slot.seconds_if_any * jnp.maximum(odds, 0.0)

    among = jnp.minimum(0.5 / (1.0 - jnp.minimum(slot.probability, 0.5)), 0.9)
    p50 = first.own + quantile(jnp.log(among / (1.0 - among)) / LOGIT_PER_NORMAL)
    p50 = p50 + of_slot(0.5)
    part = quantile(NORMAL_99) - waited
    other = jnp.maximum(of_slot(0.01) - slot.mean, 0.0)
    p99 = first.own + waited + slot.mean + jnp.sqrt(part * part + other * other)
    return p50, p99


def _token_tails(
    server: Server, mean: Occupancy, crowd: _Crowd
) -> tuple[Scalar, Scalar]:
    """The p99 of TPOT over requests, and of the time between tokens.

    Between tokens: a step of as many sequences as a token sees, and a gamma tail
    (Cornish-Fisher) of the prompts in it; at most a step with a full budget. A request
    averages over its tokens what changes from step to step.
    """
    sequences = smooth_min(mean.sequences + crowd.variance, server.slots, SOFTNESS)
    plain = mean.fixed_seconds + mean.sequence_seconds * sequences
    prompts = jnp.maximum(crowd.token_seconds - plain, SMALLEST * plain)
    variance = crowd.step_variance
    skew = (NORMAL_99 * NORMAL_99 - 1.0) / 6.0 * variance / prompts
    beyond = prompts + NORMAL_99 * jnp.sqrt(variance) + skew
    full = plain + mean.prompt_seconds / _steps_filled(mean)
    between = smooth_min(plain + beyond, full, SOFTNESS)
    spread = 1.0 + server.output_tokens_cv * server.output_tokens_cv
    decoded = jnp.maximum(server.output_tokens - 1.0, 1.0)
    token = crowd.token_seconds
    per_sequence = mean.sequence_seconds * mean.sequence_seconds
    slow = crowd.slowness * token * token
    slow = slow + 0.5 * per_sequence * crowd.running * crowd.variance
    deviation = jnp.sqrt(variance * spread / decoded + slow)
    request = smooth_min(token + REQUEST_TAIL * deviation, between, SOFTNESS)
    return request, between


def _power(
    server: Server,
    mean: Occupancy,
    crowd: _Crowd,
    joules: StepLaw | None,
    idle_watts: Scalar,
    gpus: Scalar,
    lanes: Scalar,
) -> tuple[Scalar, Scalar]:
    """Watts per GPU and joules per output token; an idle server draws static power."""
    if joules is None:
        return 0.0, 0.0
    busy = jnp.maximum(crowd.busy, SMALLEST)
    sequences = mean.sequences / busy
    tokens = mean.requests_per_step * server.prompt_tokens / busy
    sequences = jnp.minimum(sequences, server.slots)
    ratio = joules.at(sequences, tokens) / server.law.at(sequences, tokens)
    watts = busy * ratio + (1.0 - busy) * idle_watts
    rate = mean.served_rate * server.output_tokens
    return watts, watts * gpus / (rate * lanes)
