"""Seconds of a matrix product of m x k by k x n: tiles, waves, memory, launch.

    t = (max_w(min_tiles(waves tile (k + k0)), B / bandwidth) + prepare) heat
        + t_launch + m t_row + t_vector [m = 1]

A tile keeps one SM busy for 2 rows columns (k + k0) / rate, longer where it is small (its
operands are fetched more often). Few tiles either run in one round or split k over the idle
SMs. B moves at HBM speed, or faster where it fits the L2 cache, which repeated launches find
warm. `prepare` are passes of their own over inputs and outputs (quantisation, copies), t_row
is what they take at least for each row. A step along k takes at least t_step, and a single row
goes through a kernel of its own. Vector units take smaller tiles than matrix units.

Source: NVIDIA, "Matrix Multiplication Background User's Guide", 2023 (tile and wave
quantisation).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration.kernels.chip_facts import (
    CATALOGUE,
    Chips,
    memory_features,
    precision_features,
    without_matrix_unit,
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

TILES = (
    (256.0, 256.0),
    (128.0, 256.0),
    (128.0, 128.0),
    (64.0, 128.0),
    (64.0, 32.0),
    (16.0, 64.0),
)
VECTOR_TILES = ((4.0, 16.0), (1.0, 16.0))  # of chips without a matrix unit
NEVER = 1e9  # times as slow
COEFFICIENTS = (
    scaled("launch_seconds", "s", 4e-6, 0.7, "an empty kernel takes 2-5 us"),
    scaled("flop_efficiency", "1", 0.8, 0.5, "of the datasheet peak"),
    scaled("tile_traffic", "1", 0.3, 1.0),
    share("whole_waves", 0.5, 1.0),
    scaled("fill_depth", "1", 200.0, 1.0),
    scaled("split_overhead", "1", 0.3, 1.0),
    scaled("hbm_efficiency", "1", 0.85, 0.3, "copies reach 80-93 % of the datasheet"),
    scaled("cache_speedup", "1", 3.0, 0.5, "L2 reads run 2-5 times as fast as HBM"),
    scaled("cache_share", "1", 0.6, 0.7),
    scaled("ramp_bytes", "B", 5e6, 1.0, "bandwidth times about 2 us"),
    scaled("prepare_bytes", "B", 0.5, 1.5),
    scaled("store_bytes", "B", 0.5, 1.5),
    scaled("row_seconds", "s", 5e-10, 1.5, "a block of its own for each row"),
    scaled("vector_seconds", "s", 3e-7, 1.5, "a kernel of its own for one row"),
    scaled("step_seconds", "s", 5e-10, 1.0, "latency of a step along k"),
    share("softness", 0.1, 1.0),
    share("throttle_share", 0.15, 1.0),
    scaled("throttle_seconds", "s", 1e-3, 1.5),
    *corrections("m", "n", "k", "mm", "nn", "kk", "mn", "mk", "nk", spread=0.15),
)


def log_seconds(values: Values, features: Features, count=exact_count) -> Array:
    """Returns log seconds; `relaxed_count` makes it differentiable in the sizes."""
    v, f = values, features
    m, n, k = f["m"], f["n"], f["k"]
    compute = _compute_seconds(v, f, count)
    bytes_per_s = f["hbm_bytes_per_s"] * v["hbm_efficiency"]
    room = v["cache_share"] * f["l2_bytes"]
    moved = n * k * f["weight_bytes"] + m * k * f["activation_bytes"] + 2.0 * m * n
    slow = uncached_bytes(moved, moved, room, v["cache_speedup"])
    memory = (slow + v["ramp_bytes"]) / bytes_per_s
    prepared = m * k * v["prepare_bytes"] + m * n * v["store_bytes"]
    prepare = uncached_bytes(prepared, prepared, room, v["cache_speedup"]) / bytes_per_s
    body = smooth_max(compute, memory, v["softness"]) + prepare
    body = throttled(body, compute, v["throttle_share"], v["throttle_seconds"])
    vector = v["vector_seconds"] * jnp.exp(4.0 * (1.0 - m))
    launch = v["launch_seconds"] + v["row_seconds"] * m + vector
    return corrected(body + launch, v, _terms(f))


def _compute_seconds(v: Values, f: Features, count) -> Array:
    m, n, k, sms = f["m"], f["n"], f["k"], f["sms"]
    rate = f["flop_per_s"] * v["flop_efficiency"] / sms
    ways = []
    for rows, columns in (*TILES, *VECTOR_TILES):
        # Away from the others by a factor: nothing of it is left in their minimum.
        barred = (rows, columns) in VECTOR_TILES
        slower = 1.0 + barred * NEVER * (1.0 - f["vector"])
        tiles = count(m, rows) * count(n, columns)
        rounds = waves(tiles, sms, v["whole_waves"], count)
        again = 1.0 + v["tile_traffic"] * 64.0 * (1.0 / rows + 1.0 / columns)
        tile = 2.0 * rows * columns * again / rate
        tile = smooth_max(tile, v["step_seconds"], 0.02)
        filled = count(tiles / sms, 1.0) * v["fill_depth"]
        split = tiles / sms * (1.0 + v["split_overhead"]) * k + 2.0 * v["fill_depth"]
        waved = smooth_max(rounds, 1.0, 0.0) * k + filled
        ways += [tile * waved * slower, tile * split * slower]
    return soft_minimum(ways)


def _terms(f: Features) -> dict[str, Array]:
    m = jnp.log(f["m"] / 256.0) / 4.0
    n = jnp.log(f["n"] / 4096.0) / 3.0
    k = jnp.log(f["k"] / 4096.0) / 3.0
    first = {"m": m, "n": n, "k": k}
    second = {"mm": m * m, "nn": n * n, "kk": k * k}
    return {**first, **second, "mn": m * n, "mk": m * k, "nk": n * k}


def features(columns: Columns, chips: Chips = CATALOGUE) -> dict[str, np.ndarray]:
    """Returns the inputs of `log_seconds` for every row."""
    return {
        **{name: columns[name].astype(float) for name in ("m", "n", "k")},
        "vector": without_matrix_unit(columns["gpu"], chips),
        **precision_features(columns["gpu"], columns["dtype"], chips),
        **memory_features(columns["gpu"], chips),
    }


FAMILY = Family(
    kind="gemm",
    coefficients=COEFFICIENTS,
    log_target=log_seconds,
    features=features,
    levels=(
        ("dtype",),
        ("kernel_source", "dtype"),
        ("gpu", "kernel_source", "dtype"),
    ),
    shape=("m", "n", "k"),
    must_match=("dtype",),
    rows=800,
)
