"""Seconds of a mixture-of-experts layer: two grouped products and the moves around them.

    t = (max_w(min_tiles(waves tile), weights of active experts / bandwidth) + moves) heat
        + t_launch + experts t_expert + choices t_choice

Balanced routing: `tokens top_k / expert_parallel` choices land on the local experts as evenly
as they can, so that all experts are active as soon as there are enough choices. Every active
expert executes whole tiles of rows.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration.kernels.chip_facts import (
    CATALOGUE,
    Chips,
    memory_features,
    precision_features,
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

TILES = (16.0, 64.0, 128.0)
COLUMNS = 128.0
CORRECTIONS = (
    "rows",
    "inner",
    "active",
    "width",
    "ranks",
    "rows_rows",
    "inner_inner",
    "active_active",
    "rows_inner",
    "rows_active",
    "inner_active",
    "rows_ranks",
)
COEFFICIENTS = (
    scaled("launch_seconds", "s", 2e-5, 0.8, "five to ten kernels"),
    scaled("hbm_efficiency", "1", 0.75, 0.3),
    scaled("cache_speedup", "1", 2.0, 0.5, "L2 reads run 2-5 times as fast as HBM"),
    scaled("cache_share", "1", 0.6, 0.7),
    scaled("flop_efficiency", "1", 0.6, 0.5, "of the datasheet peak"),
    scaled("tile_traffic", "1", 0.3, 1.0),
    share("whole_waves", 0.5, 1.0),
    scaled("fill_depth", "1", 300.0, 1.0),
    share("active_softness", 0.05, 1.5),
    scaled("expert_seconds", "s", 3e-8, 1.5),
    scaled("floor_rows", "1", 16.0, 1.0, "a tile floor of about 16 tokens an expert"),
    scaled("token_bytes", "B", 6.0, 0.8, "gather, scatter and quantisation"),
    scaled("inner_bytes", "B", 6.0, 0.8, "activation function"),
    scaled("choice_seconds", "s", 1e-10, 1.5),
    scaled("routing_bytes", "B", 8.0, 1.0),
    share("softness", 0.2, 1.0),
    share("throttle_share", 0.1, 1.0),
    scaled("throttle_seconds", "s", 1e-3, 1.5),
    *corrections(*CORRECTIONS, spread=0.12),
)


def log_seconds(values: Values, features: Features, count=exact_count) -> Array:
    """Returns log seconds; `relaxed_count` makes it differentiable in the sizes."""
    v, f = values, features
    local, inner, choices, active = _routing(v, f)
    width, tokens = f["width"], f["tokens"]
    compute = _compute_seconds(v, f, count)
    bytes_per_s = f["hbm_bytes_per_s"] * v["hbm_efficiency"]
    weights = active * f["matrices"] * width * inner * f["weight_bytes"]
    room = v["cache_share"] * f["l2_bytes"]
    slow = uncached_bytes(weights, weights, room, v["cache_speedup"])
    memory = slow / bytes_per_s
    moved = choices * (width * v["token_bytes"] + inner * v["inner_bytes"])
    moved = moved + tokens * (4.0 * width + f["experts"] * v["routing_bytes"])
    moves = uncached_bytes(moved, moved, f["l2_bytes"], v["cache_speedup"])
    body = smooth_max(compute, memory, v["softness"]) + moves / bytes_per_s
    body = throttled(body, compute, v["throttle_share"], v["throttle_seconds"])
    launch = v["launch_seconds"] + v["expert_seconds"] * local
    launch = launch + v["choice_seconds"] * tokens * f["top_k"]
    return corrected(body + launch, v, _terms(v, f))


def _routing(v: Values, f: Features) -> tuple[Array, Array, Array, Array]:
    """Local experts, their width, choices that land on them, and the active ones."""
    local = f["experts"] / f["expert_parallel"]
    inner = f["expert_width"] / f["tensor_parallel"]
    choices = f["tokens"] * f["top_k"] / f["expert_parallel"]
    active = choices / smooth_max(choices / local, 1.0, v["active_softness"])
    return local, inner, choices, active


def _compute_seconds(v: Values, f: Features, count) -> Array:
    _, inner, choices, active = _routing(v, f)
    width, sms = f["width"], f["sms"]
    rate = f["flop_per_s"] * v["flop_efficiency"] / sms
    ways = []
    for tile in TILES:
        rows = tile + v["floor_rows"]
        blocks = active * count(choices / active, tile)
        again = 1.0 + v["tile_traffic"] * 64.0 * (1.0 / rows + 1.0 / COLUMNS)
        total = 0.0
        for columns, depth in (((f["matrices"] - 1.0) * inner, width), (width, inner)):
            units = blocks * count(columns, COLUMNS)
            rounds = waves(units, sms, v["whole_waves"], count)
            total = total + rounds * (depth + v["fill_depth"])
        ways.append(total * 2.0 * rows * COLUMNS * again / rate)
    return soft_minimum(ways)


def _terms(v: Values, f: Features) -> dict[str, Array]:
    _, inner, choices, active = _routing(v, f)
    x = jnp.log(choices / active / 16.0) / 4.0
    y = jnp.log(inner / 1024.0) / 2.0
    z = jnp.log(active / 16.0) / 3.0
    w = jnp.log(f["width"] / 4096.0)
    u = jnp.log(f["expert_parallel"]) / 3.0
    terms = (x, y, z, w, u, x * x, y * y, z * z, x * y, x * z, y * z, x * u)
    return dict(zip(CORRECTIONS, terms, strict=True))


SIZES = (
    "tokens",
    "top_k",
    "experts",
    "width",
    "expert_width",
    "tensor_parallel",
    "expert_parallel",
)


def features(columns: Columns, chips: Chips = CATALOGUE) -> dict[str, np.ndarray]:
    """Returns the inputs of `log_seconds` for every row.

    A gated layer has three matrices; kernels that say "nongated" have two.
    """
    kernels = columns.get("kernel_source", np.full(len(columns["gpu"]), ""))
    return {
        **{name: columns[name].astype(float) for name in SIZES},
        "matrices": np.where(np.char.find(kernels, "nongated") >= 0, 2.0, 3.0),
        **precision_features(columns["gpu"], columns["dtype"], chips),
        **memory_features(columns["gpu"], chips),
    }


FAMILY = Family(
    kind="moe",
    coefficients=COEFFICIENTS,
    log_target=log_seconds,
    features=features,
    levels=(
        ("dtype",),
        ("kernel_source", "dtype"),
        ("gpu", "kernel_source", "dtype"),
    ),
    shape=SIZES,
    must_match=("dtype",),
    rows=600,
)
