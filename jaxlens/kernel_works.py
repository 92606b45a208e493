"""What a measured operation of given sizes asks of a chip, in the words of predictions.

A matrix product, attention and a copy are one kernel. An expert layer is what predictions make
of it: two grouped products with an activation between them and a sum behind. A norm or an
activation is one step of a model that takes `passes` kernels where nothing fuses it; one pass
reads and writes each element once.

Chooses cases (whose predicted times tell coefficients apart) and fits machines to what was
measured of them.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxlens.precisions import FORMATS as ELEMENT_BYTES
from jaxlens.precisions import precision
from jaxlens.works import Message, Work

# How torch and tables spell number formats, and what predictions call them.
FORMATS: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "fp8": "fp8",
}
KINDS = (
    "gemm",
    "attention_prefill",
    "attention_decode",
    "moe",
    "elementwise",
    "copy",
)
COLLECTIVES: Mapping[str, str] = {
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "alltoall": "all-to-all",
}
MAY_BE_ZERO = frozenset({"cached_tokens"})

Sizes = Mapping[str, Any]


def works(kind: str, sizes: Sizes) -> dict[str, Work]:
    """Returns the kernels of one operation, by name.

    >>> asked = works("gemm", {"m": 8, "n": 64, "k": 32, "dtype": "bfloat16"})
    >>> asked["gemm"].flop, asked["gemm"].hbm_bytes
    (32768.0, 5632.0)
    """
    if kind not in KINDS:
        raise ValueError(
            f"operation: expected one of {', '.join(KINDS)}, got {kind!r}; "
            "see `jaxlens measure --help`."
        )
    if kind == "gemm":
        return {"gemm": _gemm(sizes)}
    if kind == "attention_prefill":
        return {"attention": _attention_prefill(sizes)}
    if kind == "attention_decode":
        return {"attention": _attention_decode(sizes)}
    if kind == "moe":
        return _experts(sizes)
    if kind == "elementwise":
        return {"elementwise": _elementwise(sizes)}
    return {"copy": _plain(_size(sizes, "bytes"), "float32")}


def message(sizes: Sizes) -> Message:
    """Returns the collective of one row; `bytes` is the size of the whole tensor."""
    operation = str(sizes["operation"])
    if operation not in COLLECTIVES:
        raise ValueError(
            f"collective: expected one of {', '.join(COLLECTIVES)}, got {operation!r}."
        )
    return Message(
        kind=COLLECTIVES[operation],
        payload_bytes=_size(sizes, "bytes"),
        ranks=_size(sizes, "gpus"),
    )


def format_of(dtype: str) -> str:
    """Returns what predictions call a number format of torch or of a table."""
    if dtype not in FORMATS:
        raise ValueError(
            f"dtype: expected one of {', '.join(FORMATS)}, got {dtype!r}; "
            "leave such rows out."
        )
    return FORMATS[dtype]


def _size(sizes: Sizes, name: str) -> float:
    size = float(sizes.get(name, math.nan))
    if not 0.0 <= size < math.inf or (size == 0.0 and name not in MAY_BE_ZERO):
        raise ValueError(f"{name}: expected a finite number above 0, got {size:g}.")
    return size


def _element_bytes(dtype: str) -> float:
    return ELEMENT_BYTES[format_of(dtype)]


def _gemm(sizes: Sizes) -> Work:
    """A product; narrow formats leave a result in 16 bits."""
    m, n, k = (_size(sizes, name) for name in ("m", "n", "k"))
    dtype = str(sizes["dtype"])
    element = _element_bytes(dtype)
    return Work(
        role="gemm",
        mix=precision(format_of(dtype)),
        flop=2.0 * m * n * k,
        rows=m,
        columns=n,
        depth=k,
        hbm_bytes=element * (m * k + n * k) + max(element, 2.0) * m * n,
    )


def _attention_prefill(sizes: Sizes) -> Work:
    queries, past = _size(sizes, "prompt_tokens"), _size(sizes, "cached_tokens")
    return _attention(sizes, queries, past + queries, seen=past + 0.5 * (queries + 1.0))


def _attention_decode(sizes: Sizes) -> Work:
    keys = _size(sizes, "context_tokens")
    return _attention(sizes, 1.0, keys, seen=keys)


def _attention(sizes: Sizes, queries: float, keys: float, *, seen: float) -> Work:
    batch, heads, kv_heads, width = (
        _size(sizes, name) for name in ("batch", "heads", "kv_heads", "head_dim")
    )
    dtype = str(sizes.get("dtype") or "bfloat16")
    element = _element_bytes(dtype)
    kv_element = _element_bytes(str(sizes.get("kv_dtype") or dtype))
    return Work(
        role="attention",
        mix=precision(format_of(dtype)),
        flop=4.0 * batch * heads * queries * seen * width,
        rows=queries * heads / kv_heads,
        columns=keys + width,
        depth=width,
        hbm_bytes=2.0 * element * batch * heads * queries * width,
        kv_bytes=2.0 * kv_element * batch * kv_heads * keys * width,
    )


def _experts(sizes: Sizes) -> dict[str, Work]:
    """An expert layer under balanced routing, on one rank, without its router."""
    tokens, width, inner, top_k, experts = (
        _size(sizes, name)
        for name in ("tokens", "width", "expert_width", "top_k", "experts")
    )
    dtype = str(sizes["dtype"])
    element, mix = _element_bytes(dtype), precision(format_of(dtype))
    rows = tokens * top_k
    active = min(rows, experts)

    def product(columns: float, depth: float) -> Work:
        return Work(
            role="experts",
            mix=mix,
            flop=2.0 * rows * columns * depth,
            rows=rows / active,
            columns=columns,
            depth=depth,
            hbm_bytes=element * (active * columns * depth + rows * (columns + depth)),
        )

    return {
        "experts up": product(2.0 * inner, width),
        "experts activation": _passes(rows, inner, dtype),
        "experts down": product(width, inner),
        "experts out": _plain(element * (rows + tokens) * width, dtype),
    }


def _elementwise(sizes: Sizes) -> Work:
    tokens, width = _size(sizes, "tokens"), _size(sizes, "width")
    operation, dtype = str(sizes["operation"]), str(sizes["dtype"])
    if operation in ("norm", "activation"):
        return _passes(tokens, width, dtype)
    if operation == "softmax":
        return _plain(2.0 * _element_bytes(dtype) * tokens * width, dtype)
    raise ValueError(
        "elementwise: expected an operation among norm, activation, softmax, "
        f"got {operation!r}."
    )


def _passes(tokens: float, width: float, dtype: str) -> Work:
    """A step that takes several kernels: each reads and writes every element."""
    moved = 2.0 * _element_bytes(dtype) * tokens * width
    return Work(
        role="elementwise",
        repeat="passes",
        mix=precision(format_of(dtype)),
        hbm_bytes=moved,
    )


def _plain(moved_bytes: float, dtype: str) -> Work:
    """One kernel that reads and writes `moved_bytes` together."""
    return Work(
        role="elementwise", mix=precision(format_of(dtype)), hbm_bytes=moved_bytes
    )
