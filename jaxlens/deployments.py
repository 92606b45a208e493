"""What a user chooses (a deployment) and what users send (a workload), as traced knobs."""

from jaxtyping import Array, Float

from jaxlens.pytrees import pytree, static

Scalar = Float[Array, ""] | float

UNLIMITED = 1e15  # stands for "as much as the chip or the engine allows"


@pytree
class Deployment:
    """How a model is laid out and run. Every float may be relaxed and differentiated.

    GPUs = tensor x pipeline x data parallel. Experts are spread over `expert_parallel` of
    the tensor x data parallel ranks; 1 splits each expert like any other matrix.
    """

    batch: Scalar = 1.0  # sequences in flight, over all replicas
    tensor_parallel: Scalar = 1.0
    expert_parallel: Scalar = 1.0
    pipeline_parallel: Scalar = 1.0
    data_parallel: Scalar = 1.0
    clock_hz: Scalar = UNLIMITED
    power_cap_watts: Scalar = UNLIMITED  # per GPU
    communication_sms: Scalar = 20.0  # given to a collective while it runs
    stages: Scalar = 1.0  # chunks of a product that overlaps its collective
    chunk_tokens: Scalar = UNLIMITED  # token budget of one step
    routing_skew: Scalar = 0.0  # exponent of the experts' power-law popularity
    sequence_parallel: bool = static(default=False)
    fused: bool = static(default=True)
    overlap: bool = static(default=False)


@pytree
class Workload:
    """Lengths of the requests. The spread of outputs decides the mean context."""

    prompt_tokens: Scalar = 1024.0
    output_tokens: Scalar = 256.0
    # Coefficient of variation of output lengths. ML.ENERGY v3 runs have 0.4 to 0.9; a
    # benchmark with fixed lengths has 0.
    output_tokens_cv: Scalar = 0.5
