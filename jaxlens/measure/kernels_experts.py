"""A layer of routed experts: gather rows, gated up, down, and add up, without the router."""

from typing import Any

from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Device
from jaxlens.measure.grouped_products import balanced_ends, grouped_product
from jaxlens.measure.kernels import (
    ELEMENT_BYTES,
    Kernel,
    Tensors,
    normal,
    torch_dtype,
)


def experts(case: Case, device: Device) -> Kernel:
    """Returns the expert layer under balanced routing, on one rank."""
    torch = device.torch
    tokens, width, inner, top_k, count = (
        case.number(name)
        for name in ("tokens", "width", "expert_width", "top_k", "experts")
    )
    dtype = torch_dtype(device, case.text("dtype"))
    rows = tokens * top_k
    ends = balanced_ends(rows, count)
    product, source = grouped_product(device, dtype, ends)

    def make() -> Tensors:
        order = torch.randperm(rows, device=device.place)
        return {
            "tokens": normal(device, dtype, tokens, width),
            "up": normal(device, dtype, count, width, 2 * inner),
            "down": normal(device, dtype, count, inner, width),
            "share": torch.rand((tokens, top_k, 1), device=device.place).to(dtype),
            "token_of_row": order // top_k,
            "row_of_token": torch.argsort(order),
            "ends": torch.tensor(ends, dtype=torch.int32, device=device.place),
        }

    def run(t: Tensors) -> Any:
        sorted_rows = t["tokens"].index_select(0, t["token_of_row"])
        gate, up = product(sorted_rows, t["up"], t["ends"]).chunk(2, dim=-1)
        hidden = torch.nn.functional.silu(gate) * up
        result = product(hidden, t["down"], t["ends"])
        result = result.index_select(0, t["row_of_token"]).view(tokens, top_k, width)
        return (result * t["share"]).sum(1)

    element = ELEMENT_BYTES[case.text("dtype")]
    active = min(rows, count)
    weights = 3.0 * width * inner * element
    passes = element * (2.0 * tokens * width + rows * (4.0 * width + 5.0 * inner))
    return Kernel(
        make=make,
        run=run,
        random=("tokens", "up", "down"),
        set_bytes=count * weights + element * tokens * width,
        flop=6.0 * rows * width * inner,
        moved_bytes=active * weights + passes,
        source=source,
    )
