"""Seconds of attention over whole prompts: blocks of query rows against their context.

    t = max_w(min_tiles(max(rounds depth, longest) tile), B / bandwidth) heat
        + t_launch + batch t_sequence

A block of query rows walks over half the prompt on average (causal), the last one over all
of it, and over all that is cached before the prompt. Heads that share a KV head may be packed
into the rows of a block.

Source: T. Dao, "FlashAttention-2", 2023, https://arxiv.org/abs/2307.08691 (work split).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration.kernels.chip_facts import (
    CATALOGUE,
    Chips,
    fact,
    memory_features,
)
from jaxlens.calibration.kernels.formulas import (
    Columns,
    Family,
    Features,
    Values,
    corrections,
    scaled,
    share,
)
from jaxlens.calibration.kernels.terms import (
    corrected,
    exact_count,
    smooth_max,
    soft_minimum,
    throttled,
    uncached_bytes,
    waves,
)

TILES = (32.0, 128.0, 256.0)
CORRECTIONS = (
    "batch",
    "prompt",
    "heads",
    "group",
    "batch_batch",
    "prompt_prompt",
    "heads_heads",
    "batch_prompt",
    "batch_heads",
    "prompt_heads",
    "prompt_group",
    "prompt_cubed",
    "fp8_batch",
    "fp8_prompt",
    "fp8_heads",
)
COEFFICIENTS = (
    scaled("launch_seconds", "s", 8e-6, 0.7, "a kernel and its preparation"),
    scaled("flop_efficiency", "1", 0.65, 0.5, "of the datasheet peak"),
    scaled("tile_cost", "1", 0.2, 1.0),
    scaled("unit_tokens", "1", 100.0, 1.0),
    share("packed_share", 0.5, 1.5),
    share("whole_waves", 0.5, 1.0),
    scaled("hbm_efficiency", "1", 0.8, 0.4),
    scaled("cache_speedup", "1", 2.5, 0.5, "L2 reads run 2-5 times as fast as HBM"),
    scaled("cache_share", "1", 0.6, 0.7),
    scaled("sequence_seconds", "s", 2e-8, 1.5),
    share("softness", 0.2, 1.0),
    share("throttle_share", 0.1, 1.0),
    scaled("throttle_seconds", "s", 1e-3, 1.5),
    scaled("fp8_speedup", "1", 1.0, 0.5),
    scaled("fp8_bytes", "B", 1.0, 1.5),
    scaled("fp8_launch_seconds", "s", 1e-6, 1.5),
    *corrections(*CORRECTIONS, spread=0.15),
)


def log_seconds(values: Values, features: Features, count=exact_count) -> Array:
    """Returns log seconds; `relaxed_count` makes it differentiable in the sizes."""
    v, f = values, features
    b, s, h = f["batch"], f["prompt_tokens"], f["heads"]
    compute = _compute_seconds(v, f, count)
    # Queries and outputs of every head, keys and values of every KV head, in bf16.
    cached = f["cached_tokens"]
    moved = b * f["head_dim"] * 4.0 * (s * h + (s + cached) * f["kv_heads"])
    moved = moved + f["fp8_kv"] * v["fp8_bytes"] * b * s * f["head_dim"] * h
    room = v["cache_share"] * f["l2_bytes"]
    slow = uncached_bytes(moved, moved, room, v["cache_speedup"])
    memory = slow / (f["hbm_bytes_per_s"] * v["hbm_efficiency"])
    body = smooth_max(compute, memory, v["softness"])
    body = throttled(body, compute, v["throttle_share"], v["throttle_seconds"])
    launch = v["launch_seconds"] + v["sequence_seconds"] * b
    launch = launch + f["fp8_kv"] * v["fp8_launch_seconds"]
    return corrected(body + launch, v, _terms(f))


def _compute_seconds(v: Values, f: Features, count) -> Array:
    b, s, h, sms = f["batch"], f["prompt_tokens"], f["heads"], f["sms"]
    group = h / f["kv_heads"]
    speed = 1.0 + f["fp8_kv"] * (v["fp8_speedup"] - 1.0)
    rate = f["flop_per_s"] * v["flop_efficiency"] * speed / sms
    packed = v["packed_share"]
    ways = []
    for tile in TILES:
        by_head = jnp.log(h * count(s, tile))
        by_group = jnp.log(f["kv_heads"] * count(s * group, tile))
        units = b * jnp.exp((1.0 - packed) * by_head + packed * by_group)
        # A kink in a size, not between model terms: one block walks over its own rows.
        ends = f["cached_tokens"] + v["unit_tokens"]
        depth = 0.5 * (s + jnp.minimum(s, tile)) + ends
        longest = s + ends
        rounds = waves(units, sms, v["whole_waves"], count) * depth
        cost = 1.0 + v["tile_cost"] * 128.0 / tile
        one = 4.0 * tile * f["head_dim"] * cost / rate
        ways.append(one * smooth_max(rounds, longest, 0.02))
    return soft_minimum(ways)


def _terms(f: Features) -> dict[str, Array]:
    x, y = jnp.log(f["batch"]) / 3.0, jnp.log(f["prompt_tokens"] / 1024.0) / 3.0
    z = jnp.log(f["heads"] / 16.0) / 2.0
    w = jnp.log(f["heads"] / f["kv_heads"] / 4.0) / 2.0
    fp8 = f["fp8_kv"]
    plain = (x, y, z, w, x * x, y * y, z * z, x * y, x * z, y * z, y * w, y * y * y)
    return dict(zip(CORRECTIONS, (*plain, fp8 * x, fp8 * y, fp8 * z), strict=True))


def features(columns: Columns, chips: Chips = CATALOGUE) -> dict[str, np.ndarray]:
    """Returns the inputs of `log_seconds` for every row."""
    sizes = ("batch", "prompt_tokens", "heads", "kv_heads", "head_dim")
    return {
        **{name: columns[name].astype(float) for name in sizes},
        "cached_tokens": cached_tokens(columns),
        **attention_features(columns, chips),
    }


def cached_tokens(columns: Columns) -> np.ndarray:
    """Returns tokens before the prompt whose keys and values are there; none if unknown."""
    rows = len(columns["gpu"])
    return np.nan_to_num(columns.get("cached_tokens", np.zeros(rows)).astype(float))


def attention_features(
    columns: Columns, chips: Chips = CATALOGUE
) -> dict[str, np.ndarray]:
    """Returns the facts that both phases of attention need."""
    gpus = columns["gpu"]
    formats = columns.get("kv_dtype", np.full(len(gpus), ""))
    return {
        "flop_per_s": fact(gpus, "peak_bf16_flop_per_s", chips),
        "fp8_kv": np.char.startswith(formats, "fp8").astype(float),
        **memory_features(gpus, chips),
    }


FAMILY = Family(
    kind="attention_prefill",
    coefficients=COEFFICIENTS,
    log_target=log_seconds,
    features=features,
    levels=(
        ("kind",),
        ("kernel_source",),
        ("gpu", "kernel_source", "dtype"),
    ),
    shape=("batch", "prompt_tokens", "heads", "kv_heads"),
    must_match=(),
    rows=800,
)
