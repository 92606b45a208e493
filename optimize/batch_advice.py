"""The batch that serves most under an SLO and a least efficiency, and replicas beside it.

    B_opt = argmax T(B)    with T(B) / (B T(1)) > efficiency, TPOT(B) <= SLO, memory

Past the knee of its throughput a batch grows the KV cache and the latency, and little else.
The memory that B_opt leaves free may hold further replicas of the model on the same GPU.

Source: the Batching Configuration Advisor of Recasens et al., "Mind the Memory Gap: Unveiling
GPU Bottlenecks in Large-Batch LLM Inference", 2025, https://arxiv.org/abs/2503.08311.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from jaxlens.hardware import Chip
from jaxlens.memory import Memory, memory
from jaxlens.optimize.throughput_curves import Curve, MeasuredRun, throughput_curves
from jaxlens.requests import Request, largest_batch

EFFICIENCY = 0.1
MOST_SEQUENCES = 1024
MOST_REPLICAS = 8
WORTH = 0.02  # of throughput: a further replica that adds less is not advised


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """So many replicas of one batch on one GPU, and what they change against a single one."""

    count: int
    batch: int  # of each
    output_tokens_per_second: float
    seconds_per_output_token: float
    joules_per_output_token: float
    watts_per_gpu: float
    busy_share: float
    throughput_gain: float  # over one replica of B_opt
    joules_change: float
    memory_bytes: float  # of all replicas
    memory_share: float  # of the GPU's memory, each


@dataclass(frozen=True, kw_only=True)
class BatchAdvice:
    """B_opt, what holds it there, the memory that it frees and what to do with it."""

    request: Request  # with the advised batch
    batch: int
    reason: str  # "throughput", "efficiency", "TPOT", "memory" or "most"
    curve: Curve
    single_tokens_per_second: float  # T(1)
    tpot_seconds: float | None
    efficiency: float
    largest_batch: int  # that fits in memory, at most the one asked about
    memory: Memory
    kv_bytes_freed: float  # against the largest batch
    replicas: tuple[Replicas, ...]
    advised: Replicas
    notes: tuple[str, ...]


def advise_batch(
    request: Request,
    *,
    tpot_seconds: float | None = None,
    tpot_ratio: float | None = None,
    efficiency: float = EFFICIENCY,
    most_sequences: int = MOST_SEQUENCES,
    most_replicas: int = MOST_REPLICAS,
    measured: MeasuredRun | None = None,
) -> BatchAdvice:
    """Returns the batch of most throughput within limits, and replicas that fit beside it.

    Args:
        request: Model, GPU, stack, traffic and one layout without data parallelism.
        tpot_seconds: Longest mean time per output token.
        tpot_ratio: The same as a multiple of that of one sequence; the stricter counts.
        efficiency: Least T(B) / (B T(1)).
        most_sequences: Largest batch of a replica to consider.
        most_replicas: Most replicas on one GPU.
        measured: A run of one replica that predictions are to meet.

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    _check(request, efficiency, most_sequences, most_replicas, tpot_seconds, tpot_ratio)
    asked = _with_batch(request, most_sequences)
    fits = largest_batch(asked)
    if not fits:
        raise ValueError(
            f"memory: expected {request.shape.name} to fit with one sequence, but it "
            f"does not; take more GPUs or a smaller number format."
        )
    curves = throughput_curves(request, fits, most_replicas, measured)
    curve = curves[0]
    slo = _slo(curve, tpot_seconds, tpot_ratio)
    position = _best(curve, slo, efficiency)
    if position is None:
        raise ValueError(
            f"TPOT: expected a limit that one sequence meets, got "
            f"{1e3 * slo:.3g} ms; alone it takes "
            f"{1e3 * float(curve.seconds_per_output_token[0]):.3g} ms: loosen it."
        )
    chosen = int(curve.batch[position])
    held = _memory(asked, chosen)
    shares = _replicas(asked, curves, position, slo)
    return BatchAdvice(
        request=_with_batch(request, chosen),
        batch=chosen,
        reason=_reason(curve, position, slo, efficiency, most_sequences),
        curve=curve,
        single_tokens_per_second=float(curve.output_tokens_per_second[0]),
        tpot_seconds=None if slo == math.inf else slo,
        efficiency=efficiency,
        largest_batch=fits,
        memory=held,
        kv_bytes_freed=float(_memory(asked, fits).kv_bytes) - float(held.kv_bytes),
        replicas=shares,
        advised=_advised(shares),
        notes=_notes(request, shares, measured),
    )


def _slo(curve: Curve, seconds: float | None, ratio: float | None) -> float:
    alone = float(curve.seconds_per_output_token[0])
    relative = math.inf if ratio is None else ratio * alone
    return min(math.inf if seconds is None else seconds, relative)


def _best(curve: Curve, slo: float, efficiency: float) -> int | None:
    allowed = (curve.seconds_per_output_token <= slo) & (curve.efficiency > efficiency)
    if not allowed.any():
        return None
    return int(np.argmax(np.where(allowed, curve.output_tokens_per_second, 0.0)))


def _reason(
    curve: Curve, position: int, slo: float, efficiency: float, most: int
) -> str:
    """What stops a larger batch."""
    if position + 1 == len(curve.batch):
        return "most" if len(curve.batch) == most else "memory"
    if curve.seconds_per_output_token[position + 1] > slo:
        return "TPOT"
    return (
        "efficiency" if curve.efficiency[position + 1] <= efficiency else "throughput"
    )


def _replicas(
    request: Request, curves: list[Curve], position: int, slo: float
) -> tuple[Replicas, ...]:
    """Replicas that fit, each with at most B_opt sequences: fewer where the SLO asks.

    The list ends with the first number of replicas that serves less than one fewer.
    """
    chip, stack = request.profile.chip, request.profile.stack
    budget = float(chip.hbm_bytes) * float(stack.memory_share)
    found: list[Replicas] = []
    for count, curve in enumerate(curves, start=1):
        meets = curve.seconds_per_output_token[: position + 1] <= slo
        speed = curve.output_tokens_per_second[: position + 1]
        best = int(np.argmax(np.where(meets, speed, 0.0)))
        held = budget - float(_memory(request, best + 1.0).slack_bytes)
        if not meets.any() or count * held > budget:
            break
        found.append(_setting(count, curve, best, curves[0], position, held, chip))
        if len(found) > 1 and speed[best] < found[-2].output_tokens_per_second:
            break
    return tuple(found)


def _setting(
    count: int,
    curve: Curve,
    best: int,
    alone: Curve,
    position: int,
    held_bytes: float,
    chip: Chip,
) -> Replicas:
    speed = float(curve.output_tokens_per_second[best])
    energy = float(curve.joules_per_output_token[best])
    return Replicas(
        count=count,
        batch=best + 1,
        output_tokens_per_second=speed,
        seconds_per_output_token=float(curve.seconds_per_output_token[best]),
        joules_per_output_token=energy,
        watts_per_gpu=float(curve.watts_per_gpu[best]),
        busy_share=float(curve.busy_share[best]),
        throughput_gain=speed / float(alone.output_tokens_per_second[position]) - 1.0,
        joules_change=energy / float(alone.joules_per_output_token[position]) - 1.0,
        memory_bytes=count * held_bytes,
        memory_share=held_bytes / float(chip.hbm_bytes),
    )


def _advised(shares: tuple[Replicas, ...]) -> Replicas:
    """The fewest replicas from which on no number of them adds what is worth it."""
    most = max(share.output_tokens_per_second for share in shares)
    enough = most / (1.0 + WORTH)
    return next(s for s in shares if s.output_tokens_per_second >= enough)


def _memory(request: Request, sequences: float) -> Memory:
    deployment = replace(request.deployment, batch=float(sequences))
    chip, stack = request.profile.chip, request.profile.stack
    return memory(request.model, chip, stack, deployment, request.workload)


def _with_batch(request: Request, sequences: float) -> Request:
    return replace(
        request, deployment=replace(request.deployment, batch=float(sequences))
    )


def _notes(
    request: Request, shares: tuple[Replicas, ...], measured: MeasuredRun | None
) -> tuple[str, ...]:
    found = []
    if len(shares) > 1:
        found.append(
            "replicas on one GPU are physics alone: no coefficient is fitted to such runs"
        )
    if measured is None:
        host = request.card.coefficients["stack.host_sequence_seconds"]
        if len(shares) > 1 and host.origin != "fitted":
            found.append(
                "what replicas gain rests on the host's time, a prior of this stack: "
                "measure one run of one replica"
            )
    return tuple(found)


def _check(
    request: Request,
    efficiency: float,
    most_sequences: int,
    most_replicas: int,
    tpot_seconds: float | None,
    tpot_ratio: float | None,
) -> None:
    layout = request.deployment
    if float(layout.data_parallel) != 1.0 or float(layout.pipeline_parallel) != 1.0:
        raise ValueError(
            "layout: expected one replica without pipeline stages, got "
            f"dp {float(layout.data_parallel):g} and pp "
            f"{float(layout.pipeline_parallel):g}; replicas on GPUs of their own share "
            "nothing: ask for one."
        )
    if not 0.0 <= efficiency < 1.0:
        raise ValueError(
            f"efficiency: expected a share from 0 to below 1, got {efficiency:g}; 0.1 "
            f"asks for a tenth of the throughput that B lone sequences would have."
        )
    for name, number in (
        ("most sequences", most_sequences),
        ("most replicas", most_replicas),
    ):
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {number}.")
    for name, limit in (("TPOT", tpot_seconds), ("TPOT ratio", tpot_ratio)):
        if limit is not None and not limit > 0.0:
            raise ValueError(f"{name}: expected a limit above 0, got {limit:g}.")
