"""Seconds of attention of one new token per sequence over its context.

    t = max_w(B / bandwidth, rounds max(bytes and FLOPs of a unit / an SM, t_unit))
        + t_launch + t_split + batch t_sequence

A unit is a part of the context of one KV head and sequence; a long context is split over idle
SMs and its parts combined. Query heads of a group ride in one pass as far as they fit the rows
of a tile (8 to 64); further passes read the keys and values again.

Source: T. Dao et al., "Flash-Decoding for long-context inference", 2023,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html (splits).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.calibration.kernels.attention_prefill import attention_features
from jaxlens.calibration.kernels.chip_facts import CATALOGUE, Chips
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
    uncached_bytes,
    waves,
)
from jaxlens.smooth import smooth_min

Scalar = Float[Array, "..."] | float
HEAD_TILES = (8.0, 16.0, 32.0, 64.0)
LARGEST_GROUP = 32.0  # of query heads, in kernels with a fallback that shares nothing
CORRECTIONS = (
    "batch",
    "context",
    "kv_heads",
    "group",
    "batch_batch",
    "context_context",
    "group_group",
    "batch_context",
    "batch_kv_heads",
    "context_kv_heads",
    "context_group",
    "batch_group",
    "fp8_batch",
    "fp8_context",
)
COEFFICIENTS = (
    scaled("launch_seconds", "s", 7e-6, 0.7, "a kernel and its preparation"),
    scaled("hbm_efficiency", "1", 0.85, 0.3, "copies reach 80-93 % of the datasheet"),
    scaled("cache_speedup", "1", 2.5, 0.5, "L2 reads run 2-5 times as fast as HBM"),
    scaled("cache_share", "1", 0.6, 0.7),
    scaled("sm_bandwidth_share", "1", 1.5, 0.5, "some SMs alone saturate HBM"),
    scaled("chunk_tokens", "1", 300.0, 1.0),
    scaled("unit_seconds", "s", 1e-6, 1.0),
    share("whole_waves", 0.5, 1.0),
    scaled("flop_efficiency", "1", 0.4, 0.7, "of the datasheet peak"),
    scaled("tile_8_weight", "1", 0.3, 1.5, "against one for a tile of 16 rows"),
    scaled("tile_32_weight", "1", 0.3, 1.5, "against one for a tile of 16 rows"),
    scaled("tile_64_weight", "1", 0.3, 1.5, "against one for a tile of 16 rows"),
    share("fallback_share", 0.1, 2.0, "most kernels take groups of any size"),
    scaled("head_unit_seconds", "s", 1e-6, 1.0, "a unit of one query head"),
    share("unit_softness", 0.5, 1.0),
    scaled("reread_share", "1", 0.3, 1.5),
    scaled("split_seconds", "s", 2e-6, 1.0, "a second, small kernel"),
    share("softness", 0.2, 1.0),
    scaled("sequence_seconds", "s", 1e-8, 1.5),
    scaled("fp8_bytes", "B", 1.0, 0.3),
    scaled("fp8_speedup", "1", 1.0, 0.5),
    scaled("fp8_launch_seconds", "s", 5e-7, 1.5),
    *corrections(*CORRECTIONS, spread=0.15),
)


def log_seconds(values: Values, features: Features, count=exact_count) -> Array:
    """Returns log seconds; `relaxed_count` makes it differentiable in the sizes."""
    v, f = values, features
    b, s, h, kv_heads, d = (f[name] for name in SIZES)
    fp8 = f["fp8_kv"]
    kv_bytes = 2.0 * b * s * kv_heads * d * (2.0 + fp8 * (v["fp8_bytes"] - 2.0))
    ends = 4.0 * b * h * d  # queries in, outputs out
    passes, lanes, alone = _passes(v, h / kv_heads, count)
    units, splits = _units(v, f, passes)
    room = v["cache_share"] * f["l2_bytes"]
    slow = uncached_bytes(kv_bytes + ends, kv_bytes + ends, room, v["cache_speedup"])
    slow = slow + (passes - 1.0) * kv_bytes * v["reread_share"]
    streaming = slow / (f["hbm_bytes_per_s"] * v["hbm_efficiency"])
    sm_bytes_per_s = v["sm_bandwidth_share"] * f["hbm_bytes_per_s"] / f["sms"]
    speed = f["flop_per_s"] * v["flop_efficiency"] / f["sms"]
    speed = speed * (1.0 + fp8 * (v["fp8_speedup"] - 1.0))
    flop = 4.0 * b * s * kv_heads * lanes * d
    each = (ends + passes * kv_bytes) / units / sm_bytes_per_s + flop / units / speed
    rounds = smooth_max(waves(units, f["sms"], v["whole_waves"], count), 1.0, 0.02)
    floor = v["unit_seconds"] + alone * (v["head_unit_seconds"] - v["unit_seconds"])
    chained = rounds * smooth_max(each, floor, v["unit_softness"])
    body = smooth_max(streaming, chained, v["softness"])
    launch = v["launch_seconds"] + v["split_seconds"] * (1.0 - 1.0 / splits)
    launch = launch + v["sequence_seconds"] * b + fp8 * v["fp8_launch_seconds"]
    return corrected(body + launch, v, _terms(f))


def _passes(v: Values, group: Array, count) -> tuple[Scalar, Scalar, Scalar]:
    """Passes over a KV head, rows that they multiply, and whether heads share nothing.

    A mean over tiles of 8 to 64 rows; beyond `LARGEST_GROUP`, kernels in part fall back
    to one pass for each head, as they do for groups of one.
    """
    weights = (v["tile_8_weight"], 1.0, v["tile_32_weight"], v["tile_64_weight"])
    total = weights[0] + weights[1] + weights[2] + weights[3]
    passes, lanes = 0.0, 0.0
    for weight, tile in zip(weights, HEAD_TILES, strict=True):
        own = weight / total * count(group, tile)
        passes, lanes = passes + own, lanes + own * tile
    falls_back = jnp.where(group > LARGEST_GROUP, v["fallback_share"], 0.0)
    alone = jnp.where(group < 2.0, 1.0, falls_back)
    passes = passes + falls_back * (group - passes)
    return passes, lanes + falls_back * (group - lanes), alone


def _units(v: Values, f: Features, passes: Scalar) -> tuple[Scalar, Scalar]:
    """Units of work, and into how many of them a context is split."""
    groups = f["batch"] * f["kv_heads"] * passes
    idle = f["sms"] / groups
    useful = jnp.sqrt(1.0 + idle * idle)
    possible = 1.0 + f["context_tokens"] / v["chunk_tokens"]
    splits = smooth_min(possible, useful, 0.05)
    return groups * splits, splits


def _terms(f: Features) -> dict[str, Array]:
    x = jnp.log(f["batch"] / 16.0) / 3.0
    y = jnp.log(f["context_tokens"] / 512.0) / 3.0
    z = jnp.log(f["kv_heads"] / 2.0) / 2.0
    w = jnp.log(f["heads"] / f["kv_heads"] / 4.0) / 2.0
    fp8 = f["fp8_kv"]
    plain = (x, y, z, w, x * x, y * y, w * w, x * y, x * z, y * z, y * w, x * w)
    return dict(zip(CORRECTIONS, (*plain, fp8 * x, fp8 * y), strict=True))


SIZES = ("batch", "context_tokens", "heads", "kv_heads", "head_dim")


def features(columns: Columns, chips: Chips = CATALOGUE) -> dict[str, np.ndarray]:
    """Returns the inputs of `log_seconds` for every row."""
    return {
        **{name: columns[name].astype(float) for name in SIZES},
        **attention_features(columns, chips),
    }


FAMILY = Family(
    kind="attention_decode",
    coefficients=COEFFICIENTS,
    log_target=log_seconds,
    features=features,
    levels=(
        ("kind",),
        ("kernel_source",),
        ("gpu", "kernel_source", "dtype"),
    ),
    shape=("batch", "context_tokens", "heads", "kv_heads"),
    must_match=(),
    rows=800,
)
