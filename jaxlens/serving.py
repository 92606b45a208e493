"""Steady state of continuous batching: a mixture of steps, not one mean step.

B sequences decode in each step of a replica. A finished one is replaced, so B / O requests
arrive per step, and a share of the steps also carries prompts:

    phi = max_w(1 - exp(-B / O), prompt tokens per step / chunk budget)

The mean of a maximum is not the maximum of a mean: decode-only and mixed steps are priced
apart and averaged. A step takes the slower of GPU and host where the engine hides one behind
the other.
"""

from dataclasses import replace

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.deployments import Deployment, Workload
from jaxlens.hardware import Chip, Stack
from jaxlens.loads import Load
from jaxlens.power import (
    Draw,
    capped_slowdown,
    joules,
    switching,
)
from jaxlens.pytrees import pytree
from jaxlens.rooflines import Machine
from jaxlens.smooth import smooth_max, smooth_min
from jaxlens.steps import (
    Line,
    Lines,
    Phases,
    Placements,
    draw,
    items,
    lines,
    placements,
    total,
)
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float
MIXTURE_SOFTNESS = 0.01


@pytree
class StepCost:
    """What one step takes on each GPU, power cap and host included."""

    seconds: Scalar
    joules: Scalar
    clock_hz: Scalar
    static_joules: Scalar
    busy_joules: Scalar
    compute_joules: Scalar
    hbm_joules: Scalar
    kv_joules: Scalar
    link_joules: Scalar
    host_seconds: Scalar  # the part in which the GPUs wait for the host
    lines: Lines


def machine(chip: Chip, stack: Stack, deployment: Deployment) -> Machine:
    """Returns the chip and stack at the clock that a deployment asks for."""
    share = requested_clock(chip, deployment) / chip.boost_hz
    if not deployment.fused:
        slowed = 1.0 + stack.launch_clocked * (1.0 / share - 1.0)
        stack = replace(stack, kernel_seconds=stack.kernel_seconds * slowed)
        reached = chip.peak_fp32_flop_per_s * stack.fp32_reach
        chip = replace(chip, peak_fp32_flop_per_s=reached)
    return Machine(
        chip=chip,
        stack=stack,
        clock_share=share,
        sm_share=1.0,
        fused=deployment.fused,
    )


def requested_clock(chip: Chip, deployment: Deployment) -> Scalar:
    """Returns the clock before any power cap, within what the chip supports."""
    return elementary.clip(deployment.clock_hz, chip.min_hz, chip.max_hz)


def step(
    model: Model,
    chip: Chip,
    stack: Stack,
    deployment: Deployment,
    load: Load,
    phases: Phases,
    placed: Placements | None = None,
) -> StepCost:
    """Returns the cost of one engine step that carries `load`.

    `placed` are the `steps.placements` of the model, found here where not given.
    """
    asked = items(model, deployment, load, phases, placed)
    at_clock = machine(chip, stack, deployment)
    parts = lines(asked, at_clock, deployment.communication_sms)
    host = host_seconds(stack, deployment, load, model.launches)
    return settle(total(parts.values()), parts, host, chip, stack, deployment)


def settle(
    line: Line,
    parts: Lines,
    host: Scalar,
    chip: Chip,
    stack: Stack,
    deployment: Deployment,
) -> StepCost:
    """Returns a step of which `line` is the sum, as host and power cap leave it."""
    clock = requested_clock(chip, deployment)
    cap = elementary.minimum(deployment.power_cap_watts, chip.tdp_watts)
    need = _with_host(draw(line, stack.gap_power), host, stack)
    slowdown = capped_slowdown(need, clock, cap, chip)
    joules_total, static, busy = joules(need, slowdown, clock, chip)
    return StepCost(
        seconds=need.seconds + need.clocked_seconds * (1.0 / slowdown - 1.0),
        joules=joules_total,
        clock_hz=clock * slowdown,
        static_joules=static,
        busy_joules=busy,
        compute_joules=line.flop_joules * switching(clock * slowdown, chip),
        hbm_joules=line.hbm_joules,
        kv_joules=line.kv_joules,
        link_joules=line.link_joules,
        host_seconds=need.seconds - line.seconds,
        lines=parts,
    )


def host_seconds(
    stack: Stack, deployment: Deployment, load: Load, launches: Scalar = 0.0
) -> Scalar:
    """Returns CPU time of one step: scheduling, sampling parameters, detokenising.

    Where nothing is fused, the host also makes all `launches` of a step, one by one.
    """
    sequences = (
        load.decode_sequences + load.prefill_sequences
    ) * deployment.pipeline_parallel
    gpus = deployment.tensor_parallel * deployment.pipeline_parallel
    seconds = (
        stack.host_step_seconds
        + stack.host_sequence_seconds * sequences
        + stack.host_prompt_seconds * load.prefill_sequences
        + stack.host_gpu_seconds * (gpus - 1.0)
    )
    if deployment.fused:
        return seconds
    return seconds + stack.host_launch_seconds * launches


def _with_host(need: Draw, host: Scalar, stack: Stack) -> Draw:
    """Adds the host's time as far as the GPU does not hide it; GPUs draw gap power."""
    seconds = smooth_max(need.seconds, host, stack.host_exposed)
    waiting = seconds - need.seconds
    return Draw(
        seconds=seconds,
        clocked_seconds=need.clocked_seconds,
        active_seconds=need.active_seconds + stack.gap_power * waiting,
        flop_joules=need.flop_joules,
        memory_joules=need.memory_joules,
        link_joules=need.link_joules,
    )


@pytree
class Traffic:
    """What the steps of a deployment carry at steady state."""

    prefill: Load  # the mean chunk of one prompt alone
    prefill_chunks: Scalar
    decode: Load
    mixed: Load
    mixed_share: Scalar  # of the steps


@pytree
class Serving:
    """A deployment at steady state: the steps, their mixture, and one bare prefill."""

    traffic: Traffic
    prefill: StepCost
    decode: StepCost
    mixed: StepCost
    seconds_per_step: Scalar
    joules_per_step: Scalar  # per GPU


def serve(
    model: Model, chip: Chip, stack: Stack, deployment: Deployment, workload: Workload
) -> Serving:
    """Returns steps and mixture of a deployment under a steady workload."""
    carried = traffic(stack, deployment, workload)
    loads = (carried.decode, carried.mixed, carried.prefill)
    placed = placements(model, deployment, *loads)

    def price(load: Load, *phases: str) -> StepCost:
        return step(model, chip, stack, deployment, load, phases, placed)

    decode = price(carried.decode, "decode")
    mixed = price(carried.mixed, "decode", "prefill")
    share = carried.mixed_share
    return Serving(
        traffic=carried,
        prefill=price(carried.prefill, "prefill"),
        decode=decode,
        mixed=mixed,
        seconds_per_step=decode.seconds + share * (mixed.seconds - decode.seconds),
        joules_per_step=decode.joules + share * (mixed.joules - decode.joules),
    )


def traffic(stack: Stack, deployment: Deployment, workload: Workload) -> Traffic:
    """Returns what the steps carry, and how many of them carry prompts."""
    prompt = elementary.maximum(workload.prompt_tokens, 1.0)
    budget = elementary.minimum(deployment.chunk_tokens, stack.chunk_tokens)
    replicas = deployment.data_parallel * deployment.pipeline_parallel
    sequences = deployment.batch / replicas
    chunks = elementary.maximum(1.0, prompt / budget)
    context = decode_context(workload)
    arrivals = sequences / workload.output_tokens  # requests per step
    needed = arrivals * prompt / budget
    share = smooth_max(1.0 - elementary.exp(-arrivals), needed, MIXTURE_SOFTNESS)
    share = smooth_min(share, 1.0, MIXTURE_SOFTNESS)
    return Traffic(
        prefill=_carrying(prompt, chunks, 1.0, 0.0, 0.0),
        prefill_chunks=chunks,
        decode=Load(
            decode_sequences=sequences, decode_context=context, emitting=sequences
        ),
        mixed=_carrying(prompt, chunks, arrivals / share * chunks, sequences, context),
        mixed_share=share,
    )


def _carrying(
    prompt: Scalar, chunks: Scalar, pieces: Scalar, sequences: Scalar, context: Scalar
) -> Load:
    """A step with `pieces` of prompts that are cut into `chunks`, beside `sequences`."""
    queries = prompt / chunks
    return Load(
        decode_sequences=sequences,
        decode_context=context,
        prefill_sequences=pieces,
        prefill_tokens=queries,
        prefill_past=0.5 * (prompt - queries),
        emitting=sequences + pieces / chunks,
    )


def decode_context(workload: Workload) -> Scalar:
    """Returns mean tokens in the cache of a decoding sequence, weighed by time.

    Long outputs stay longer: prompt + E[o^2] / (2 E[o]) = prompt + o (1 + cv^2) / 2.
    """
    spread = 1.0 + workload.output_tokens_cv * workload.output_tokens_cv
    return workload.prompt_tokens + 0.5 * workload.output_tokens * spread
