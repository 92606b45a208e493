"""Matrix products: m x k times k x n."""

from typing import Any

from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Cuda, Device
from jaxlens.measure.kernels import (
    ELEMENT_BYTES,
    Kernel,
    Tensors,
    blank,
    normal,
    torch_dtype,
)
from jaxlens.measure.refusals import Unavailable

FP8_CAPABILITY = (8, 9)  # compute capability of the first chips with an fp8 unit


def gemm(case: Case, device: Device) -> Kernel:
    """Returns the product that a linear layer runs: rows times a transposed weight."""
    m, n, k = (case.number(name) for name in ("m", "n", "k"))
    name = case.text("dtype")
    if name == "fp8":
        return _gemm_fp8(m, n, k, device)
    torch, dtype = device.torch, torch_dtype(device, name)

    def make() -> Tensors:
        return {
            "rows": normal(device, dtype, m, k),
            "weight": normal(device, dtype, n, k),
            "result": blank(device, dtype, m, n),
        }

    def run(t: Tensors) -> Any:
        return torch.mm(t["rows"], t["weight"].t(), out=t["result"])

    width = ELEMENT_BYTES[name]
    moved = width * (m * k + k * n + m * n)
    return Kernel(
        make=make,
        run=run,
        random=("rows", "weight"),
        set_bytes=moved,
        flop=2.0 * m * n * k,
        moved_bytes=moved,
        source="torch.mm",
    )


def _gemm_fp8(m: int, n: int, k: int, device: Device) -> Kernel:
    """Returns the product with one scale per tensor and a result in bf16."""
    torch = device.torch
    if not isinstance(device, Cuda) or device.capability < FP8_CAPABILITY:
        raise Unavailable(
            f"measure: expected an fp8 unit, got {device.name}; leave fp8 out (--ops)."
        )
    dtype = torch_dtype(device, "fp8")

    def make() -> Tensors:
        return {
            "rows": normal(device, dtype, m, k),
            "weight": normal(device, dtype, n, k),
            "scale": torch.ones((), dtype=torch.float32, device=device.place),
        }

    def run(t: Tensors) -> Any:
        scale = t["scale"]
        return torch._scaled_mm(
            t["rows"], t["weight"].t(), scale, scale, out_dtype=torch.bfloat16
        )

    return Kernel(
        make=make,
        run=run,
        random=("rows", "weight"),
        set_bytes=float(m * k + k * n + 2 * m * n),
        flop=2.0 * m * n * k,
        moved_bytes=float(m * k + k * n + 2 * m * n),
        source="torch._scaled_mm",
    )
