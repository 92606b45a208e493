"""What a case says about the coefficients: the gradient of its predicted log-time.

    feature_i = d log t / d log theta_i

for the coefficients theta of chip and stack, by differentiation of the same roofline
that calibration fits. Sizes are appended with a small weight: they part cases that the
present coefficients cannot tell apart.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens import rooflines
from jaxlens.measure.cases import Case
from jaxlens.measure.kernels import ELEMENT_BYTES
from jaxlens.measure.suites import size_features
from jaxlens.precisions import precision
from jaxlens.profiles import Profile
from jaxlens.works import Work

SIZE_WEIGHT = 0.05
FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "fp8": "fp8"}
ROLES = {
    "gemm": "gemm",
    "attention_prefill": "attention",
    "attention_decode": "attention",
    "moe": "experts",
    "elementwise": "elementwise",
    "copy": "elementwise",
}


def features(cases: Sequence[Case], profile: Profile) -> np.ndarray:
    """Returns one row per case; columns are comparable within a kind only."""
    rows: list[list[float]] = [[] for _ in cases]
    groups: dict[tuple[str, str], list[int]] = {}
    for position, one in enumerate(cases):
        dtype = str(dict(one.sizes).get("dtype", "bfloat16"))
        groups.setdefault((one.kind, dtype), []).append(position)
    for positions in groups.values():
        members = [cases[i] for i in positions]
        gradients = _gradients([work(one) for one in members], profile)
        for i, one, gradient in zip(positions, members, gradients, strict=True):
            sizes = [SIZE_WEIGHT * value for value in size_features(one)]
            rows[i] = [*gradient.tolist(), *sizes]
    width = max(map(len, rows), default=0)
    return np.array([row + [0.0] * (width - len(row)) for row in rows])


def work(one: Case) -> Work:
    """Returns what `one` asks of a chip, as predictions see it."""
    sizes: dict[str, Any] = dict(one.sizes)
    dtype = str(sizes.get("dtype", "float32"))
    mix, element = precision(FORMATS[dtype]), ELEMENT_BYTES[dtype]
    role = ROLES[one.kind]
    if one.kind == "gemm":
        m, n, k = float(sizes["m"]), float(sizes["n"]), float(sizes["k"])
        asks: dict[str, Any] = {
            "flop": 2.0 * m * n * k,
            "rows": m,
            "columns": n,
            "depth": k,
            "hbm_bytes": element * (m * k + n * k + m * n),
        }
    elif role == "attention":
        asks = _attention(sizes, element)
    elif one.kind == "moe":
        asks = _experts(sizes, element)
    else:
        moved = float(
            sizes.get("bytes")
            or 3.0 * element * float(sizes["tokens"]) * float(sizes["width"])
        )
        asks = {"hbm_bytes": moved}
    return Work(role=role, mix=mix, **asks)


def _attention(sizes: dict[str, Any], element: float) -> dict[str, Any]:
    queries = float(sizes.get("prompt_tokens", 1))
    past = float(sizes.get("cached_tokens", 0)) + float(sizes.get("context_tokens", 0))
    keys = past + queries if "prompt_tokens" in sizes else past
    seen = past + 0.5 * (queries + 1.0) if "prompt_tokens" in sizes else keys
    batch, heads, kv_heads, width = (
        float(sizes[name]) for name in ("batch", "heads", "kv_heads", "head_dim")
    )
    return {
        "flop": 4.0 * batch * heads * queries * seen * width,
        "rows": queries * heads / kv_heads,
        "columns": keys + width,
        "depth": width,
        "hbm_bytes": 2.0 * element * batch * heads * queries * width,
        "kv_bytes": 2.0 * element * batch * kv_heads * keys * width,
    }


def _experts(sizes: dict[str, Any], element: float) -> dict[str, Any]:
    tokens, width, inner, top_k, experts = (
        float(sizes[name])
        for name in ("tokens", "width", "expert_width", "top_k", "experts")
    )
    rows = tokens * top_k
    active = min(rows, experts)
    return {
        "flop": 6.0 * rows * width * inner,
        "rows": rows / active,
        "columns": 2.0 * inner,
        "depth": width,
        "hbm_bytes": element
        * (3.0 * active * width * inner + rows * (2.0 * width + 3.0 * inner)),
    }


def _gradients(works: Sequence[Work], profile: Profile) -> np.ndarray:
    names = [
        (layer, field.name)
        for layer in ("chip", "stack")
        for field in dataclasses.fields(getattr(profile, layer))
    ]
    start = jnp.array([0.0] * len(names))

    def log_seconds(logs: jax.Array, one: Work) -> jax.Array:
        layers: dict[str, dict[str, Any]] = {"chip": {}, "stack": {}}
        for i, (layer, name) in enumerate(names):
            layers[layer][name] = getattr(getattr(profile, layer), name) * jnp.exp(
                logs[i]
            )
        machine = rooflines.Machine(
            chip=dataclasses.replace(profile.chip, **layers["chip"]),
            stack=dataclasses.replace(profile.stack, **layers["stack"]),
            clock_share=1.0,
            sm_share=1.0,
        )
        return jnp.log(rooflines.kernel(one, machine).seconds)

    stacked = jax.tree.map(lambda *values: jnp.array(values, dtype=start.dtype), *works)
    rows = jax.vmap(jax.grad(log_seconds), in_axes=(None, 0))
    slopes = jax.jit(rows)(start, stacked)
    return np.asarray(slopes)
