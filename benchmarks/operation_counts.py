"""What a program computes for each configuration, and a bare kernel that computes as much.

Counts are of the program before loops are fused, so that what a compiler computes twice counts
once. The bare kernel does the same number of each kind of operation on random numbers, in
independent chains of one loop, and nothing else: no intermediate results in memory, no reuse.
Its rate is the limit of the machine for that much arithmetic.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# One loop for each operation: nothing is fused, hence nothing is computed twice.
UNFUSED_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_disable_hlo_passes": "fusion,cpu-instruction-fusion,cpu-multi-output-fusion",
}
FREE = {"parameter", "constant", "broadcast", "copy", "reshape", "bitcast", "transpose"}
FREE |= {"slice", "concatenate", "tuple", "get-tuple-element", "convert", "iota", "pad"}
# Operations that cost several plain ones, and what stands for each in the bare kernel.
COSTLY: dict[str, Callable[[Any], Any]] = {
    "divide": lambda x: 1.0 / x,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "exponential": lambda x: jnp.exp(-x),
    "exponential-minus-one": jnp.expm1,
    "log": jnp.log,
    "log-plus-one": jnp.log1p,
    "power": lambda x: x**x,
}
CHAINS = 8
COSTLY_AT_ONCE = 40
LINE = re.compile(r"^\s*(?:ROOT )?%?\S+ = \(?f\d+\[([\d,]*)\]\S* ([a-z][\w-]*)\(")
DOT = re.compile(r"f\d+\[([\d,]*)\]")


def operations(lowered: Any, size: int) -> dict[str, float]:
    """Returns operations per configuration by kind; `plain` are additions and the like.

    Args:
        lowered: `jax.jit(f).lower(...)` of a function of `size` configurations.
        size: What is computed once for all of them counts next to nothing.
    """
    compiled = lowered.compile(UNFUSED_OPTIONS)
    found: Counter[str] = Counter()
    for line in compiled.as_text().splitlines():
        match = LINE.match(line)
        if match and match[2] in COSTLY:
            extents = [int(extent) for extent in match[1].split(",") if extent]
            found[match[2]] += math.prod(extents)
    plain = compiled.cost_analysis()["flops"] - found["divide"]
    return {
        "plain": plain / size,
        **{kind: found[kind] / size for kind in COSTLY if found[kind]},
    }


def bare_kernel(counts: dict[str, float]) -> Callable[[Any, Any, Any], Any]:
    """Returns `kernel(x, y)` over arrays that computes `counts` for each element.

    Plain operations are pairs of a product and a sum; costly ones are spread evenly among
    them, so that no two divisions meet and cancel.
    """
    costly = [kind for kind in COSTLY for _ in range(round(counts.get(kind, 0.0)))]
    pairs = max(round(counts["plain"] / 2.0) - CHAINS, 1)
    turns = pairs + len(costly)
    spots = np.linspace(0, turns - 1, len(costly)).astype(int).tolist()
    kinds = dict(zip(spots, np.random.default_rng(0).permutation(costly), strict=True))

    def kernel(x: Any, y: Any, start: Any) -> Any:
        chains = [start * (0.1 * (number + 1)) + y for number in range(CHAINS)]
        for turn in range(turns):
            value = chains[turn % CHAINS]
            costs = COSTLY[kinds[turn]](value) if turn in kinds else value * x + y
            chains[turn % CHAINS] = costs
        return sum(chains[1:], start=chains[0]) * (1.0 / CHAINS)

    return kernel


def limit(counts: dict[str, float]) -> Callable[[Any, Any], Any]:
    """Returns a loop over a small bare kernel that computes `counts` in total.

    A loop body of thousands of operations would not be turned into vector instructions.
    """
    costly = sum(number for kind, number in counts.items() if kind != "plain")
    parts = max(1, round(costly / COSTLY_AT_ONCE))
    part = bare_kernel({kind: number / parts for kind, number in counts.items()})

    def kernel(x: Any, y: Any) -> Any:
        return jax.lax.fori_loop(0, parts, lambda _, value: part(x, y, value), x)

    return kernel
