"""Kernels that stream: copies, norms with residual and gated activations."""

from typing import Any

from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Device
from jaxlens.measure.kernels import (
    ELEMENT_BYTES,
    Kernel,
    Tensors,
    blank,
    normal,
    torch_dtype,
)


def copy(case: Case, device: Device) -> Kernel:
    """Returns a copy inside the device's memory; bytes are read and written ones."""
    torch = device.torch
    elements = case.number("bytes") // 8

    def make() -> Tensors:
        return {
            "from": normal(device, torch.float32, elements),
            "to": blank(device, torch.float32, elements),
        }

    def run(t: Tensors) -> Any:
        return t["to"].copy_(t["from"])

    return Kernel(
        make=make,
        run=run,
        random=("from",),
        set_bytes=8.0 * elements,
        flop=0.0,
        moved_bytes=8.0 * elements,
        source="torch.Tensor.copy_",
    )


def elementwise(case: Case, device: Device) -> Kernel:
    """Returns one element-wise pass of a layer: `norm`, `activation` or `softmax`."""
    builders = {"norm": _norm, "activation": _activation, "softmax": _softmax}
    operation = case.text("operation")
    if operation not in builders:
        raise ValueError(
            f"{case.name}: expected an operation among {', '.join(builders)}, got "
            f"{operation!r}."
        )
    return builders[operation](case, device)


def _norm(case: Case, device: Device) -> Kernel:
    """Residual addition and RMS norm, as two passes that torch does not fuse."""
    torch = device.torch
    tokens, width = case.number("tokens"), case.number("width")
    dtype = torch_dtype(device, case.text("dtype"))

    def make() -> Tensors:
        return {
            "stream": normal(device, dtype, tokens, width),
            "added": normal(device, dtype, tokens, width),
            "scale": normal(device, dtype, width),
        }

    def run(t: Tensors) -> Any:
        return torch.nn.functional.rms_norm(
            t["stream"] + t["added"], (width,), t["scale"]
        )

    element = ELEMENT_BYTES[case.text("dtype")]
    return Kernel(
        make=make,
        run=run,
        random=("stream", "added"),
        set_bytes=3.0 * element * tokens * width,
        flop=5.0 * tokens * width,
        moved_bytes=5.0 * element * tokens * width,
        source="torch.rms_norm",
    )


def _activation(case: Case, device: Device) -> Kernel:
    """Gated SiLU, as two passes that torch does not fuse."""
    torch = device.torch
    tokens, width = case.number("tokens"), case.number("width")
    dtype = torch_dtype(device, case.text("dtype"))

    def make() -> Tensors:
        return {
            "gate": normal(device, dtype, tokens, width),
            "up": normal(device, dtype, tokens, width),
        }

    def run(t: Tensors) -> Any:
        return torch.nn.functional.silu(t["gate"]) * t["up"]

    element = ELEMENT_BYTES[case.text("dtype")]
    return Kernel(
        make=make,
        run=run,
        random=("gate", "up"),
        set_bytes=3.0 * element * tokens * width,
        flop=5.0 * tokens * width,
        moved_bytes=5.0 * element * tokens * width,
        source="torch.silu",
    )


def _softmax(case: Case, device: Device) -> Kernel:
    torch = device.torch
    tokens, width = case.number("tokens"), case.number("width")
    dtype = torch_dtype(device, case.text("dtype"))

    def make() -> Tensors:
        return {"scores": normal(device, dtype, tokens, width)}

    def run(t: Tensors) -> Any:
        return torch.softmax(t["scores"], dim=-1)

    element = ELEMENT_BYTES[case.text("dtype")]
    return Kernel(
        make=make,
        run=run,
        random=("scores",),
        set_bytes=2.0 * element * tokens * width,
        flop=4.0 * tokens * width,
        moved_bytes=2.0 * element * tokens * width,
        source="torch.softmax",
    )
