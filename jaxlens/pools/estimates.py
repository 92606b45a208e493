"""Disaggregated serving: one pool of GPUs prefills, another decodes, KV caches move between.

Each pool has its own chip, layout, clock and batch, and a number of equal replicas that
requests reach at random; all of them may be real numbers. A request takes

    TTFT = prefill queue + prefill + transfer + decode queue + first decode step

and its other tokens pure decode steps. The KV cache of a prompt moves once: all GPUs of a
prefill replica send their share, all of a decode replica receive what they hold,

    t = alpha + max(bytes / (tp pp B_send), bytes per receiving GPU / B_receive) + wait,

with the network rate B of each GPU and the wait of a queue with fixed service, u / (2 (1 - u))
of the longer time. Its energy is the power of the links times that time on both sides: a
prior, as no measurement of it is public. Transfers layer by layer, which hide behind the
prefill, are not modelled: the transfer is exposed, the worst case. Clusters of arrivals pass
the prefill pool undamped, the worst case again.

Sources: Y. Zhong et al., "DistServe", OSDI 2024, https://arxiv.org/abs/2401.09670, and P. Patel
et al., "Splitwise", ISCA 2024, https://arxiv.org/abs/2311.18677: pools, and what moves.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.deployments import Deployment, Workload
from jaxlens.economics import MILLION, Tariff
from jaxlens.memory import memory, sequence_bytes
from jaxlens.power import static_watts
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.queueing import Arrivals, LoadEstimate, server_load
from jaxlens.queueing.crowding import per_gap
from jaxlens.queueing.occupancy import Server
from jaxlens.queueing.step_laws import StepLaw, decode_laws, prefill_laws
from jaxlens.serving import requested_clock
from jaxlens.smooth import smooth_max
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float

PORT_SOFTNESS = 0.01  # of the slower of sender and receiver


@pytree
class Pool:
    """Equal replicas of one deployment. Its batch is the limit of one replica."""

    profile: Profile
    deployment: Deployment
    replicas: Scalar = 1.0
    tariff: Tariff = Tariff()


@pytree
class PoolLoad:
    """One pool at its rate of requests; seconds to its part of the first token."""

    utilisation: Scalar
    capacity_requests_per_second: Scalar
    seconds: Scalar  # mean, until the prefill or the first decode step has ended
    seconds_p50: Scalar
    seconds_p99: Scalar
    seconds_waiting: Scalar  # of the mean: without its own steps
    seconds_per_output_token: Scalar
    seconds_per_output_token_p99: Scalar
    seconds_between_tokens_p99: Scalar
    running_sequences: Scalar
    watts_per_gpu: Scalar
    joules_per_request: Scalar
    memory_slack_bytes: Scalar
    gpus: Scalar  # over all replicas
    group_gpus: Scalar  # that hold one sequence
    port_seconds: Scalar  # for the KV cache of a prompt to pass its network adapters
    port_utilisation: Scalar
    network_seconds: Scalar  # startup of a message
    link_watts: Scalar  # of the GPUs that hold one sequence, while they send or receive
    kv_bytes: Scalar  # of one prompt, counted once
    wall_joules_per_request: Scalar
    dollars_per_request: Scalar


@pytree
class PoolsEstimate:
    """What two pools take and give at a rate of arrivals. Joules cover all GPUs."""

    prefill: PoolLoad
    decode: PoolLoad
    seconds_to_first_token: Scalar
    seconds_to_first_token_p50: Scalar
    seconds_to_first_token_p99: Scalar
    seconds_transfer: Scalar
    kv_bytes_per_request: Scalar
    seconds_per_output_token: Scalar
    seconds_per_output_token_p99: Scalar
    seconds_between_tokens_p99: Scalar
    capacity_requests_per_second: Scalar
    joules_per_output_token: Scalar
    joules_prefill_per_output_token: Scalar
    joules_decode_per_output_token: Scalar
    joules_transfer_per_output_token: Scalar
    wall_joules_per_output_token: Scalar
    dollars_per_million_output_tokens: Scalar
    gpus: Scalar
    watts: Scalar  # over all GPUs
    load_slack: Scalar  # of the busier pool: 1 - utilisation
    network_slack: Scalar  # of the busier side
    memory_slack_prefill_bytes: Scalar  # per GPU
    memory_slack_decode_bytes: Scalar


def predict_pools(
    model: Model, prefill: Pool, decode: Pool, workload: Workload, arrivals: Arrivals
) -> PoolsEstimate:
    """Returns the estimate of two pools: scalar in, scalars out, differentiable in all.

    Both pools must hold the same model in the same KV format.
    """
    first = prefill_load(model, prefill, workload, arrivals)
    return joined(
        first, decode_load(model, decode, workload, arrivals), workload, arrivals
    )


def balanced_replicas(
    load: PoolLoad, pool: Pool, arrivals: Arrivals, utilisation: Scalar = 0.7
) -> Scalar:
    """Returns how many replicas of a pool, a real number, take so much of their capacity."""
    each = load.capacity_requests_per_second / pool.replicas
    return arrivals.requests_per_second / (utilisation * each)


def prefill_load(
    model: Model, pool: Pool, workload: Workload, arrivals: Arrivals
) -> PoolLoad:
    """Returns a pool that prefills: a server whose requests end with their prompt."""
    alone = replace(workload, output_tokens=1.0, output_tokens_cv=0.0)
    seconds, joules = prefill_laws(model, pool.profile, pool.deployment, alone)
    prompt = jnp.maximum(workload.prompt_tokens, 1.0)
    server = _server(pool, seconds, prompt, arrivals, 1.0, 0.0)
    group = pool.deployment.tensor_parallel * pool.deployment.pipeline_parallel
    kv_bytes = sequence_bytes(model, Deployment(), workload.prompt_tokens)
    held = replace(workload, output_tokens=0.0)
    return _loaded(
        model, pool, server, joules, arrivals, held, kv_bytes, kv_bytes / group
    )


def decode_load(
    model: Model, pool: Pool, workload: Workload, arrivals: Arrivals
) -> PoolLoad:
    """Returns a pool that decodes: prompts come with their KV cache and cost nothing."""
    seconds, joules = decode_laws(model, pool.profile, pool.deployment, workload)
    outputs = jnp.maximum(workload.output_tokens, 1.0)
    plain = replace(arrivals, prompt_tokens_cv=0.0)
    server = _server(pool, seconds, 1.0, plain, outputs, workload.output_tokens_cv)
    kv_bytes = sequence_bytes(model, Deployment(), workload.prompt_tokens)
    received = sequence_bytes(model, pool.deployment, workload.prompt_tokens)
    return _loaded(model, pool, server, joules, arrivals, workload, kv_bytes, received)


def _server(
    pool: Pool,
    law: StepLaw,
    prompt: Scalar,
    arrivals: Arrivals,
    outputs: Scalar,
    spread: Scalar,
) -> Server:
    deployment = pool.deployment
    budget = jnp.minimum(deployment.chunk_tokens, pool.profile.stack.chunk_tokens)
    return Server(
        law=law,
        slots=deployment.batch
        / (deployment.data_parallel * deployment.pipeline_parallel),
        budget_tokens=budget,
        prompt_tokens=prompt,
        prompt_tokens_cv=arrivals.prompt_tokens_cv,
        output_tokens=outputs,
        output_tokens_cv=spread,
    )


def _loaded(
    model: Model,
    pool: Pool,
    server: Server,
    joules: StepLaw,
    arrivals: Arrivals,
    held: Workload,
    kv_bytes: Scalar,
    port_bytes: Scalar,
) -> PoolLoad:
    """A pool of `server`s; `held` is what a sequence keeps in memory there."""
    chip, layout = pool.profile.chip, pool.deployment
    groups = pool.replicas * layout.data_parallel
    group = layout.tensor_parallel * layout.pipeline_parallel
    gpus = groups * group
    found = _served(pool, server, joules, arrivals, gpus)
    per_request = found.joules_per_output_token * server.output_tokens
    wall, dollars = _economics(pool.tariff, per_request, found.watts_per_gpu)
    port = port_bytes / chip.network_bytes_per_s
    space = memory(model, chip, pool.profile.stack, layout, held)
    return PoolLoad(
        utilisation=found.utilisation,
        capacity_requests_per_second=found.capacity_requests_per_second,
        seconds=found.seconds_to_first_token,
        seconds_p50=found.seconds_to_first_token_p50,
        seconds_p99=found.seconds_to_first_token_p99,
        seconds_waiting=found.seconds_to_first_token - found.seconds_own_prefill,
        seconds_per_output_token=found.seconds_per_output_token,
        seconds_per_output_token_p99=found.seconds_per_output_token_p99,
        seconds_between_tokens_p99=found.seconds_between_tokens_p99,
        running_sequences=found.running_sequences,
        watts_per_gpu=found.watts_per_gpu,
        joules_per_request=per_request,
        memory_slack_bytes=space.slack_bytes,
        gpus=gpus,
        group_gpus=group,
        port_seconds=port,
        port_utilisation=arrivals.requests_per_second / groups * port,
        network_seconds=chip.network_seconds,
        link_watts=group * chip.link_watts,
        kv_bytes=kv_bytes,
        wall_joules_per_request=wall,
        dollars_per_request=dollars,
    )


def _served(
    pool: Pool, server: Server, joules: StepLaw, arrivals: Arrivals, gpus: Scalar
) -> LoadEstimate:
    """All servers of a pool under their random share of the arrivals."""
    chip, layout = pool.profile.chip, pool.deployment
    lanes = pool.replicas * layout.data_parallel * layout.pipeline_parallel
    return server_load(
        server,
        arrivals.requests_per_second / lanes,
        1.0 + (arrivals.burstiness - 1.0) / lanes,
        joules,
        static_watts(requested_clock(chip, layout), chip),
        lanes,
        gpus,
    )


def _economics(
    tariff: Tariff, joules: Scalar, watts_per_gpu: Scalar
) -> tuple[Scalar, Scalar]:
    """Joules at the wall and dollars, of what takes `joules` of the GPUs."""
    gpu_seconds = joules / watts_per_gpu
    wall = tariff.pue * (joules + tariff.host_watts * gpu_seconds)
    rent = gpu_seconds * tariff.dollars_per_gpu_second
    return wall, rent + wall * tariff.dollars_per_joule


def joined(
    prefill: PoolLoad, decode: PoolLoad, workload: Workload, arrivals: Arrivals
) -> PoolsEstimate:
    """Returns what two pools do together, element by element of their loads."""
    moved = smooth_max(prefill.port_seconds, decode.port_seconds, PORT_SOFTNESS)
    startup = jnp.maximum(prefill.network_seconds, decode.network_seconds)
    busiest = jnp.maximum(prefill.port_utilisation, decode.port_utilisation)
    transfer = startup + moved * (1.0 + 0.5 * busiest * per_gap(busiest))
    mean = prefill.seconds + transfer + decode.seconds
    tails = (prefill.seconds_p99 - prefill.seconds, decode.seconds_p99 - decode.seconds)
    tail = jnp.sqrt(tails[0] * tails[0] + tails[1] * tails[1])
    outputs = jnp.maximum(workload.output_tokens, 1.0)
    link_joules = moved * (prefill.link_watts + decode.link_watts)
    joules = prefill.joules_per_request + decode.joules_per_request + link_joules
    wall = prefill.wall_joules_per_request + decode.wall_joules_per_request
    dollars = prefill.dollars_per_request + decode.dollars_per_request
    capacity = jnp.minimum(
        prefill.capacity_requests_per_second, decode.capacity_requests_per_second
    )
    watts = (
        prefill.watts_per_gpu * prefill.gpus
        + decode.watts_per_gpu * decode.gpus
        + link_joules * jnp.minimum(arrivals.requests_per_second, capacity)
    )
    return PoolsEstimate(
        prefill=prefill,
        decode=decode,
        seconds_to_first_token=mean,
        seconds_to_first_token_p50=prefill.seconds_p50 + transfer + decode.seconds_p50,
        seconds_to_first_token_p99=mean + tail,
        seconds_transfer=transfer,
        kv_bytes_per_request=prefill.kv_bytes,
        seconds_per_output_token=decode.seconds_per_output_token,
        seconds_per_output_token_p99=decode.seconds_per_output_token_p99,
        seconds_between_tokens_p99=decode.seconds_between_tokens_p99,
        capacity_requests_per_second=capacity,
        joules_per_output_token=joules / outputs,
        joules_prefill_per_output_token=prefill.joules_per_request / outputs,
        joules_decode_per_output_token=decode.joules_per_request / outputs,
        joules_transfer_per_output_token=link_joules / outputs,
        wall_joules_per_output_token=(wall + link_joules) / outputs,
        dollars_per_million_output_tokens=MILLION * dollars / outputs,
        gpus=prefill.gpus + decode.gpus,
        watts=watts,
        load_slack=1.0 - jnp.maximum(prefill.utilisation, decode.utilisation),
        network_slack=1.0 - busiest,
        memory_slack_prefill_bytes=prefill.memory_slack_bytes,
        memory_slack_decode_bytes=decode.memory_slack_bytes,
    )
