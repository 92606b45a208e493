"""Full estimates and gradients per second, and how far they are from the machine's limit.

Every configuration has knobs of its own, all random and independent. Programs take the
numbers of model and chip as arguments, run on each core apart from the others and go block by
block, all as sweeps do. The limit is what a bare kernel reaches that does as many operations
of each kind (`operation_counts`); program and bare kernel take turns, and the ratio is the
median over the turns.

    python -m benchmarks.throughput --json
"""

import argparse
import json
import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

# Read once, when JAX starts: results that share terms are computed in one loop, so that no
# term is computed twice. Estimates: 1.5 times as fast; gradients: several times.
SHARED_LOOPS = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {SHARED_LOOPS}".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.operation_counts import limit, operations  # noqa: E402
from jaxlens import (  # noqa: E402
    Deployment,
    Workload,
    load_model,
    load_profile,
    predict,
)
from jaxlens.batch import FAST_OPTIONS  # noqa: E402
from jaxlens.predictions import NUMBERS  # noqa: E402

MODELS = {"dense": "meta-llama/Llama-3.1-70B-Instruct", "moe": "Qwen/Qwen3-30B-A3B"}
GPU, STACK = "h100-sxm", "vllm-0.11"
LENGTHS = ("prompt_tokens", "output_tokens", "output_tokens_cv")
FOLLOWING = ("joules_per_request", "gpus")
# What follows from others by a product is left out.
RESULTS = tuple(name for name in NUMBERS if name not in FOLLOWING)
CPU_BATCH, GPU_BATCH = 2**15, 2**20  # configurations of one call
CPU_BLOCK = 4096  # of them at once: what is in between stays in a core's cache
# Gradients and bare kernels go all at once: in blocks, XLA makes worse loops of them.
WHOLE_BATCH = 8192
TURNS, TURN_SECONDS = 5, 1.0

Knobs = dict[str, np.ndarray]


def random_knobs(kind: str, size: int, seed: int) -> Knobs:
    """Returns layouts, batches, clocks, caps and lengths of `size` configurations."""
    generator = np.random.default_rng(seed)

    def power_of_two(low: int, high: int) -> np.ndarray:
        return 2.0 ** generator.integers(low, high + 1, size)

    tensor, data = power_of_two(0, 3), power_of_two(0, 3)
    spread = np.where(generator.random(size) < 0.5, 1.0, tensor * data)
    knobs = {
        "batch": power_of_two(0, 10) * data,
        "tensor_parallel": tensor,
        "expert_parallel": spread if kind == "moe" else np.ones(size),
        "pipeline_parallel": power_of_two(0, 2),
        "data_parallel": data,
        "clock_hz": generator.uniform(6e8, 1.98e9, size),
        "power_cap_watts": generator.uniform(300.0, 700.0, size),
        "communication_sms": generator.uniform(8.0, 32.0, size),
        "stages": power_of_two(0, 2),
        "chunk_tokens": power_of_two(9, 14),
        "routing_skew": generator.uniform(0.0, 0.8, size) * (kind == "moe"),
        "prompt_tokens": generator.uniform(16.0, 16384.0, size),
        "output_tokens": generator.uniform(16.0, 4096.0, size),
        "output_tokens_cv": generator.uniform(0.0, 1.0, size),
    }
    return {name: values.astype(np.float32) for name, values in knobs.items()}


def estimates(shared: Any, knobs: Any) -> dict[str, Any]:
    """Returns the full estimate of every configuration."""
    model, profile = shared
    layout = {name: value for name, value in knobs.items() if name not in LENGTHS}
    lengths = {name: knobs[name] for name in LENGTHS}
    found = predict(model, profile, Deployment(**layout), Workload(**lengths))
    return {name: getattr(found, name) for name in RESULTS}


def gradients(shared: Any, knobs: Any) -> Any:
    """Returns the gradient of J/token in all knobs; configurations do not mix."""

    def joules(knobs: Any) -> Any:
        return jnp.sum(estimates(shared, knobs)["joules_per_output_token"])

    return jax.grad(joules)(knobs)


def in_blocks(function: Callable[..., Any], block: int) -> Callable[..., Any]:
    """Returns `function` of many configurations, `block` of them at once; 0 for all."""
    if not block:
        return function

    def whole(shared: Any, knobs: Any) -> Any:
        blocks = jax.tree.map(lambda column: column.reshape(-1, block), knobs)
        found = jax.lax.map(lambda one: function(shared, one), blocks)
        return jax.tree.map(lambda column: column.reshape(-1), found)

    return whole


def pin(cores: int) -> None:
    """Lets all threads of this process run on the first `cores` of its cores only."""
    chosen = sorted(ALLOWED)[:cores]
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # one that has ended meanwhile
            os.sched_setaffinity(int(thread), chosen)


def rate(
    program: Callable[..., Any], inputs: list[tuple[Any, ...]], size: int
) -> float:
    """Returns configurations per second; each of `inputs` has a thread of its own."""
    until = time.perf_counter() + TURN_SECONDS

    def work(arguments: tuple[Any, ...]) -> int:
        done = 0
        while time.perf_counter() < until:
            jax.block_until_ready(program(*arguments))
            done += size
        return done

    begun = time.perf_counter()
    with ThreadPoolExecutor(len(inputs)) as pool:
        done = sum(pool.map(work, inputs))
    return done / (time.perf_counter() - begun)


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Returns the program of a function, and the CPU seconds that compiling took."""
    begun = time.process_time()  # of all threads: other processes do not count
    lowered = jax.jit(function).lower(*arguments)
    options: dict[str, Any] = dict(FAST_OPTIONS)
    if jax.default_backend() != "cpu":
        options = {}
    program = lowered.compile(options)
    return program, time.process_time() - begun


def measured(
    function: Callable[..., Any], kind: str, size: int, block: int, cores: int
) -> dict[str, Any]:
    """Returns rates of `function` and of the bare kernel, by turns, with their counts."""
    shared = jax.tree.map(
        lambda leaf: np.float32(leaf),
        (load_model(MODELS[kind]), load_profile(GPU, STACK)),
    )
    inputs = [(shared, random_knobs(kind, size, seed)) for seed in range(cores)]
    inputs = [jax.device_put(arguments) for arguments in inputs]
    program, seconds = compiled(in_blocks(function, block), *inputs[0])
    part = jax.tree.map(lambda column: column[: block or size], inputs[0][1])
    counts = operations(jax.jit(function).lower(shared, part), block or size)
    generator = np.random.default_rng(0)
    alone = min(size, WHOLE_BATCH) if jax.default_backend() == "cpu" else size
    numbers = [
        tuple(generator.uniform(0.4, 0.6, alone).astype(np.float32) for _ in range(2))
        for _ in range(cores)
    ]
    numbers = [jax.device_put(pair) for pair in numbers]
    bare, _ = compiled(limit(counts), *numbers[0])
    rate(program, inputs, size)  # the first turn warms caches
    rate(bare, numbers, alone)
    turns = [
        (rate(program, inputs, size), rate(bare, numbers, alone)) for _ in range(TURNS)
    ]
    return {
        "configurations_per_second": statistics.median(own for own, _ in turns),
        "best_configurations_per_second": max(own for own, _ in turns),
        "limit_ratio": statistics.median(own / most for own, most in turns),
        "reference_configurations_per_second": statistics.median(m for _, m in turns),
        "compile_cpu_seconds": seconds,
        "operations_per_configuration": counts,
        **one_core(program, inputs[:1], size, cores),
    }


def one_core(
    program: Callable[..., Any], inputs: list[Any], size: int, cores: int
) -> dict[str, float]:
    """Returns the rate on one core, where there are several to compare with."""
    if cores == 1:
        return {}
    pin(1)
    alone = statistics.median(rate(program, inputs, size) for _ in range(TURNS))
    pin(cores)
    return {"configurations_per_second_on_one_core": alone}


def throughput(size: int | None, cores: int | None) -> dict[str, Any]:
    """Returns all rates, what they were measured on, and the memory it took."""
    on_cpu = jax.default_backend() == "cpu"
    cores = (cores or len(ALLOWED)) if on_cpu else 1
    if on_cpu:
        pin(cores)
    size = size or (CPU_BATCH if on_cpu else GPU_BATCH)
    block = math.gcd(size, CPU_BLOCK) if on_cpu else 0
    result: dict[str, Any] = {}
    for kind in MODELS:
        result[kind] = measured(estimates, kind, size, block, cores)
    fewer = min(size, WHOLE_BATCH) if on_cpu else size
    slopes = measured(gradients, "dense", fewer, 0, cores)
    return {
        **result,
        "gradients": slopes,
        "gradients_per_second": slopes["configurations_per_second"],
        "cores": cores,
        "device": str(jax.devices()[0].device_kind),
        "batch": size,
        "block": block or size,
        "models": MODELS,
        "load_average": os.getloadavg()[0],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


ALLOWED = os.sched_getaffinity(0)


def main() -> None:
    """Prints rates, limits and counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON (the default)")
    parser.add_argument("--batch", type=int, help="configurations of one call")
    parser.add_argument("--cores", type=int, help="CPU cores; by default all")
    asked = parser.parse_args()
    print(json.dumps(throughput(asked.batch, asked.cores), indent=2))


if __name__ == "__main__":
    main()
