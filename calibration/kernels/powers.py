"""Watts while a kernel runs in a loop: a floor, what its FLOPs and bytes draw, the cap.

    P / TDP = min_w(cap, floor + a F / (peak t) + b B / (bandwidth t))

Source: S. Hong, H. Kim, "An integrated GPU power and performance model", ISCA 2010 (power
that goes with the rates of compute and of memory).
"""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration.kernels.attention_prefill import cached_tokens
from jaxlens.calibration.kernels.chip_facts import CATALOGUE, Chips, fact
from jaxlens.calibration.kernels.formulas import (
    Columns,
    Family,
    Features,
    Values,
    corrections,
    scaled,
    share,
)
from jaxlens.smooth import smooth_min

GEMM_SECONDS = 1e-4  # shorter launches carry over the power of what ran before
OTHER_SECONDS = 3.4e-4
WINDOW_SECONDS = 0.5  # shorter loops end before the sensor has settled
COEFFICIENTS = (
    scaled("floor_share", "1", 0.3, 0.4, "loaded idle and busy power, of the TDP"),
    scaled("flop_share", "1", 0.9, 0.5, "of the TDP at the peak FLOP rate"),
    scaled("byte_share", "1", 0.35, 0.5, "of the TDP at the peak HBM rate"),
    share("cap_share", 0.97, 0.7, "power-limited runs sit a little below the TDP"),
    share("softness", 0.03, 1.0),
    *corrections("duration", "duration_squared", "intensity", spread=0.15),
)


def log_watts(values: Values, features: Features) -> Array:
    """Returns log watts; element-wise."""
    v, f = values, features
    drawn = v["floor_share"] + v["flop_share"] * f["flop_rate"]
    drawn = drawn + v["byte_share"] * f["byte_rate"]
    x = jnp.log(f["seconds"] / 1e-3) / 4.0
    y = jnp.log(f["flop_rate"] / f["byte_rate"]) / 4.0
    bent = v["duration"] * x + v["duration_squared"] * x * x + v["intensity"] * y
    limited = smooth_min(drawn * jnp.exp(jnp.tanh(bent)), v["cap_share"], v["softness"])
    return jnp.log(f["tdp_watts"] * limited)


def power_family(
    family: Family, work: Callable[[Columns], tuple[np.ndarray, np.ndarray]]
) -> Family:
    """Returns the family that explains the watts of the rows of another.

    Args:
        family: Explains the seconds of the same table.
        work: FLOPs and HBM bytes of every row.
    """

    def features(columns: Columns, chips: Chips = CATALOGUE) -> dict[str, np.ndarray]:
        flop, moved = work(columns)
        facts = family.features(columns, chips)
        seconds = columns["seconds"]
        bandwidth = fact(columns["gpu"], "hbm_bytes_per_s", chips)
        return {
            "seconds": seconds,
            "flop_rate": flop / facts["flop_per_s"] / seconds,
            "byte_rate": moved / bandwidth / seconds,
            "tdp_watts": fact(columns["gpu"], "tdp_watts", chips),
        }

    return replace(
        family,
        coefficients=COEFFICIENTS,
        log_target=log_watts,
        features=features,
        rows=400,
        scored=trustworthy_power(family.kind),
    )


def trustworthy_power(kind: str) -> Callable[[Columns], np.ndarray]:
    """Returns which rows have a power reading that is their own.

    Short launches carry over the power of what ran before them, unless a window held nothing
    else (those state a spread over windows), and the readings of GEMMs under SGLang on B200
    do not follow their load.
    """
    shortest = GEMM_SECONDS if kind == "gemm" else OTHER_SECONDS

    def trusted(columns: Columns) -> np.ndarray:
        rows = len(columns["gpu"])
        watts = columns.get("watts", np.full(rows, np.nan))
        alone = np.isfinite(columns.get("watts_spread", np.full(rows, np.nan)))
        good = np.isfinite(watts) & (alone | (columns["seconds"] >= shortest))
        window = columns.get("power_window_seconds", np.full(rows, np.nan))
        good &= ~(window < WINDOW_SECONDS)
        if kind == "gemm" and "backend" in columns:
            sglang = columns["backend"] == "sglang"
            good &= ~(sglang & (columns["gpu"] == "b200-sxm"))
        return good

    return trusted


def gemm_work(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Returns FLOPs and bytes of a matrix product with 2-byte elements."""
    m, n, k = (columns[name].astype(float) for name in ("m", "n", "k"))
    return 2.0 * m * n * k, 2.0 * (m * n + n * k + m * k)


def prefill_work(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Returns FLOPs and bytes of causal attention over prompts."""
    heads, kv_heads = columns["heads"], columns["kv_heads"]
    tokens = columns["batch"] * columns["prompt_tokens"] * columns["head_dim"]
    cached = cached_tokens(columns)
    flop = 2.0 * tokens * heads * (columns["prompt_tokens"] + 2.0 * cached)
    read = columns["batch"] * cached * columns["head_dim"] * kv_heads
    return flop, 4.0 * (tokens * (heads + kv_heads) + read)


def decode_work(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Returns FLOPs and bytes of attention of one token per sequence."""
    tokens = columns["batch"] * columns["context_tokens"] * columns["head_dim"]
    formats = columns.get("kv_dtype", np.full(len(tokens), ""))
    kv_bytes = np.where(np.char.startswith(formats, "fp8"), 2.0, 4.0)
    return 4.0 * tokens * columns["heads"], tokens * columns["kv_heads"] * kv_bytes


def experts_work(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Returns FLOPs and weight bytes of the local experts, one byte per weight."""
    split = columns["tensor_parallel"] * columns["expert_parallel"]
    matrix = columns["width"] * columns["expert_width"] / split
    choices = columns["tokens"] * columns["top_k"]
    flop = 6.0 * choices * matrix
    return flop, 3.0 * matrix * np.minimum(columns["experts"], choices)
