"""Every deployment of one model on one kind of GPU: layouts x batch x clock.

Which layouts an engine accepts is decided once for each, on the host; what depends on sizes
is a signed slack at every point: relative, negative where a limit is missed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.batch import Columns, evaluate
from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.hardware import Chip
from jaxlens.layouts import check_layout
from jaxlens.predictions import predict
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.shapes import Experts, ModelShape
from jaxlens.spaces import Space, choices, grid, integers, space
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float

MOST_STAGES = 8  # pipeline stages
# Sequences in flight per replica, in steps of half an octave and finer.
SEQUENCES = tuple(
    float(2**power * quarter / 4)
    for power in range(11)
    for quarter in (4, 5, 6, 7)
    if 2**power * quarter % 4 == 0 and 2**power * quarter <= 4096
)
LOWEST_CLOCK = 0.4  # of the highest
CLOCKS = 16
LAYOUT_CAPACITY = 256  # tables are padded to multiples of it, to keep shapes the same

REASONS = {
    "layout": "the engine does not accept the layout",
    "batch": "fewer sequences than pipeline stages",
    "memory": "does not fit in GPU memory",
    "ttft": "prefill takes longer than the TTFT limit",
    "tpot": "an output token takes longer than the TPOT limit",
}


@pytree
class Limits:
    """What a deployment must meet. TTFT is the time of one bare prefill."""

    ttft_seconds: Scalar = UNLIMITED
    tpot_seconds: Scalar = UNLIMITED


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of parallelism, and why an engine refuses them if it does."""

    tensor_parallel: int
    expert_parallel: int
    pipeline_parallel: int
    data_parallel: int
    problem: str = ""


@pytree
class Layouts:
    """Layouts as columns, for the device."""

    tensor_parallel: Float[np.ndarray, " layout"]
    expert_parallel: Float[np.ndarray, " layout"]
    pipeline_parallel: Float[np.ndarray, " layout"]
    data_parallel: Float[np.ndarray, " layout"]
    slack: Float[np.ndarray, " layout"]


@pytree
class Question:
    """What all configurations of a sweep have in common."""

    model: Model
    profile: Profile
    base: Deployment  # knobs that are not swept
    workload: Workload
    limits: Limits
    layouts: Layouts


def layouts(
    shape: ModelShape,
    chip: Chip,
    base: Deployment,
    most_gpus: int,
    *,
    network: bool = True,
) -> tuple[Layout, ...]:
    """Returns all layouts in powers of two on at most `most_gpus` GPUs.

    Experts are split like any other matrix, or spread over all tensor x data ranks.
    """
    powers = [2**power for power in range(most_gpus.bit_length())]
    routed = any(isinstance(feed, Experts) for feed in shape.feeds)
    found = []
    for tp, pp, dp in product(powers, powers, powers):
        if tp * pp * dp > most_gpus or pp > MOST_STAGES:
            continue
        for ep in sorted({1, tp * dp}) if routed else [1]:
            asked = replace(
                base,
                batch=UNLIMITED,
                tensor_parallel=float(tp),
                expert_parallel=float(ep),
                pipeline_parallel=float(pp),
                data_parallel=float(dp),
            )
            problems = check_layout(shape, chip, asked, network=network)
            found.append(
                Layout(
                    tensor_parallel=tp,
                    expert_parallel=ep,
                    pipeline_parallel=pp,
                    data_parallel=dp,
                    problem=problems[0] if problems else "",
                )
            )
    return tuple(found)


def deployment_space(layouts: tuple[Layout, ...]) -> Space:
    """Returns layouts x sequences per replica x clock, as a share of the highest."""
    return space(
        integers("layout", 0, len(layouts) - 1),
        choices("sequences", SEQUENCES),
        grid("clock_share", LOWEST_CLOCK, 1.0, CLOCKS),
    )


def sweep(
    model: Model,
    profile: Profile,
    base: Deployment,
    workload: Workload,
    limits: Limits,
    layouts: tuple[Layout, ...],
    progress: Callable[[int], None] | None = None,
) -> Columns:
    """Returns knobs, results and slacks of every deployment of `deployment_space`."""
    question = Question(
        model=model,
        profile=profile,
        base=base,
        workload=workload,
        limits=limits,
        layouts=_columns(layouts),
    )
    return evaluate(outcome, question, deployment_space(layouts), progress)


def outcome(question: Question, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns knobs, results and slacks of one deployment; scalar in, scalars out."""
    chip, limits = question.profile.chip, question.limits
    layout, knobs = _knobs(question, values)
    deployment = replace(question.base, **knobs)
    estimate = predict(question.model, question.profile, deployment, question.workload)
    prefill, token = estimate.seconds_prefill, estimate.seconds_per_output_token
    rate = estimate.output_tokens_per_second
    return {
        **knobs,
        "gpus": estimate.gpus,
        "seconds_prefill": prefill,
        "seconds_per_output_token": token,
        "output_tokens_per_second": rate,
        "output_tokens_per_second_per_gpu": rate / estimate.gpus,
        "joules_per_output_token": estimate.joules_per_output_token,
        "watts_per_gpu": estimate.watts_per_gpu,
        "capped_clock_hz": estimate.clock_hz,
        "memory_slack_bytes": estimate.memory_slack_bytes,
        "slack_layout": question.layouts.slack[layout],
        "slack_batch": values["sequences"] / knobs["pipeline_parallel"] - 1.0,
        "slack_memory": estimate.memory_slack_bytes / chip.hbm_bytes,
        "slack_ttft": 1.0 - prefill / limits.ttft_seconds,
        "slack_tpot": 1.0 - token / limits.tpot_seconds,
    }


def _knobs(
    question: Question, values: Mapping[str, Scalar]
) -> tuple[Array, dict[str, Scalar]]:
    """Position of the layout, and the knobs; the clock is one that can be locked."""
    chip, table = question.profile.chip, question.layouts
    layout = jnp.asarray(values["layout"]).astype(jnp.int32)
    above = values["clock_share"] * chip.max_hz - chip.min_hz
    steps = jnp.maximum(0.0, jnp.round(above / chip.step_hz))
    replicas = table.data_parallel[layout]
    return layout, {
        "batch": values["sequences"] * replicas,
        "tensor_parallel": table.tensor_parallel[layout],
        "expert_parallel": table.expert_parallel[layout],
        "pipeline_parallel": table.pipeline_parallel[layout],
        "data_parallel": replicas,
        "clock_hz": jnp.minimum(chip.max_hz, chip.min_hz + steps * chip.step_hz),
    }


def _columns(layouts: tuple[Layout, ...]) -> Layouts:
    padded = [*layouts, *layouts[-1:] * (-len(layouts) % LAYOUT_CAPACITY)]

    def column(name: str) -> np.ndarray:
        return np.array([getattr(layout, name) for layout in padded], np.float32)

    return Layouts(
        tensor_parallel=column("tensor_parallel"),
        expert_parallel=column("expert_parallel"),
        pipeline_parallel=column("pipeline_parallel"),
        data_parallel=column("data_parallel"),
        slack=np.array([-1.0 if layout.problem else 0.0 for layout in padded]),
    )
