"""Measured serving runs as the loads that they put on an engine."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.stacked_steps import (
    StackedStep,
    line,
    stacked_step,
    widened,
)
from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.hardware import Chip, Stack
from jaxlens.loading import load_model
from jaxlens.loads import Load
from jaxlens.pytrees import pytree
from jaxlens.rooflines import Machine
from jaxlens.serving import (
    StepCost,
    Traffic,
    host_seconds,
    machine,
    settle,
    traffic,
)
from jaxlens.steps import Item, items
from jaxlens.transformers import Model

Rows = Float[Array, " row"]

GROUP_ROWS = 64
# What runs for a second and would compile for a minute: cheap code is the faster one.
QUICK_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


@pytree
class ServingRows:
    """Rows of serving tables, ready to be priced with any coefficients.

    Decode-only and mixed steps are stacked, one after the other, so that both are priced
    by one pass: leaves of `steps`, `loads` and `deployments` have twice as many rows.
    """

    deployments: Deployment
    steps: StackedStep
    loads: Load
    mixed_share: Rows


@pytree
class ServingPrediction:
    """What a model says of every row."""

    seconds_per_step: Rows  # = concurrency / output tokens per second
    joules_per_output_token: Rows
    seconds_decode_step: Rows
    watts: Rows  # all GPUs


def deployment_of(table: Table) -> Deployment:
    """Returns the layout, batch and clock of each row."""
    ones: Any = np.ones(len(table))

    def column(name: str, default: float) -> Any:
        if not table.has(name):
            return np.full(len(table), default)
        values = np.asarray(table[name], float)
        return np.where(np.isnan(values), default, values)

    batch = column("concurrency", np.nan)
    # Less than one sequence in flight happens between requests; the step still has one.
    return Deployment(
        batch=np.maximum(batch, 1.0),
        tensor_parallel=column("tensor_parallel", 1.0),
        expert_parallel=column("expert_parallel", 1.0),
        pipeline_parallel=column("pipeline_parallel", 1.0),
        data_parallel=column("data_parallel", 1.0),
        clock_hz=column("sm_clock_hz", UNLIMITED),
        power_cap_watts=column("power_cap_watts", UNLIMITED),
        communication_sms=column("communication_sms", 20.0),
        stages=ones,
        chunk_tokens=column("chunk_tokens", UNLIMITED),
        routing_skew=0.0 * ones,
    )


def workload_of(table: Table) -> Workload:
    """Returns the lengths of each row.

    A benchmark ends with its requests: a window of it does not see long outputs more often
    than short ones, as an endless queue would. The spread of lengths has no say.
    Measured: ML.ENERGY leaderboard v3 (2025), where energy of long outputs on B200 is 10 %
    lower than with that bias.
    """
    prompt: Any = np.asarray(table["prompt_tokens"], float)
    output: Any = np.asarray(table["output_tokens"], float)
    return Workload(
        prompt_tokens=prompt, output_tokens=output, output_tokens_cv=0.0 * output
    )


def serving_rows(table: Table, stacks: Mapping[str, Stack]) -> ServingRows:
    """Returns the rows of a serving table; row order is that of the table.

    Args:
        table: Rows of the kind `serving`.
        stacks: Stack by id, for its token budget.
    """
    deployment, workload = deployment_of(table), workload_of(table)
    keys = list(
        zip(
            _words(table, "model"),
            _words(table, "weight_dtype"),
            _words(table, "kv_dtype"),
            _words(table, "stack"),
            strict=True,
        )
    )
    order, decode_groups, mixed_groups, carried_parts = [], [], [], []
    for key in dict.fromkeys(keys):
        chosen = np.array([i for i, other in enumerate(keys) if other == key])
        # One compilation for each program: groups are padded, and asked part by part.
        padded = np.resize(chosen, -(-len(chosen) // GROUP_ROWS) * GROUP_ROWS)
        model = load_model(key[0], weights=key[1] or None, kv=key[2] or None)
        local = jax.tree.map(lambda leaf, rows=padded: leaf[rows], deployment)
        lengths = jax.tree.map(lambda leaf, rows=padded: leaf[rows], workload)
        parts = [
            _asked(model, stacks[key[3]], *_part((local, lengths), first))
            for first in range(0, len(padded), GROUP_ROWS)
        ]
        carried, decode, mixed = jax.tree.map(
            lambda *leaves: np.concatenate(leaves), *parts
        )
        decode_groups.append((decode, len(padded)))
        mixed_groups.append((mixed, len(padded)))
        carried_parts.append(carried)
        order.append(np.where(np.arange(len(padded)) < len(chosen), padded, len(keys)))
    back = np.argsort(np.concatenate(order), kind="stable")[: len(keys)]
    carried = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves)[back], *carried_parts
    )
    decode, mixed = stacked_step(decode_groups), stacked_step(mixed_groups)
    width = mixed.layers.shape[1]
    steps = _twice(lambda a, b: (a[back], b[back]), widened(decode, width), mixed)
    return ServingRows(
        deployments=_twice(lambda a, b: (a, b), deployment, deployment),
        steps=steps,
        loads=_twice(lambda a, b: (a, b), carried.decode, carried.mixed),
        mixed_share=carried.mixed_share,
    )


def _words(table: Table, name: str) -> list[str]:
    """A column of words; empty ones where the table lacks it."""
    if name not in table.columns:
        return [""] * len(table)
    return [str(word) for word in table[name]]


def _twice(pair: Callable[..., tuple[Any, Any]], first: Any, second: Any) -> Any:
    """Leaves of both trees, one after the other."""
    return jax.tree.map(lambda a, b: jnp.concatenate(pair(a, b)), first, second)


def _part(rows: Any, first: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[first : first + GROUP_ROWS], rows)


@partial(jax.jit, compiler_options=QUICK_COMPILE)
def _asked(
    model: Model, stack: Stack, deployments: Deployment, workloads: Workload
) -> tuple[Traffic, list[Item], list[Item]]:
    """What runs carry, and what their decode-only and mixed steps ask for."""

    def asked(
        deployment: Deployment, workload: Workload
    ) -> tuple[Traffic, list[Item], list[Item]]:
        carried = traffic(stack, deployment, workload)
        decode = items(model, deployment, carried.decode, ("decode",))
        mixed = items(model, deployment, carried.mixed, ("decode", "prefill"))
        return carried, decode, mixed

    return jax.vmap(asked)(deployments, workloads)


def predict_rows(rows: ServingRows, chip: Chip, stack: Stack) -> ServingPrediction:
    """Returns the prediction of every row; leaves of `chip` and `stack` are per row."""
    chips, stacks = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, leaf]), (chip, stack)
    )
    both: Any = _price(rows, chips, stacks)
    count = rows.mixed_share.shape[0]
    share = rows.mixed_share

    def mean(values: Any) -> Any:
        return values[:count] + share * (values[count:] - values[:count])

    seconds, joules = mean(both.seconds), mean(both.joules)
    layout = jax.tree.map(lambda leaf: leaf[:count], rows.deployments)
    gpus = layout.tensor_parallel * layout.pipeline_parallel * layout.data_parallel
    return ServingPrediction(
        seconds_per_step=seconds,
        joules_per_output_token=joules * gpus / layout.batch,
        seconds_decode_step=both.seconds[:count],
        watts=joules * gpus / seconds,
    )


def _price(rows: ServingRows, chip: Chip, stack: Stack) -> StepCost:
    deployments: Any = rows.deployments
    at_clock: Machine = machine(chip, stack, deployments)
    shape = deployments.batch.shape
    whole = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), at_clock)
    summed = line(rows.steps, whole, deployments.communication_sms)
    host = host_seconds(stack, deployments, rows.loads)
    return settle(summed, {}, host, chip, stack, deployments)
