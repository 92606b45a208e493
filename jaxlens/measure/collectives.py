"""Collectives among the ranks of a `torchrun`, through NCCL on GPUs and gloo on processors."""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxlens.measure.benches import Bench, Columns, measurement_columns
from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Device
from jaxlens.measure.refusals import Unavailable
from jaxlens.measure.windows import Loop, measured

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
DTYPES = {"half": ("float16", 2), "float": ("float32", 4)}
INPUT_SETS = 4


@dataclass(frozen=True)
class Ranks:
    """This process among those that measure together."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this rank writes and decides."""
        return self.rank == 0


def ranks(environment: Any = os.environ) -> Ranks:
    """Returns what `torchrun` says about this process; one rank without it."""
    return Ranks(
        rank=int(environment.get("RANK", 0)),
        count=int(environment.get("WORLD_SIZE", 1)),
    )


@contextmanager
def joined(device: Device, which: Ranks) -> Iterator[Callable[[float], float]]:
    """Joins the process group; yields a function that gives all ranks the largest number."""
    if which.count == 1:
        yield float
        return
    distributed = device.torch.distributed
    distributed.init_process_group(
        BACKENDS[device.kind], timeout=datetime.timedelta(minutes=5)
    )
    try:

        def agree(value: float) -> float:
            told = device.torch.tensor(
                [float(value)], dtype=device.torch.float64, device=device.place
            )
            distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
            return float(told.item())

        yield agree
    finally:
        distributed.destroy_process_group()


def measure_collective(case: Case, bench: Bench) -> Columns:
    """Returns time and energy per GPU of one collective; call it on all ranks at once.

    `bytes` is the size of the whole tensor: of each rank's input to an all-reduce or
    all-to-all, of the gathered result, of the input that is scattered. Watts are the mean
    over ranks.
    """
    device, count = bench.device, case.number("gpus")
    distributed = device.torch.distributed
    if count < 2 or not distributed.is_initialized():
        raise Unavailable(
            "collectives: expected 2 or more ranks, got one; run under "
            "torchrun --nproc-per-node N -m jaxlens.cli measure ..."
        )
    loop = _loop(case, device, count)
    result = measured(device, bench.gauge, loop, bench.rules, bench.agree)
    columns = measurement_columns(result, bench.idle_watts)
    bus = BUS_FACTORS[case.text("operation")](count)
    columns["bus_bytes_per_s"] = bus * case.number("bytes") / result.seconds
    backend = BACKENDS[device.kind]
    version = _library_version(device) if backend == "nccl" else ""
    columns["implementation"] = f"{backend.upper()} {version}".strip()
    columns["kernel_source"] = f"torch.distributed.{case.text('operation')}"
    for name in ("watts", "joules", "joules_above_idle"):
        columns[name] = _mean_over_ranks(columns[name], device, count)
    return columns


# Bytes that pass the busiest link per byte of the tensor.
# Source: NVIDIA, nccl-tests, "Performance reported by NCCL tests", 2023,
# https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md.
BUS_FACTORS: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda count: 2.0 * (count - 1) / count,
    "all_gather": lambda count: (count - 1) / count,
    "reduce_scatter": lambda count: (count - 1) / count,
    "alltoall": lambda count: (count - 1) / count,
}


def _loop(case: Case, device: Device, count: int) -> Loop:
    torch, distributed = device.torch, device.torch.distributed
    name, width = DTYPES[case.text("dtype")]
    elements = max(count, case.number("bytes") // width // count * count)
    dtype, operation = getattr(torch, name), case.text("operation")
    # A mean keeps its values when it is repeated in place; gloo has sums alone.
    reduction = distributed.ReduceOp.SUM
    if device.kind == "cuda":
        reduction = distributed.ReduceOp.AVG

    def tensor(size: int) -> Any:
        return torch.randn(size, dtype=dtype, device=device.place)

    wholes = [tensor(elements) for _ in range(INPUT_SETS)]
    parts = [tensor(elements // count) for _ in range(INPUT_SETS)]

    def call(i: int) -> Callable[[], Any]:
        whole, part = wholes[i], parts[i]
        return {
            "all_reduce": lambda: distributed.all_reduce(whole, op=reduction),
            "all_gather": lambda: distributed.all_gather_into_tensor(whole, part),
            "reduce_scatter": lambda: distributed.reduce_scatter_tensor(part, whole),
            "alltoall": lambda: distributed.all_to_all_single(
                whole, wholes[(i + 1) % INPUT_SETS]
            ),
        }[operation]

    def refresh() -> None:
        for one in (*wholes, *parts):
            one.normal_()

    return Loop(calls=[call(i) for i in range(INPUT_SETS)], refresh=refresh)


def _mean_over_ranks(value: float | None, device: Device, count: int) -> float | None:
    torch = device.torch
    told = torch.tensor(
        [float("nan") if value is None else value],
        dtype=torch.float64,
        device=device.place,
    )
    torch.distributed.all_reduce(told)
    mean = float(told.item()) / count
    return None if mean != mean else mean


def _library_version(device: Device) -> str:
    version = device.torch.cuda.nccl.version()
    return ".".join(map(str, version)) if isinstance(version, tuple) else str(version)
