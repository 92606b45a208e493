"""What a kernel or a collective asks for, before any chip or stack has a say.

The line between description and price: everything here follows from a model, a layout and a
step; everything after it from coefficients. Fits and sweeps over clocks and caps compute it
once.
"""

from jaxtyping import Array, Float

from jaxlens import einsums
from jaxlens.einsums import Extents
from jaxlens.precisions import Precision
from jaxlens.programs import Collective, Kernel
from jaxlens.pytrees import pytree, static

Scalar = Float[Array, ""] | float

STATE_BYTES = 4.0  # recurrent states are kept in fp32


@pytree
class Formats:
    """Number formats of a model: of each kind of weight, and of its KV cache."""

    weights: dict[str, Precision]
    block_scaled: Scalar  # 1 for fp8 with a scale per 128 x 128 block
    kv_bytes: Scalar  # per element of the KV cache


@pytree
class Work:
    """One launch of a kernel on one rank."""

    role: str = static()  # whose efficiencies apply
    rate: str = static(default="")  # stack coefficient in seconds per visit
    repeat: str = static(default="")  # stack coefficient that repeats the launch
    flop: Scalar = 0.0
    rows: Scalar = 1.0
    columns: Scalar = 1.0
    depth: Scalar = 1.0
    mix: Precision
    block_scaled: Scalar = 0.0
    hbm_bytes: Scalar = 0.0  # weights, activations and states
    activation_bytes: Scalar = 0.0  # the part of them that goes with the rows
    kv_bytes: Scalar = 0.0
    visits: Scalar = 0.0


@pytree
class Message:
    """One collective. Ranks are those that hold different data."""

    kind: str = static()  # as in `programs.Collective`, or "send"
    payload_bytes: Scalar
    ranks: Scalar
    stride: Scalar = 1.0  # GPUs from one rank to the next: where a node ends


def work(kernel: Kernel, extents: Extents, formats: Formats) -> Work:
    """Returns what one launch of `kernel` asks for at `extents`.

    Einsums of one kernel count as one product: their FLOPs and columns add up.
    """
    products = [e for e in kernel.einsums if e.multiplies]
    if kernel.role == "elementwise":
        products = []
    flop, columns, rows, depth = 0.0, 0.0, 1.0, 1.0
    for einsum in products:
        flop = flop + 2.0 * einsums.evaluate(einsums.flop(einsum), extents)
        columns = columns + einsums.evaluate(einsums.columns(einsum), extents)
    if products:
        rows = einsums.evaluate(einsums.rows(products[0]), extents)
        depth = einsums.evaluate(einsums.depth(products[0]), extents)
    visited = [e for e in kernel.einsums if e.rate]
    kinds = [e.weights for e in products if "weight" in e.operands]
    first, *rest = kernel.einsums
    width = activation_mix(formats).bytes_per_element
    activation_bytes = _sum(kernel.activations, extents) * width
    return Work(
        role=kernel.role,
        rate=visited[0].rate if visited else "",
        repeat="" if rest else first.repeat,
        flop=flop,
        rows=rows,
        columns=columns if products else 1.0,
        depth=depth,
        mix=formats.weights[kinds[0]] if kinds else activation_mix(formats),
        block_scaled=formats.block_scaled if kernel.role == "experts" else 0.0,
        hbm_bytes=activation_bytes + _resident_bytes(kernel, extents, formats),
        activation_bytes=activation_bytes,
        kv_bytes=_sum(kernel.kv, extents) * formats.kv_bytes,
        visits=sum(
            (einsums.evaluate(einsums.flop(e), extents) for e in visited), start=0.0
        ),
    )


def message(collective: Collective, extents: Extents, ranks: Scalar) -> Message:
    """Returns what `collective` sends: activations in 16 bits."""
    return Message(
        kind=collective.kind,
        payload_bytes=einsums.evaluate(collective.payload, extents) * 2.0,
        ranks=ranks,
    )


def activation_mix(formats: Formats) -> Precision:
    """Returns the format in which activations multiply: bf16 unless weights are wider."""
    wide = formats.weights["attention"]
    full = wide.fp32_share + wide.tf32_share
    return Precision(
        bytes_per_element=2.0 + 2.0 * full,
        fp32_share=wide.fp32_share,
        tf32_share=wide.tf32_share,
        bf16_share=1.0 - full,
    )


def _resident_bytes(kernel: Kernel, extents: Extents, formats: Formats) -> Scalar:
    """Weights and states: what is there before the step."""
    total = _sum(kernel.state, extents) * STATE_BYTES
    for name, size in kernel.weights:
        element = formats.weights[name].bytes_per_element
        total = total + einsums.evaluate(size, extents) * element
    return total


def _sum(sizes: tuple[einsums.Monomial, ...], extents: Extents) -> Scalar:
    return sum((einsums.evaluate(size, extents) for size in sizes), start=0.0)
