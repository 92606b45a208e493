"""What each suite measures: grids of sizes that language models run, by kind of operation."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from jaxlens.kernel_works import KINDS
from jaxlens.measure.cases import Case, case
from jaxlens.measure.devices import Device
from jaxlens.measure.kernels import ELEMENT_BYTES

SUITES = ("quick", "full", "overlap", "serving")
OPERATIONS = KINDS


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Sizes that suit one kind of device."""

    dtypes: tuple[str, ...]
    rows: tuple[int, ...]
    matrices: tuple[tuple[int, int], ...]  # n, k of weights
    heads: tuple[tuple[int, int, int], ...]  # heads, KV heads, head width
    prompts: tuple[tuple[int, int, int], ...]  # batch, new tokens, cached tokens
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    experts: tuple[
        tuple[int, int, int, int], ...
    ]  # width, expert width, top k, experts
    tokens: tuple[int, ...]
    widths: tuple[int, ...]
    copies: tuple[int, ...]  # bytes, read and written
    largest_flop: float  # of one launch
    memory_share: float = 0.3  # of the device's memory that one set of inputs may take


# Weights of 8B and 70B dense models and of their tensor-parallel parts; experts as in
# Qwen3-30B-A3B, Qwen3-235B-A22B, Mixtral-8x7B, gpt-oss-20b and an eighth of DeepSeek-V3.
GPU = Grid(
    dtypes=("bfloat16", "fp8"),
    rows=(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    matrices=(
        (2048, 2048),
        (1024, 8192),
        (4096, 4096),
        (6144, 4096),
        (28672, 4096),
        (4096, 14336),
        (8192, 8192),
        (14336, 8192),
        (8192, 7168),
        (57344, 8192),
        (128256, 4096),
    ),
    heads=((32, 8, 128), (64, 8, 128), (8, 1, 128), (16, 16, 64), (16, 8, 256)),
    prompts=(
        (1, 128, 0),
        (1, 512, 0),
        (1, 2048, 0),
        (1, 8192, 0),
        (1, 16384, 0),
        (4, 2048, 0),
        (16, 512, 0),
        (1, 2048, 6144),
    ),
    batches=(1, 4, 16, 64, 256),
    contexts=(512, 2048, 8192, 32768),
    experts=(
        (2048, 768, 8, 128),
        (4096, 1536, 8, 128),
        (4096, 14336, 2, 8),
        (2880, 2880, 4, 32),
        (7168, 2048, 8, 32),
    ),
    tokens=(1, 8, 32, 128, 512, 2048, 8192),
    widths=(2048, 4096, 8192, 28672),
    copies=tuple(2**power for power in range(16, 34, 2)),
    largest_flop=2e13,
)
CPU = Grid(
    dtypes=("float32",),
    rows=(1, 4, 16, 64, 256, 512),
    matrices=((256, 256), (1024, 256), (512, 512), (1024, 1024), (2816, 1024)),
    heads=((8, 2, 64), (8, 8, 64), (4, 1, 128)),
    prompts=((1, 64, 0), (1, 256, 0), (2, 256, 0), (1, 128, 128)),
    batches=(1, 4, 16),
    contexts=(128, 512, 2048),
    experts=((256, 128, 2, 8), (512, 256, 4, 16)),
    tokens=(1, 8, 32, 128),
    widths=(256, 1024, 2816),
    copies=tuple(2**power for power in range(14, 27, 2)),
    largest_flop=2e9,
)
GRIDS: Mapping[str, Grid] = MappingProxyType({"cpu": CPU, "cuda": GPU})


def full(device: Device, operations: Iterable[str] = OPERATIONS) -> list[Case]:
    """Returns every case of `operations` that one launch on `device` can hold."""
    wanted = tuple(operations)
    unknown = sorted(set(wanted) - set(OPERATIONS))
    if unknown:
        raise ValueError(
            f"--ops: expected some of {', '.join(OPERATIONS)}, got {', '.join(unknown)}."
        )
    grid = GRIDS[device.kind]
    builders = {
        "gemm": _gemm,
        "attention_prefill": _prefill,
        "attention_decode": _decode,
        "moe": _experts,
        "elementwise": _elementwise,
        "copy": _copy,
    }
    room = grid.memory_share * device.memory_bytes
    return [
        one
        for operation in wanted
        for one, held in builders[operation](grid)
        if held <= room
    ]


Sized = Iterator[tuple[Case, float]]  # cases and the bytes of one set of inputs


def _gemm(grid: Grid) -> Sized:
    for dtype in grid.dtypes:
        for n, k in grid.matrices:
            for m in grid.rows:
                if 2.0 * m * n * k > grid.largest_flop or (dtype == "fp8" and m < 16):
                    continue
                held = ELEMENT_BYTES[dtype] * (m * k + n * k + m * n)
                yield case("gemm", {"m": m, "n": n, "k": k, "dtype": dtype}), held


def _attention(heads: tuple[int, int, int], dtype: str) -> dict[str, int | str]:
    return {
        "heads": heads[0],
        "kv_heads": heads[1],
        "head_dim": heads[2],
        "window": 0,
        "dtype": dtype,
        "kv_dtype": dtype,
    }


def _prefill(grid: Grid) -> Sized:
    dtype = grid.dtypes[0]
    for heads in grid.heads:
        for batch, prompt, cached in grid.prompts:
            flop = 4.0 * batch * heads[0] * heads[2] * prompt * (cached + prompt)
            if flop > grid.largest_flop:
                continue
            sizes = {"batch": batch, "prompt_tokens": prompt, "cached_tokens": cached}
            tokens = batch * (2 * prompt + cached)
            held = ELEMENT_BYTES[dtype] * tokens * 2.0 * heads[0] * heads[2]
            yield case("attention_prefill", sizes | _attention(heads, dtype)), held


def _decode(grid: Grid) -> Sized:
    dtype = grid.dtypes[0]
    for heads in grid.heads:
        for batch in grid.batches:
            for context in grid.contexts:
                sizes = {"batch": batch, "context_tokens": context}
                kv = 2.0 * batch * context * heads[1] * heads[2]
                held = ELEMENT_BYTES[dtype] * kv
                yield case("attention_decode", sizes | _attention(heads, dtype)), held


def _experts(grid: Grid) -> Sized:
    dtype = grid.dtypes[0]
    for width, inner, top_k, count in grid.experts:
        for tokens in grid.tokens:
            if 6.0 * tokens * top_k * width * inner > grid.largest_flop:
                continue
            sizes = {
                "tokens": tokens,
                "width": width,
                "expert_width": inner,
                "top_k": top_k,
                "experts": count,
                "dtype": dtype,
                "distribution": "balanced",
                "tensor_parallel": 1,
                "expert_parallel": 1,
            }
            yield case("moe", sizes), ELEMENT_BYTES[dtype] * 3.0 * count * width * inner


def _elementwise(grid: Grid) -> Sized:
    dtype = grid.dtypes[0]
    for operation in ("norm", "activation", "softmax"):
        for width in grid.widths:
            for tokens in grid.tokens:
                sizes = {
                    "operation": operation,
                    "tokens": tokens,
                    "width": width,
                    "dtype": dtype,
                }
                held = ELEMENT_BYTES[dtype] * 3.0 * tokens * width
                yield case("elementwise", sizes), held


def _copy(grid: Grid) -> Sized:
    for size in grid.copies:
        yield case("copy", {"bytes": size}), float(size)


def sm_shares(device: Device) -> list[Case]:
    """Returns a compute-bound and a memory-bound kernel on parts of the SMs."""
    if device.kind == "cpu":
        return []
    parts = {max(8, round(device.sms * i / 8 / 8) * 8) for i in range(1, 8)}
    counts = sorted({*parts, device.sms})
    inner = (
        case("gemm", {"m": 4096, "n": 4096, "k": 4096, "dtype": "bfloat16"}),
        case("copy", {"bytes": 2**31}),
        case(
            "attention_decode",
            {"batch": 64, "context_tokens": 8192}
            | _attention((64, 8, 128), "bfloat16"),
        ),
    )
    return [nested("sm_share", {"sms": sms}, one) for one in inner for sms in counts]


def overlap_pairs(device: Device) -> list[Case]:
    """Returns matrix products beside copies."""
    if device.kind == "cpu":
        products, copies, dtype = ((256, 512, 512),), (2**24,), "float32"
    else:
        products = ((4096, 4096, 4096), (64, 8192, 8192), (8192, 28672, 4096))
        copies, dtype = (2**26, 2**30), "bfloat16"
    return [
        case("overlap", {"m": m, "n": n, "k": k, "dtype": dtype, "copied_bytes": size})
        for m, n, k in products
        for size in copies
    ]


def nested(kind: str, sizes: Mapping[str, int | str], inner: Case) -> Case:
    """Returns a case of `kind` around the kernel of `inner`."""
    return case(kind, {**sizes, "operation_kind": inner.kind, **dict(inner.sizes)})


def collectives(ranks: int, device: Device) -> list[Case]:
    """Returns collectives of a kilobyte to a gigabyte (16 MiB on a processor)."""
    top = 31 if device.kind == "cuda" else 25
    names = ["all_reduce", "all_gather", "reduce_scatter", "alltoall"]
    if device.kind == "cpu":
        names.remove("reduce_scatter")  # gloo has none
    dtype = "half" if device.kind == "cuda" else "float"
    return [
        case(
            "collectives",
            {"operation": name, "dtype": dtype, "gpus": ranks, "bytes": 2**power},
        )
        for name in names
        for power in range(10, top, 2)
    ]


def serving(device: Device) -> list[Case]:
    """Returns steps of a small model: prefill and decode, three ways of running each."""
    model = "Qwen/Qwen3-0.6B"
    # Graphed first: those are compared with their kernels.
    modes = ("graphed", "eager", "compiled") if device.kind == "cuda" else ("eager",)
    if device.kind == "cpu":
        points = (
            ("prefill", 1, 32),
            ("prefill", 2, 64),
            ("decode", 1, 128),
            ("decode", 8, 128),
            ("decode", 4, 512),
        )
    else:
        points = (
            ("prefill", 1, 512),
            ("prefill", 1, 4096),
            ("prefill", 8, 1024),
            *(("decode", batch, 2048) for batch in (1, 16, 64, 256)),
        )
    return [
        case(
            "forward",
            {
                "model": model,
                "phase": phase,
                "batch": batch,
                "prompt_tokens": tokens,
                "mode": mode,
            },
        )
        for mode in modes
        for phase, batch, tokens in points
    ]


def size_features(one: Case) -> list[float]:
    """Returns the logarithms of the sizes of a case, in the order of their names."""
    return [
        math.log(max(float(value), 1.0))
        for _, value in sorted(one.sizes)
        if isinstance(value, int | float)
    ]
