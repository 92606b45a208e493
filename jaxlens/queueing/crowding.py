"""Sequences that decode at a given load: as a token, an arrival and the time see them.

Clustered arrivals have gaps of squared variation c^2 and count as a hyperexponential renewal
process with balanced means: counts in a time T have a variance over mean of
1 + (c^2 - 1) u / (2 + u) with u = 2 rate T / (1 + c^2), so short steps hardly see clusters that
long queues feel in full.

Source: W. Whitt, "The Queueing Network Analyzer", Bell System Technical Journal 62(9), 1983.
"""

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.pytrees import pytree
from jaxlens.queueing.occupancy import Occupancy, Server
from jaxlens.smooth import smooth_min

Scalar = Float[Array, ""] | float

NEAR_FULL = 0.99  # utilisation from which waits grow along their tangent
SOFTNESS = 0.01
SMALLEST = 1e-6
# Slow periods, in which prompts queue, hold more sequences than fast ones: their length
# as a share of relaxation times. Fitted to the simulation in the tests.
BACKLOG_PERIOD = 0.4
STEP_PERIOD = 0.7


class Clusters:
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
class Crowd:
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


def crowd(server: Server, mean: Occupancy, clusters: Clusters) -> Crowd:
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
    gap = per_gap(mean.budget_utilisation)
    fill = mean.prompt_share
    piece = mean.prompt_seconds + mean.fixed_seconds * steps_filled(mean)
    period = BACKLOG_PERIOD * elementary.sqrt(fill * gap) * gap * piece
    period = period + STEP_PERIOD * (1.0 - fill) * step / (alone * alone)
    period = 0.5 * (1.0 + clusters.squared_variation) * period
    slowness = period / (period + outputs * step) * prompts / (step * step)
    token = even * (1.0 + slowness)
    running = mean.served_rate * (outputs - 1.0) * token
    running = smooth_min(running + SMALLEST, server.slots, SOFTNESS)
    prefill = mean.chunks * mean.fixed_seconds + mean.prompt_seconds
    per_sequence = mean.sequence_seconds * mean.sequence_seconds
    return Crowd(
        token_seconds=token,
        running=running,
        variance=variance + mean.sequences * slowness,
        skew=2.0 - (2.0 - 1.0 / cluster) / mean.crowding,
        cluster=cluster,
        slowness=slowness,
        busy=1.0 - elementary.exp(-running / cluster - mean.served_rate * prefill),
        step_variance=prompts + per_sequence * mean.sequences * variance,
        dispersion=dispersion,
    )


def _prompt_variance(server: Server, mean: Occupancy, dispersion: Scalar) -> Scalar:
    """Variance of a step's seconds due to the prompts that it carries.

    Their number is that of the arrivals in the step before: a branching process,
    s^2 x / (1 - (rate s)^2). Prompts that fill steps alone are one or none.
    """
    carrying = elementary.minimum(mean.requests_per_step * mean.chunks, 1.0)
    fill = mean.prompt_share
    each = mean.prompt_seconds * mean.prompt_seconds / mean.chunks
    each = each * (1.0 + server.prompt_tokens_cv * server.prompt_tokens_cv)
    counted = elementary.maximum(dispersion - fill * carrying, 0.02)
    prefill = mean.prefill_utilisation
    memory = 1.0 - (1.0 - fill) * prefill * prefill
    return each * mean.requests_per_step * counted / memory


def steps_filled(mean: Occupancy) -> Scalar:
    """Share of a step's budget that a prompt takes, or how many steps it fills."""
    return mean.prompt_share * mean.chunks


def per_gap(utilisation: Scalar) -> Scalar:
    """Returns 1 / (1 - u), along its tangent from `NEAR_FULL` on: finite in overload."""
    top = 1.0 / (1.0 - NEAR_FULL)
    below = 1.0 / (1.0 - elementary.minimum(utilisation, NEAR_FULL))
    return below + elementary.maximum(utilisation - NEAR_FULL, 0.0) * top * top
