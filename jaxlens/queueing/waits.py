"""What a request waits for until its first token, and the quantiles of all of it.

    a free slot             if as many sequences run as may: a queue with many servers
    the step in progress    t (1 + V) / 2, V the squared variation of steps
    prompts of its step     those that arrived in the same step share the next one
    prompts before it       that fill the token budget of steps: a queue with budget / L servers
    its own chunks          beside the sequences that decode

Sources: J. Kingman, "The single server queue in heavy traffic", Proc. Cambridge Phil. Soc.
57(4), 1961, and A. Allen, "Probability, Statistics and Queueing Theory", 1978 (Allen-Cunneen):
half the sum of the squared variations; W. Kraemer, M. Langenbach-Belz, "Approximate Formulae
for the Delay in the Queueing System GI/G/1", ITC 8, 1976 (clusters at light load);
H. Sakasegawa, "An Approximation Formula L_q = alpha beta^rho / (1 - rho)", Ann. Inst. Stat.
Math. 29, 1977 (many servers); S. Halfin, W. Whitt, "Heavy-Traffic Limits for Queues with Many
Exponential Servers", Operations Research 29(3), 1981 (probability of waiting); E. Wilson,
M. Hilferty, "The Distribution of Chi-Square", PNAS 17, 1931 (gamma quantiles).
"""

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.pytrees import pytree
from jaxlens.queueing.crowding import SMALLEST, Clusters, Crowd, per_gap, steps_filled
from jaxlens.queueing.occupancy import SERVED_SOFTNESS, Occupancy, Server
from jaxlens.smooth import smooth_min

Scalar = Float[Array, ""] | float

NORMAL_99 = 2.3263
NORMAL_PEAK = 0.39894  # density of a standard normal at 0
LOGIT_PER_NORMAL = 1.702  # the logistic distribution that is closest to the normal
RAREST = -15.0  # logarithm of a probability: below it waits do not count
LEAST_VARIATION = 0.01  # squared, of what a request waits for
LEAST_SKEW, MOST_SKEW = 0.1, 6.0  # of a gamma distribution whose quantiles are known


@pytree
class Wait:
    """A wait that is zero, or exponential with probability `probability`."""

    mean: Scalar
    probability: Scalar
    seconds_if_any: Scalar


@pytree
class SharedStep:
    """Rest of a step, and prompts of the next: seconds in all, and what they vary by."""

    seconds: Scalar
    variance: Scalar
    seen: Scalar  # seconds of the step in progress
    together: Scalar  # other prompts in the next step
    count_variance: Scalar  # of their number


@pytree
class FirstToken:
    """Parts of a TTFT without the slot; moments of what varies."""

    own: Scalar
    step_wait: Scalar
    prefill_wait: Scalar
    variance: Scalar  # seconds^2, of all parts
    third: Scalar  # seconds^3, third central moment


def slot_wait(
    server: Server, mean: Occupancy, clusters: Clusters, crowd: Crowd
) -> Wait:
    """Wait for a slot: below the limit as if there were none, above it a line that drains.

    P = q / (q + sigma Phi(beta) / phi(beta)), with q the mean line if there is one, sigma^2
    the variance of the sequences without a limit, and the limit beta of them away.
    """
    steps = server.output_tokens - 1.0 + mean.chunks
    used = smooth_min(mean.requests_per_step * steps, server.slots, SERVED_SOFTNESS)
    deviation = elementary.sqrt(used * crowd.variance)
    # The power that makes a distribution of that skew nearly normal.
    power = 1.0 - crowd.skew / 3.0
    ratio = elementary.exp(elementary.log(server.slots / used) * power)
    beta = elementary.maximum(used / deviation / power * (ratio - 1.0), 0.0)
    density = NORMAL_PEAK * elementary.exp(-0.5 * beta * beta)
    below = 1.0 / (1.0 + elementary.exp(-LOGIT_PER_NORMAL * beta))
    gap = per_gap(mean.utilisation)
    variation = clusters.dispersion(steps * mean.step_seconds * gap)
    outputs = server.output_tokens_cv * server.output_tokens_cv
    line = 0.5 * (1.0 + variation) * gap * density
    probability = line / (line + deviation * below)
    seconds = 0.5 * (variation + outputs) * gap / mean.capacity
    return Wait(
        mean=probability * seconds, probability=probability, seconds_if_any=seconds
    )


def prefill_wait(server: Server, mean: Occupancy, clusters: Clusters) -> Wait:
    """Wait for prompts that fill the budget of steps: Allen-Cunneen with budget / L servers."""
    fill = mean.prompt_share
    rest, root = 1.0 - fill, elementary.sqrt(fill)
    gap = per_gap(mean.budget_utilisation)
    squared = clusters.squared_variation
    prompts = server.prompt_tokens_cv * server.prompt_tokens_cv
    piece = mean.prompt_seconds + mean.fixed_seconds * steps_filled(mean)
    piece = piece + mean.sequence_seconds * mean.sequences * steps_filled(mean)
    free = 1.0 - elementary.minimum(mean.budget_utilisation, 1.0)
    light = (
        free
        * elementary.maximum(squared - 1.0, 0.0)
        / (squared + 4.0 * prompts + SMALLEST)
    )
    single = squared / (1.0 + light + 0.5 * light * light)
    variation = fill * single + rest * clusters.dispersion(piece / fill * gap * gap)
    full = root * mean.budget_utilisation + (1.0 - root) * mean.budget_share
    full = elementary.log(elementary.clip(full, SMALLEST, 0.999))  # rounding: below 0
    exponent = elementary.sqrt(2.0 * (1.0 + 1.0 / fill)) - 1.0
    exponent = exponent / elementary.sqrt(fill + rest * variation)
    rarity = elementary.maximum(exponent * full, RAREST)
    waits = elementary.exp(rarity)
    met = elementary.exp(2.0 / (1.0 + variation) * rarity)  # by arrivals, in clusters
    mean_seconds = piece * waits * gap * 0.5 * (variation + prompts)
    return Wait(mean=mean_seconds, probability=met, seconds_if_any=mean_seconds / met)


def first_token(
    server: Server, mean: Occupancy, clusters: Clusters, crowd: Crowd
) -> FirstToken:
    """Moments of a TTFT without the slot.

    While the budget does not bind, a prompt waits for the rest of the step in progress and is
    carried by the next, with all that arrived in the same step. A prompt that fills steps
    alone waits for half a decode step, and for those before it (`prefill_wait`).
    """
    prompts = server.prompt_tokens_cv * server.prompt_tokens_cv
    shared = _shared_step(server, mean, clusters, crowd)
    fill = mean.prompt_share
    decode = mean.fixed_seconds + mean.sequence_seconds * crowd.running
    step_wait = crowd.busy * ((1.0 - fill) * shared.seconds + fill * 0.5 * decode)
    square = (1.0 - fill) * (shared.seconds * shared.seconds + shared.variance)
    square = crowd.busy * (square + fill * decode * decode / 3.0)
    before = prefill_wait(server, mean, clusters)
    # A prompt that starts within a step ends within one: half a step more.
    chunks = mean.chunks + 0.5 * crowd.busy * (1.0 - 1.0 / mean.chunks)
    jitter = mean.sequence_seconds * mean.chunks
    variance = (
        square
        - step_wait * step_wait
        + before.mean * (2.0 * before.seconds_if_any - before.mean)
        + mean.prompt_seconds * mean.prompt_seconds * prompts
        + crowd.busy * jitter * jitter * crowd.running * crowd.variance
    )
    return FirstToken(
        own=chunks * decode + mean.prompt_seconds,
        step_wait=step_wait,
        prefill_wait=before.mean,
        variance=variance,
        third=_third_moment(server, mean, crowd, before, shared),
    )


def _shared_step(
    server: Server, mean: Occupancy, clusters: Clusters, crowd: Crowd
) -> SharedStep:
    """The rest of the step in progress, and prompts that arrive in it and share the next."""
    step, prompt, rate = mean.step_seconds, mean.prompt_seconds, mean.served_rate
    prefill = mean.prefill_utilisation
    prompts = 1.0 + server.prompt_tokens_cv * server.prompt_tokens_cv
    seen = step + crowd.step_variance / step  # biased to long steps
    third = prompt * prompt * prompt / (mean.chunks * mean.chunks)
    third = third * mean.requests_per_step * (3.0 * prompts - 2.0)
    third = third / (1.0 - prefill * prefill * prefill)
    cube = step * step + 3.0 * crowd.step_variance + third / step  # E[t^3] / E[t]
    companions = clusters.companions(seen)
    count = rate * seen * crowd.dispersion * crowd.dispersion
    count = count / (1.0 - prefill * prefill) + companions
    variance = (
        cube / 3.0
        - 0.25 * seen * seen
        + prompt * prompt * prompts * count
        + prefill * (1.0 + prefill) * elementary.maximum(cube - seen * seen, 0.0)
    )
    together = rate * seen + companions
    return SharedStep(
        seconds=0.5 * seen + prompt * together,
        variance=variance,
        seen=seen,
        together=together,
        count_variance=count,
    )


def _third_moment(
    server: Server,
    mean: Occupancy,
    crowd: Crowd,
    before: Wait,
    step: SharedStep,
) -> Scalar:
    """Third central moment of a TTFT without the slot: what makes its tail long.

    The rest of a step is uniform, or none with an idle server; prompts that share a step
    are like a gamma distribution; prompts before it make
    a wait that is zero or exponential.
    """
    fill, busy, prompt = mean.prompt_share, crowd.busy, mean.prompt_seconds
    squared = server.prompt_tokens_cv * server.prompt_tokens_cv
    cubed = prompt * prompt * prompt
    idle = 1.0 - busy
    rest = 0.25 * busy * idle * idle * step.seen * step.seen * step.seen
    long_steps = 0.25 * cubed * prompt * mean.requests_per_step / mean.step_seconds
    count = step.count_variance
    shared = 2.0 * cubed * (1.0 + 3.0 * squared) * count * count
    shared = shared / (step.together + SMALLEST) + long_steps
    waits, exponential = before.probability, before.seconds_if_any
    line = waits * (6.0 - waits * (6.0 - 2.0 * waits))
    line = line * exponential * exponential * exponential
    return rest + busy * (1.0 - fill) * shared + line + 2.0 * cubed * squared * squared


def quantiles(first: FirstToken, slot: Wait) -> tuple[Scalar, Scalar]:
    """The p50 and p99 of a TTFT: a shifted gamma distribution of given moments, and the slot.

    mean + deviation (2 / g) ((1 + z g / 6 - g^2 / 36)^3 - 1) with skew g (Wilson-Hilferty).
    Half of all requests wait less than the median of those that find a slot, as long as
    that is half of them. Deviations of independent parts add up in squares at the p99.
    """
    waited = first.step_wait + first.prefill_wait
    variance = elementary.maximum(first.variance, LEAST_VARIATION * waited * waited)
    deviation = elementary.sqrt(variance + SMALLEST * first.own * first.own)
    skew = first.third / (deviation * deviation * deviation)
    skew = elementary.clip(skew, LEAST_SKEW, MOST_SKEW)

    def quantile(normal: Scalar) -> Scalar:
        root = 1.0 + normal * skew / 6.0 - skew * skew / 36.0
        root = elementary.maximum(root, 0.0)
        beyond = 2.0 / skew * (root * root * root - 1.0)
        return elementary.maximum(waited + deviation * beyond, 0.0)

    def of_slot(beyond: float) -> Scalar:
        odds = elementary.log(slot.probability / beyond + SMALLEST)
        return slot.seconds_if_any * elementary.maximum(odds, 0.0)

    among = elementary.minimum(
        0.5 / (1.0 - elementary.minimum(slot.probability, 0.5)), 0.9
    )
    p50 = first.own + quantile(elementary.log(among / (1.0 - among)) / LOGIT_PER_NORMAL)
    p50 = p50 + of_slot(0.5)
    part = quantile(NORMAL_99) - waited
    other = elementary.maximum(of_slot(0.01) - slot.mean, 0.0)
    p99 = first.own + waited + slot.mean + elementary.sqrt(part * part + other * other)
    return p50, p99
