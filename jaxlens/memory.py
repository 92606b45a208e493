"""Bytes of GPU memory: weights, KV cache and states, activations and overhead.

The same einsums that price a step say what is stored: weight operands with every expert and
every word present, and KV results over the whole context of every sequence.
"""

from jaxtyping import Array, Float

from jaxlens import einsums, elementary
from jaxlens.deployments import Deployment, Workload
from jaxlens.hardware import Chip, Stack
from jaxlens.loads import Extents, mesh
from jaxlens.programs import kernels, program
from jaxlens.pytrees import pytree
from jaxlens.transformers import Block, Model
from jaxlens.works import STATE_BYTES

Scalar = Float[Array, ""] | float


@pytree
class Memory:
    """Bytes on one GPU. A negative slack says by how much a deployment does not fit."""

    weights_bytes: Scalar
    kv_bytes: Scalar
    activation_bytes: Scalar
    overhead_bytes: Scalar
    slack_bytes: Scalar


def weights_bytes(model: Model, deployment: Deployment) -> Scalar:
    """Returns bytes of weights per GPU, replicas of KV heads included."""
    total: Scalar = 0.0
    for block in model.blocks:
        extents = _resident(block, model, deployment, 0.0)
        held: Scalar = 0.0
        for kernel in kernels(program(block.operations, False, True)):
            for name, size in kernel.stored:
                width = model.formats.weights[name].bytes_per_element
                held = held + einsums.evaluate(size, extents) * width
        total = total + held * block.layers
    return total / deployment.pipeline_parallel


def sequence_bytes(model: Model, deployment: Deployment, tokens: Scalar) -> Scalar:
    """Returns bytes of KV cache and state per GPU for one sequence of `tokens`."""
    total: Scalar = 0.0
    for block in model.blocks:
        extents = _resident(block, model, deployment, tokens)
        held: Scalar = 0.0
        for kernel in kernels(program(block.operations, False, True)):
            for size in kernel.cached:
                held = held + einsums.evaluate(size, extents) * model.formats.kv_bytes
            for size in kernel.state[:1]:
                held = held + einsums.evaluate(size, extents) * STATE_BYTES
        total = total + held * block.layers
    return total / deployment.pipeline_parallel


def memory(
    model: Model, chip: Chip, stack: Stack, deployment: Deployment, workload: Workload
) -> Memory:
    """Returns what a deployment holds in the memory of each GPU.

    Sequences are held at their full length: prompt and mean output.
    """
    tokens = workload.prompt_tokens + workload.output_tokens
    sequences = deployment.batch / deployment.data_parallel
    weights = weights_bytes(model, deployment)
    kv = sequences * sequence_bytes(model, deployment, tokens)
    # The widest layer's input, output and one intermediate, in 16 bits, for one step.
    step_tokens = elementary.minimum(
        elementary.minimum(stack.chunk_tokens, deployment.chunk_tokens),
        sequences * workload.prompt_tokens + sequences,
    )
    activations = step_tokens * model.width * 2.0 * 6.0
    budget = chip.hbm_bytes * stack.memory_share
    slack = budget - weights - kv - activations - stack.overhead_bytes
    return Memory(
        weights_bytes=weights,
        kv_bytes=kv,
        activation_bytes=activations,
        overhead_bytes=stack.overhead_bytes,
        slack_bytes=slack,
    )


def _resident(
    block: Block, model: Model, deployment: Deployment, tokens: Scalar
) -> Extents:
    """Extents at rest: experts, words and positions are there, one sequence is cached."""
    sizes = block.sizes
    cached = (
        elementary.minimum(tokens, sizes["window"]) if "window" in sizes else tokens
    )
    extents = {
        **sizes,
        **mesh(block, deployment),
        "d": model.width,
        "v": model.vocabulary,
        "w": sizes.get("table", model.vocabulary),
        "t": cached,
        "n": 1.0,
        "u": 1.0,
    }
    if "top_k" in sizes:
        extents["x"] = sizes["z"]
    return extents
