"""Attention of one layer through torch's scaled dot product, prefill and decode."""

import importlib
from typing import Any

from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Device
from jaxlens.measure.kernels import (
    ELEMENT_BYTES,
    Kernel,
    Tensors,
    normal,
    torch_dtype,
)


def attention_prefill(case: Case, device: Device) -> Kernel:
    """Returns causal attention of new tokens over themselves and what is cached."""
    queries = case.number("prompt_tokens")
    keys = queries + case.number("cached_tokens")
    seen = case.number("cached_tokens") + 0.5 * (queries + 1.0)
    return _attention(case, device, queries=queries, keys=keys, seen=seen)


def attention_decode(case: Case, device: Device) -> Kernel:
    """Returns attention of one new token of each sequence over its cache."""
    keys = case.number("context_tokens")
    return _attention(case, device, queries=1, keys=keys, seen=float(keys))


def _attention(
    case: Case, device: Device, *, queries: int, keys: int, seen: float
) -> Kernel:
    torch = device.torch
    batch, heads, kv_heads, width = (
        case.number(name) for name in ("batch", "heads", "kv_heads", "head_dim")
    )
    dtype = torch_dtype(device, case.text("dtype"))
    attend = torch.nn.functional.scaled_dot_product_attention
    mask, causal = None, 1 < queries == keys
    if 1 < queries < keys:
        biases = importlib.import_module("torch.nn.attention.bias")
        mask = biases.causal_lower_right(queries, keys)

    def make() -> Tensors:
        return {
            "query": normal(device, dtype, batch, heads, queries, width),
            "key": normal(device, dtype, batch, kv_heads, keys, width),
            "value": normal(device, dtype, batch, kv_heads, keys, width),
        }

    def run(t: Tensors) -> Any:
        return attend(
            t["query"],
            t["key"],
            t["value"],
            attn_mask=mask,
            is_causal=causal,
            enable_gqa=heads != kv_heads,
        )

    element = ELEMENT_BYTES[case.text("dtype")]
    moved = element * batch * width * 2.0 * (heads * queries + kv_heads * keys)
    return Kernel(
        make=make,
        run=run,
        random=("query", "key", "value"),
        set_bytes=moved,
        flop=4.0 * batch * heads * queries * seen * width,
        moved_bytes=moved,
        source="torch.scaled_dot_product_attention",
    )
