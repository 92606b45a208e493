"""Replicas of one model that share one GPU, as a closed queue.

A replica alternates between the GPU, for S seconds a step, and what no other replica waits
for: Z seconds in which its host schedules, samples and starts kernels. DRAM and compute time
of all replicas add up on the GPU; Z of one is filled by the work of the others. With R
replicas, each step takes the cycle

    C = max_w(R S, Z),    w = 1 / R

which is S + Z alone and the slower of both for many: the mean value of a closed network of R
customers, one shared server and a private delay each, in Schweitzer's approximation
(`smooth.smooth_max` is the root of its quadratic equation). Power is static once, and the
energy of the work R times:

    E = P_static C + P_busy (R t_active + gap (C - R S)) + R (E_flop + E_memory + E_link)

Smooth in a relaxed number of replicas R >= 1. No coefficient is fitted to replicated runs.

Sources: M. Reiser, S. Lavenberg, "Mean-Value Analysis of Closed Multichain Queuing Networks",
J. ACM 27(2), 1980; P. Schweitzer, "Approximate Analysis of Multiclass Closed Networks of
Queues", Int. Conf. Stochastic Control and Optimization, 1979. Replication of small models on
one GPU: Recasens et al., "Mind the Memory Gap", 2025, arXiv 2503.08311.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.hardware import Chip
from jaxlens.power import Draw, capped_slowdown, joules
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.serving import StepCost, requested_clock, serve
from jaxlens.smooth import smooth_max
from jaxlens.steps import draw, total
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float

SHORTEST = 1e-12  # seconds: shorter waits count as none


@pytree
class Anchor:
    """What a measured run of one replica says beyond a profile; nothing by default."""

    host_seconds_per_sequence: Scalar = 0.0  # of a step, that no kernel hides
    work_joules_ratio: Scalar = 1.0  # measured energy above static over the predicted


@pytree
class Lone:
    """One kind of step of one replica that has the GPU for itself."""

    work: Draw  # on the GPU, without any waiting
    host_seconds: Scalar  # in which the GPU has nothing of this replica to do
    gap_power: Scalar  # share of the busy floor drawn meanwhile


@pytree
class Replica:
    """The steps of one replica: decode-only ones, and those that carry prompts too."""

    sequences: Scalar
    decode: Lone
    mixed: Lone
    mixed_share: Scalar  # of the steps


@pytree
class Sharing:
    """What replicas that share a GPU take and give together."""

    seconds_per_output_token: Scalar  # of each sequence: a step of its replica
    output_tokens_per_second: Scalar
    joules_per_output_token: Scalar
    watts_per_gpu: Scalar
    busy_share: Scalar  # of the time, in which the GPU has work
    clock_hz: Scalar


def replica(
    model: Model,
    profile: Profile,
    deployment: Deployment,
    workload: Workload,
    anchor: Anchor | None = None,
) -> Replica:
    """Returns the steps of one replica of a deployment, without a power cap."""
    chip, stack, known = profile.chip, profile.stack, anchor or Anchor()
    open_power = replace(deployment, power_cap_watts=UNLIMITED)
    served = serve(model, chip, stack, open_power, workload)
    sequences = served.traffic.decode.decode_sequences
    extra = known.host_seconds_per_sequence * sequences

    def lone(cost: StepCost) -> Lone:
        work = draw(total(cost.lines.values()), stack.gap_power)
        alone = Lone(
            work=_scaled(work, known.work_joules_ratio),
            host_seconds=cost.host_seconds,
            gap_power=stack.gap_power,
        )
        return _waiting(alone, extra)

    return Replica(
        sequences=sequences,
        decode=lone(served.decode),
        mixed=lone(served.mixed),
        mixed_share=served.traffic.mixed_share,
    )


def shared(one: Replica, count: Scalar, chip: Chip, deployment: Deployment) -> Sharing:
    """Returns what `count` replicas of `one` do together; at least 1, may be relaxed.

    Steps of either kind are shared with others of their kind and averaged, so that a
    single replica is the deployment that `predict` answers for.
    """
    decode, mixed = (
        _round(step, count, chip, deployment) for step in (one.decode, one.mixed)
    )
    mean = jax.tree.map(lambda a, b: a + one.mixed_share * (b - a), decode, mixed)
    seconds, energy, busy, clocked = mean
    tokens = count * one.sequences
    return Sharing(
        seconds_per_output_token=seconds,
        output_tokens_per_second=tokens / seconds,
        joules_per_output_token=energy * deployment.tensor_parallel / tokens,
        watts_per_gpu=energy / seconds,
        busy_share=busy / seconds,
        clock_hz=clocked,
    )


def _round(
    one: Lone, count: Scalar, chip: Chip, deployment: Deployment
) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """A step of each replica: seconds, joules of a GPU, its busy seconds and its clock."""
    work = one.work
    busy = count * work.seconds
    cycle, along = jax.jvp(
        lambda seconds: smooth_max(seconds, one.host_seconds, 1.0 / count),
        (busy,),
        (jnp.ones_like(busy),),
    )
    need = Draw(
        seconds=cycle,
        # Of what a lower clock adds, hosts hide a part.
        clocked_seconds=along * count * work.clocked_seconds,
        active_seconds=count * work.active_seconds + one.gap_power * (cycle - busy),
        flop_joules=count * work.flop_joules,
        memory_joules=count * work.memory_joules,
        link_joules=count * work.link_joules,
    )
    clock = requested_clock(chip, deployment)
    cap = jnp.minimum(deployment.power_cap_watts, chip.tdp_watts)
    slowdown = capped_slowdown(need, clock, cap, chip)
    energy, _, _ = joules(need, slowdown, clock, chip)
    stretch = 1.0 / slowdown - 1.0
    seconds = cycle + need.clocked_seconds * stretch
    busy = busy + count * work.clocked_seconds * stretch
    return seconds, energy, jnp.minimum(busy, seconds), clock * slowdown


def anchored(
    one: Replica,
    seconds_per_output_token: Scalar,
    watts_per_gpu: Scalar | None,
    chip: Chip,
    deployment: Deployment,
) -> Anchor:
    """Returns what a measured run of one replica, alone, adds to its prediction `one`.

    Time that the prediction misses is the host's, goes with the sequences and draws static
    power alone; energy that it misses then goes with the work. Neither says anything of a
    second replica.
    """
    host = one.decode.host_seconds
    host = host + one.mixed_share * (one.mixed.host_seconds - host)
    alone = shared(one, 1.0, chip, deployment)
    missing = seconds_per_output_token - alone.seconds_per_output_token
    extra = jnp.maximum(missing, -host)
    found = Anchor(host_seconds_per_sequence=extra / one.sequences)
    if watts_per_gpu is None:
        return found
    slower = _steps(one, lambda step: _waiting(step, extra))
    idle = _steps(slower, lambda step: replace(step, work=_scaled(step.work, 0.0)))
    full, least = (
        shared(case, 1.0, chip, deployment).joules_per_output_token
        for case in (slower, idle)
    )
    gpus = deployment.tensor_parallel
    measured = watts_per_gpu * gpus * seconds_per_output_token / one.sequences
    ratio = jnp.maximum((measured - least) / (full - least), 0.0)
    return replace(found, work_joules_ratio=ratio)


def _steps(one: Replica, change: Callable[[Lone], Lone]) -> Replica:
    return replace(one, decode=change(one.decode), mixed=change(one.mixed))


def _waiting(one: Lone, seconds: Scalar) -> Lone:
    """A step that waits longer for its host, with nothing in flight meanwhile."""
    waits = jnp.maximum(one.host_seconds + seconds, 0.0)
    drawn = jnp.minimum(one.host_seconds, waits) / (waits + SHORTEST)
    return replace(one, host_seconds=waits, gap_power=one.gap_power * drawn)


def _scaled(work: Draw, ratio: Scalar) -> Draw:
    return replace(
        work,
        flop_joules=work.flop_joules * ratio,
        memory_joules=work.memory_joules * ratio,
        link_joules=work.link_joules * ratio,
    )
