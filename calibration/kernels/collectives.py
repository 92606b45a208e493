"""Seconds of a collective inside a node: three protocols, a pipeline, an overflow.

    t = min_r(alpha_r + wire / B_r) + (n - 1) t_rank + t_pipe wire / (wire + b_pipe)
        + wire / B_bulk c wire / (wire + b_over)

The latency, middle and bulk protocols each start later and run faster than the one before.
`wire` is what every rank sends: 2 (n - 1) / n of the payload in an all-reduce, (n - 1) / n in
the others. Filling a pipeline costs up to t_pipe; beyond b_over, caches or switches overflow.

Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication
Operations in MPICH", IJHPCA 19(1), 2005 (alpha-beta costs).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.calibration.kernels.chip_facts import CATALOGUE, Chips, fact
from jaxlens.calibration.kernels.formulas import (
    Columns,
    Family,
    Features,
    Values,
    scaled,
    share,
)
from jaxlens.calibration.kernels.terms import smooth_max, soft_minimum

SCORED_BYTES = 65536.0
COEFFICIENTS = (
    scaled("latency_seconds", "s", 1e-5, 1.0, "3-30 us in and outside CUDA graphs"),
    scaled("rank_seconds", "s", 5e-7, 1.5),
    scaled("latency_rate", "1", 0.1, 1.2, "share of the link"),
    scaled("middle_seconds", "s", 2e-5, 1.0, "beyond the latency protocol"),
    scaled("middle_rate", "1", 0.4, 0.8, "share of the link"),
    scaled("bulk_seconds", "s", 5e-5, 1.0, "beyond the middle protocol"),
    scaled("bulk_rate", "1", 0.8, 0.5, "share of the link"),
    scaled("pipeline_seconds", "s", 3e-6, 1.5),
    scaled("ramp_seconds", "s", 1e-5, 1.0),
    scaled("ramp_bytes", "B", 4e6, 1.5),
    share("softness", 0.3, 1.5),
    scaled("overflow_share", "1", 0.1, 1.5),
    scaled("overflow_bytes", "B", 1e7, 1.5),
)


def log_seconds(values: Values, features: Features) -> Array:
    """Returns log seconds; element-wise."""
    v, wire, link = values, features["wire_bytes"], features["link_bytes_per_s"]
    floor = v["latency_seconds"] + v["rank_seconds"] * (features["gpus"] - 1.0)
    start, ways = 0.0, []
    for protocol in ("latency", "middle", "bulk"):
        if protocol != "latency":
            start = start + v[f"{protocol}_seconds"]
        ways.append(start + wire / (link * v[f"{protocol}_rate"]))
    bulk = wire / (link * v["bulk_rate"])
    pipeline = jnp.sqrt(v["pipeline_seconds"] * bulk)
    pipeline = pipeline + v["ramp_seconds"] * wire / (wire + v["ramp_bytes"])
    overflow = v["overflow_share"] * bulk * wire / (wire + v["overflow_bytes"])
    body = soft_minimum(ways, 10.0) + pipeline
    return jnp.log(smooth_max(floor, body, v["softness"]) + overflow)


def features(columns: Columns, chips: Chips = CATALOGUE) -> dict[str, np.ndarray]:
    """Returns the inputs of `log_seconds` for every row."""
    ranks = columns["gpus"].astype(float)
    trips = np.where(columns["operation"] == "all_reduce", 2.0, 1.0)
    return {
        "gpus": ranks,
        "wire_bytes": columns["bytes"] * trips * (ranks - 1.0) / ranks,
        "link_bytes_per_s": fact(columns["gpu"], "link_bytes_per_s", chips),
    }


def scored(columns: Columns) -> np.ndarray:
    """Returns the rows that count in full: payloads of at least 64 KiB."""
    return columns["bytes"] >= SCORED_BYTES


FAMILY = Family(
    kind="collectives",
    coefficients=COEFFICIENTS,
    log_target=log_seconds,
    features=features,
    levels=(
        ("operation",),
        ("operation", "implementation"),
        ("gpu", "operation", "implementation", "dtype", "gpus"),
        ("gpu", "operation", "implementation", "dtype", "gpus", "version"),
    ),
    shape=("operation", "gpus", "bytes"),
    must_match=("operation",),
    rows=64,
    scored=scored,
)
