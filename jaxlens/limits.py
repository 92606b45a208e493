"""What a deployment must meet, each as a signed relative slack: negative where missed.

Latency limits are service-level objectives. A power budget holds for one GPU, for the GPUs of
a deployment that share a node, or for those that share a rack; the watts of the host count.
"""

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.deployments import UNLIMITED
from jaxlens.hardware import Chip
from jaxlens.predictions import Estimate
from jaxlens.pytrees import pytree

Scalar = Float[Array, ""] | float

REASONS = {
    "layout": "the engine does not accept the layout",
    "batch": "fewer sequences than pipeline stages",
    "chip": "clock, power cap or SMs outside what the chip allows",
    "where": "a bound of the space is missed",
    "memory": "does not fit in GPU memory",
    "prefill": "prefill takes longer than its limit",
    "ttft": "the first token takes longer than the TTFT limit",
    "ttft_p99": "one first token in a hundred takes longer than the p99 limit",
    "tpot": "an output token takes longer than the TPOT limit",
    "rate": "requests arrive faster than they are served",
    "gpu_watts": "a GPU draws more than its power budget",
    "node_watts": "a node draws more than its power budget",
    "rack_watts": "a rack draws more than its power budget",
}
BUDGETS = ("gpu_watts", "node_watts", "rack_watts")
# Reasons that a limit or another GPU can cure; the others are a matter of the layout.
SIZED = tuple(name for name in REASONS if name not in ("layout", "batch", "chip"))


@pytree
class Limits:
    """Limits on latency and power. Without an arrival rate, TTFT is one bare prefill."""

    prefill_seconds: Scalar = UNLIMITED
    ttft_seconds: Scalar = UNLIMITED
    ttft_p99_seconds: Scalar = UNLIMITED
    tpot_seconds: Scalar = UNLIMITED
    gpu_watts: Scalar = UNLIMITED
    node_watts: Scalar = UNLIMITED
    rack_watts: Scalar = UNLIMITED
    rack_nodes: Scalar = UNLIMITED


def power_slacks(
    limits: Limits, chip: Chip, estimate: Estimate, host_watts: Scalar
) -> dict[str, Scalar]:
    """Returns the slack of every power budget: 1 - watts / budget.

    A deployment fills nodes, and nodes fill racks, as far as its GPUs go.
    """
    each = estimate.watts_per_gpu + host_watts
    node = elementary.minimum(estimate.gpus, chip.node_gpus)
    rack = elementary.minimum(estimate.gpus, chip.node_gpus * limits.rack_nodes)
    return {
        "gpu_watts": 1.0 - estimate.watts_per_gpu / limits.gpu_watts,
        "node_watts": 1.0 - node * each / limits.node_watts,
        "rack_watts": 1.0 - rack * each / limits.rack_watts,
    }
