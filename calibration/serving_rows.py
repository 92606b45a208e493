"""Measured serving runs as the loads that they put on an engine."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.stacked_steps import StackedStep, line, stacked_step
from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.hardware import Chip, Stack
from jaxlens.loading import load_model
from jaxlens.pytrees import pytree
from jaxlens.rooflines import Machine
from jaxlens.serving import StepCost, host_seconds, machine, settle, traffic
from jaxlens.loads import Load
from jaxlens.steps import items

Rows = Float[Array, " row"]

GROUP_ROWS = 64
DEFAULT_CV = 0.5  # spread of output lengths where a table does not give one


@pytree
class ServingRows:
    """Rows of serving tables, ready to be priced with any coefficients."""

    deployment: Deployment  # leaves: one number per row
    decode: StackedStep
    mixed: StackedStep
    decode_load: Load
    mixed_load: Load
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

    def column(name: str, default: float) -> np.ndarray:
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
        stages=np.ones(len(table)),
        chunk_tokens=column("chunk_tokens", UNLIMITED),
        routing_skew=np.zeros(len(table)),
    )


def workload_of(table: Table) -> Workload:
    """Returns the lengths of each row."""
    spread = np.full(len(table), DEFAULT_CV)
    if table.has("output_tokens_cv"):
        given = np.asarray(table["output_tokens_cv"], float)
        spread = np.where(np.isnan(given), spread, given)
    return Workload(
        prompt_tokens=np.asarray(table["prompt_tokens"], float),
        output_tokens=np.asarray(table["output_tokens"], float),
        output_tokens_cv=spread,
    )


def serving_rows(table: Table, chunk_tokens: Mapping[str, Stack]) -> ServingRows:
    """Returns the rows of a serving table; row order is that of the table.

    Args:
        table: Rows of the kind `serving`.
        chunk_tokens: Stack by id, for its token budget.
    """
    deployment, workload = deployment_of(table), workload_of(table)
    keys = list(
        zip(
            table["model"],
            table["weight_dtype"],
            table["kv_dtype"],
            table["stack"],
            strict=True,
        )
    )
    order, decode_groups, mixed_groups, carried_parts = [], [], [], []
    for key in dict.fromkeys(keys):
        chosen = np.array([i for i, other in enumerate(keys) if other == key])
        # Eager operations compile once per shape: groups are padded to few sizes.
        padded = np.resize(chosen, -(-len(chosen) // GROUP_ROWS) * GROUP_ROWS)
        model = load_model(key[0], weights=key[1] or None, kv=key[2] or None)
        local = jax.tree.map(
            lambda leaf, rows=padded: jnp.asarray(leaf[rows]), deployment
        )
        lengths = jax.tree.map(
            lambda leaf, rows=padded: jnp.asarray(leaf[rows]), workload
        )
        carried = traffic(chunk_tokens[key[3]], local, lengths)
        decode_groups.append(
            (items(model, local, carried.decode, ("decode",)), len(padded))
        )
        mixed_groups.append(
            (items(model, local, carried.mixed, ("decode", "prefill")), len(padded))
        )
        carried_parts.append(
            jax.tree.map(
                lambda leaf, n=len(padded): jnp.broadcast_to(
                    jnp.asarray(leaf, float), (n,)
                ),
                carried,
            )
        )
        order.append(np.where(np.arange(len(padded)) < len(chosen), padded, len(keys)))
    back = np.argsort(np.concatenate(order), kind="stable")[: len(keys)]
    carried = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves)[back], *carried_parts
    )
    restore = lambda step: jax.tree.map(lambda leaf: leaf[back], step)  # noqa: E731
    return ServingRows(
        deployment=jax.tree.map(jnp.asarray, deployment),
        decode=restore(stacked_step(decode_groups)),
        mixed=restore(stacked_step(mixed_groups)),
        decode_load=carried.decode,
        mixed_load=carried.mixed,
        mixed_share=carried.mixed_share,
    )


def predict_rows(rows: ServingRows, chip: Chip, stack: Stack) -> ServingPrediction:
    """Returns the prediction of every row; leaves of `chip` and `stack` are per row."""
    decode = _price(rows.decode, rows.decode_load, rows.deployment, chip, stack)
    mixed = _price(rows.mixed, rows.mixed_load, rows.deployment, chip, stack)
    share = rows.mixed_share
    seconds = decode.seconds + share * (mixed.seconds - decode.seconds)
    joules = decode.joules + share * (mixed.joules - decode.joules)
    layout = rows.deployment
    gpus = layout.tensor_parallel * layout.pipeline_parallel * layout.data_parallel
    return ServingPrediction(
        seconds_per_step=seconds,
        joules_per_output_token=joules * gpus / layout.batch,
        seconds_decode_step=decode.seconds,
        watts=joules * gpus / seconds,
    )


def _price(
    step: StackedStep, load: Load, deployment: Deployment, chip: Chip, stack: Stack
) -> StepCost:
    at_clock: Machine = machine(chip, stack, deployment)
    whole = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, deployment.batch.shape), at_clock
    )
    summed = line(step, whole, deployment.communication_sms)
    host = host_seconds(stack, deployment, load)
    return settle(summed, {}, host, chip, stack, deployment)
