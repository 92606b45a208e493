"""Seconds to dispatch tokens to experts on other GPUs, and to combine them again.

    t = t_start + tokens (t_token + t_sm / sms)
        + max(bytes / (sms b_sm), bytes / B_link, far bytes / B_network) (1 + c overflow)

A token goes once to every rank that holds one of its experts, R (1 - (1 - 1/R)^k) of R ranks,
in part once for each of its k experts; on several nodes it crosses the network as well.
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
    corrections,
    scaled,
    share,
)
from jaxlens.calibration.kernels.terms import corrected, smooth_max

NODE_GPUS = 8.0
ELEMENT_BYTES = 2.0
PHASES = ("dispatch", "combine")
CORRECTIONS = (
    "tokens",
    "sms",
    "tokens_sms",
    "tokens_tokens",
    "top_k",
    "width",
    "experts",
    "tokens_top_k",
)
COEFFICIENTS = (
    scaled("launch_seconds", "s", 3e-5, 0.7),
    scaled("token_seconds", "s", 2e-9, 1.5),
    scaled("sm_token_seconds", "s", 1e-7, 1.5),
    scaled("sm_bytes_per_s", "B/s", 1e10, 1.0, "an SM copies 10-20 GB/s"),
    scaled("link_rate", "1", 0.6, 0.7, "share of the link"),
    scaled("network_rate", "1", 0.5, 0.7, "share of the network adapter"),
    share("softness", 0.05, 1.5),
    share("choice_share", 0.3, 1.5),
    scaled("overflow_share", "1", 0.1, 1.5),
    scaled("overflow_bytes", "B", 1e8, 1.5),
    *corrections(*CORRECTIONS, spread=0.12),
)


def log_seconds(values: Values, features: Features) -> Array:
    """Returns log seconds; element-wise."""
    v, f = values, features
    tokens, top_k, sms, nodes = f["tokens"], f["top_k"], f["comm_sms"], f["nodes"]
    ranks = NODE_GPUS * nodes
    reached = ranks * (1.0 - jnp.exp(top_k * jnp.log1p(-1.0 / ranks)))
    by_rank = (1.0 - v["choice_share"]) * jnp.log(reached)
    copies = jnp.exp(by_rank + v["choice_share"] * jnp.log(top_k))
    sent = tokens * copies * f["width"] * ELEMENT_BYTES
    driven = sent / (sms * v["sm_bytes_per_s"])
    near = sent / (f["link_bytes_per_s"] * v["link_rate"])
    crossing = jnp.minimum(nodes - 1.0, top_k)  # nodes are whole: no kink is met
    far = tokens * f["width"] * ELEMENT_BYTES * crossing
    far = far / (f["network_bytes_per_s"] * v["network_rate"])
    inside = smooth_max(driven, near, v["softness"])
    body = smooth_max(inside, far, v["softness"])
    overflow = v["overflow_share"] * sent / (sent + v["overflow_bytes"])
    each = v["token_seconds"] + v["sm_token_seconds"] / sms
    seconds = v["launch_seconds"] + tokens * each + body * (1.0 + overflow)
    return corrected(seconds, v, _terms(f))


def _terms(f: Features) -> dict[str, Array]:
    x = jnp.log(f["tokens"] / 256.0) / 4.0
    y = jnp.log(f["comm_sms"] / 12.0)
    z = jnp.log(f["top_k"] / 8.0)
    w = jnp.log(f["width"] / 4096.0)
    u = jnp.log(f["experts"] / 128.0) / 2.0
    terms = (x, y, x * y, x * x, z, w, u, x * z)
    return dict(zip(CORRECTIONS, terms, strict=True))


def by_phase(columns: Columns) -> dict[str, np.ndarray]:
    """Returns a row per phase for every row: all dispatches, then all combines."""
    rows = len(columns["tokens"])
    stacked = {name: np.concatenate([v, v]) for name, v in columns.items()}
    stacked["phase"] = np.repeat(np.array(PHASES, np.str_), rows)
    for name in ("sms", "seconds"):
        ends = [columns[f"{phase}_{name}"] for phase in PHASES]
        stacked["comm_sms" if name == "sms" else name] = np.concatenate(ends)
    return stacked


def features(columns: Columns, chips: Chips = CATALOGUE) -> dict[str, np.ndarray]:
    """Returns the inputs of `log_seconds` for every row of `by_phase`."""
    sizes = ("tokens", "top_k", "width", "experts", "nodes", "comm_sms")
    return {
        **{name: columns[name].astype(float) for name in sizes},
        "link_bytes_per_s": fact(columns["gpu"], "link_bytes_per_s", chips),
        "network_bytes_per_s": fact(columns["gpu"], "network_bytes_per_s", chips),
    }


def scored(columns: Columns) -> np.ndarray:
    """Returns the rows that count in full: all of them."""
    return columns["seconds"] > 0.0


FAMILY = Family(
    kind="alltoall",
    coefficients=COEFFICIENTS,
    log_target=log_seconds,
    features=features,
    levels=(("phase",), ("gpu", "version", "phase", "nodes")),
    shape=("tokens", "width", "top_k", "experts", "nodes"),
    must_match=("phase",),
    rows=1000,
    scored=scored,
)
