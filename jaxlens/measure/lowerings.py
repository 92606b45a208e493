"""Kernels of an einsum program as torch operations on named tensors.

Every kernel of `programs.program` becomes one operation: a matrix product of the rows, depth
and columns that predictions count, scaled-dot-product attention over the KV cache that they
count, or an element-wise pass. Tensors are found by their axes; `t` stands for the tokens of
all sequences, so `n q` is the same as `t`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxlens import einsums
from jaxlens.einsums import Einsum
from jaxlens.measure.devices import Device
from jaxlens.measure.grouped_products import balanced_ends, grouped_product
from jaxlens.measure.kernels import normal
from jaxlens.measure.refusals import Unavailable
from jaxlens.programs import Kernel

Names = dict[object, Any]  # tensors by their axes, and the residual stream
Operation = Callable[[Names], None]
STREAM, PARTIAL = "stream", "partial"
TOKENS_BY_WIDTH = frozenset({"t", "d"})


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and at which sizes a program is lowered."""

    device: Device
    dtype: Any
    extents: Mapping[str, float]
    phase: str

    def size(self, name: str) -> int:
        """Returns an extent as a whole number."""
        return round(float(self.extents[name]))

    def product(self, powers: einsums.Monomial) -> int:
        """Returns a product of extents as a whole number."""
        return round(float(einsums.evaluate(powers, self.extents)))

    def weight(self, *shape: int) -> Any:
        """Returns random weights that keep activations of order one."""
        return normal(self.device, self.dtype, *shape) * shape[-1] ** -0.5


def lowered(kernel: Kernel, at: Setting) -> Operation:
    """Returns `kernel` with weights of its own, as a function that updates tensors."""
    first = kernel.einsums[0]
    if kernel.role == "gemm":
        return _product(kernel, at)
    if kernel.role == "attention" and "g" in first.inputs[0]:
        return _attention(at)
    if kernel.role == "experts":
        return _experts(first, at)
    if kernel.role == "elementwise":
        return _elementwise(first, at)
    raise Unavailable(
        f"step: expected grouped-query attention, dense or expert layers, got "
        f"{kernel.name!r}; choose a model without it."
    )


def axes(names: tuple[str, ...]) -> frozenset[str]:
    """Returns the axes of a tensor, with sequences and queries as tokens.

    >>> sorted(axes(("n", "q", "g", "e")))
    ['e', 'g', 't']
    """
    return frozenset("t" if name in {"n", "q"} else name for name in names)


def _product(kernel: Kernel, at: Setting) -> Operation:
    torch = at.device.torch
    products = kernel.einsums
    source = axes(products[0].inputs[0])
    depth = at.product(einsums.depth(products[0]))
    columns = [at.product(einsums.columns(e)) for e in products]
    weight = at.weight(sum(columns), depth)
    targets = [axes(e.output) for e in products]
    partial = products[-1].partial

    def run(tensors: Names) -> None:
        result = torch.nn.functional.linear(tensors[source].reshape(-1, depth), weight)
        if partial:
            tensors[PARTIAL] = result
            return
        parts = result.split(columns, dim=-1) if len(columns) > 1 else (result,)
        for target, part in zip(targets, parts, strict=True):
            tensors[target] = part

    return run


def _attention(at: Setting) -> Operation:
    n, q, g, r, e = (at.size(name) for name in ("n", "q", "g", "r", "e"))
    cached = at.size("s")
    if at.phase == "prefill" and at.extents["window"] < cached:
        raise Unavailable(
            f"step: expected prompts within the window of {at.extents['window']:.0f} "
            f"tokens, got {cached}; choose a shorter prompt."
        )
    keys = normal(at.device, at.dtype, n, g, cached, e)
    values = normal(at.device, at.dtype, n, g, cached, e)
    attend = at.device.torch.nn.functional.scaled_dot_product_attention
    causal = at.phase == "prefill"

    def run(tensors: Names) -> None:
        query = tensors[axes(("t", "g", "r", "e"))].reshape(n, q, g * r, e)
        added = tensors[axes(("t", "g", "e"))].reshape(n, q, -1, g, e)
        keys[:, :, -q:].copy_(added[:, :, 0].transpose(1, 2))
        values[:, :, -q:].copy_(added[:, :, -1].transpose(1, 2))
        result = attend(
            query.transpose(1, 2), keys, values, is_causal=causal, enable_gqa=r > 1
        )
        tensors[axes(("t", "g", "r", "e"))] = result.transpose(1, 2).reshape(n * q, -1)

    return run


def _experts(einsum: Einsum, at: Setting) -> Operation:
    """Returns one product of rows sorted by expert, under balanced routing."""
    torch = at.device.torch
    tokens, top_k, count = at.size("t"), at.size("k"), at.size("z")
    ends = balanced_ends(tokens * top_k, count)
    depth = at.product(einsums.depth(einsum))
    columns = at.product(einsums.columns(einsum))
    weight = at.weight(count, depth, columns)
    last = torch.tensor(ends, dtype=torch.int32, device=at.device.place)
    product, _ = grouped_product(at.device, at.dtype, ends)
    rows = torch.randperm(tokens * top_k, device=at.device.place) // top_k
    source, target = axes(einsum.inputs[0]), axes(einsum.output)

    def run(tensors: Names) -> None:
        sorted_rows = tensors.get(source)
        if sorted_rows is None or target != frozenset({"t", "k", "d"}):
            sorted_rows = tensors[TOKENS_BY_WIDTH].index_select(0, rows)
        tensors[target] = product(sorted_rows, weight, last)

    return run


def _elementwise(einsum: Einsum, at: Setting) -> Operation:
    builders: dict[str, Callable[[Setting], Operation]] = {
        "t d -> t d": _norm,
        "t f -> t f": lambda s: _activation(s, frozenset({"t", "f"})),
        "t k f -> t k f": lambda s: _activation(s, frozenset({"t", "k", "f"})),
        "t k d -> t d": _combine,
        "t w, w d -> t d": _embedding,
        "o d -> o d": _last_norm,
        "o v -> o": _sampling,
    }
    if einsum.equation not in builders:
        raise Unavailable(
            f"step: expected a known element-wise pass, got {einsum.equation!r} "
            f"({einsum.name}); choose a model without it."
        )
    return builders[einsum.equation](at)


def _norm(at: Setting) -> Operation:
    rms_norm = at.device.torch.nn.functional.rms_norm
    width = at.size("d")
    scale = normal(at.device, at.dtype, width)

    def run(tensors: Names) -> None:
        stream, branch = tensors.get(STREAM), tensors[TOKENS_BY_WIDTH]
        tensors[STREAM] = branch if stream is None else stream + branch
        tensors[TOKENS_BY_WIDTH] = rms_norm(tensors[STREAM], (width,), scale)

    return run


def _activation(at: Setting, where: frozenset[str]) -> Operation:
    functional = at.device.torch.nn.functional
    gated = at.size("up_matrices") == 2

    def run(tensors: Names) -> None:
        if gated:
            gate, up = tensors[where].chunk(2, dim=-1)
            tensors[where] = functional.silu(gate) * up
        else:
            tensors[where] = functional.gelu(tensors[where])

    return run


def _combine(at: Setting) -> Operation:
    torch = at.device.torch
    tokens, top_k, width = at.size("t"), at.size("k"), at.size("d")
    back = torch.randperm(tokens * top_k, device=at.device.place)
    share = torch.rand((tokens, top_k, 1), device=at.device.place).to(at.dtype)
    source = frozenset({"t", "k", "d"})

    def run(tensors: Names) -> None:
        rows = tensors.pop(source).index_select(0, back).view(tokens, top_k, width)
        result = (rows * share).sum(1)
        shared = tensors.pop(PARTIAL, None)
        tensors[TOKENS_BY_WIDTH] = result if shared is None else result + shared

    return run


def _embedding(at: Setting) -> Operation:
    torch = at.device.torch
    table = at.weight(at.size("v"), at.size("d"))
    words = torch.randint(at.size("v"), (at.size("t"),), device=at.device.place)

    def run(tensors: Names) -> None:
        tensors[TOKENS_BY_WIDTH] = torch.nn.functional.embedding(words, table)

    return run


def _last_norm(at: Setting) -> Operation:
    rms_norm = at.device.torch.nn.functional.rms_norm
    width, sequences = at.size("d"), at.size("o")
    scale = normal(at.device, at.dtype, width)

    def run(tensors: Names) -> None:
        stream = tensors[STREAM] + tensors[TOKENS_BY_WIDTH]
        last = stream.view(sequences, -1, width)[:, -1]
        tensors[frozenset({"o", "d"})] = rms_norm(last, (width,), scale)

    return run


def _sampling(at: Setting) -> Operation:
    def run(tensors: Names) -> None:
        tensors[frozenset({"o"})] = tensors[frozenset({"o", "v"})].argmax(-1)

    return run
