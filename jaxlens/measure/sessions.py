"""A whole call of the harness: find the device, check it, measure, keep, sum up."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxlens.measure.benches import Bench
from jaxlens.measure.chip_files import chip_beside
from jaxlens.measure.clocks import locked_clock
from jaxlens.measure.collectives import joined, ranks
from jaxlens.measure.devices import Cuda, Device, import_torch, open_device
from jaxlens.measure.gauges import Gauge, GpuGauge, cpu_gauge
from jaxlens.measure.guards import fitness, newcomers, require_fit
from jaxlens.measure.idle import idle, loaded_idle
from jaxlens.measure.nvml import Gpu, open_gpu
from jaxlens.measure.overheads import overhead_columns, overheads
from jaxlens.measure.plans import plan
from jaxlens.measure.provenance import chip_id, provenance
from jaxlens.measure.records import GOOD, Records
from jaxlens.measure.repeatability import repeatability
from jaxlens.measure.requests import Request, check
from jaxlens.measure.runs import Tally, run_cases
from jaxlens.measure.visits import visiting_rules
from jaxlens.measure.windows import Agree, Rules

Report = Callable[[str], None]
IDLE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run brought."""

    tally: Tally
    device: str
    out: Path
    tables: tuple[Path, ...]  # of one kind each
    chip: str | None  # file that describes the device, where the catalogue does not
    idle_watts: float | None
    seconds: float
    seconds_repeatability: float | None
    joules_repeatability: float | None
    notes: tuple[str, ...]
    overhead: Mapping[str, Any] = field(default_factory=dict)  # of the harness itself


@dataclass(frozen=True, kw_only=True)
class Station:
    """An open device with its gauge, and what is worth knowing about it."""

    device: Device
    gauge: Gauge
    gpu: Gpu | None
    idle: Mapping[str, Any]
    notes: tuple[str, ...]
    intruders: Callable[[], frozenset[int]] = frozenset


def measure(request: Request, report: Report = print) -> Outcome:
    """Runs `request` and returns its outcome; rows are on disk as they come."""
    check(request)
    begin = time.monotonic()
    which = ranks()
    if request.device != "cpu":
        keep_jax_off_the_gpu()
    records = Records(request.out) if which.leads else None
    told = report if which.leads else _nothing
    with (
        station(request) as at,
        joined(at.device, which) as agree,
        _chip(records, at) as chip,
        _clocks(request, at) as clock,
    ):
        bench = _bench(request, at, agree)
        overhead = overheads(bench, windows=1)
        shared = {
            **overhead_columns(overhead),
            **provenance(at.device, at.gpu, which),
            "clock_setting": "free" if clock is None else f"{clock / 1e6:.0f} MHz",
            "disturbances": "; ".join(at.notes),
            "suite": request.suite,
        }
        for note in at.notes:
            told(f"note: {note}")
        if records is not None:
            _keep_idle(records, bench, at, shared)
        cases = plan(request, at.device, bench.rules, which.count)
        told(f"{len(cases)} cases on {at.device.name}")
        tally = run_cases(
            cases,
            bench,
            records,
            shared,
            runs=request.runs,
            deadline=None if request.seconds is None else begin + request.seconds,
            # Rows at a locked clock would mislead fits that expect the boost clock.
            prefix="" if clock is None else "clock_",
            report=told,
        )
    seconds = time.monotonic() - begin
    outcome = _outcome(request, at, records, tally, cases, chip, seconds)
    return replace(outcome, overhead=overhead)


def _bench(request: Request, at: Station, agree: Agree) -> Bench:
    return Bench(
        device=at.device,
        gauge=at.gauge,
        rules=rules(request, at.gauge),
        idle_watts=at.idle.get("idle_watts"),
        agree=agree,
        intruders=at.intruders,
    )


def _nothing(text: str) -> None:
    """Reports nothing: one rank speaks for all."""


def _chip(records: Records | None, at: Station) -> AbstractContextManager[Path | None]:
    """Keeps a chip file beside the rows, where the catalogue does not know the device."""
    return chip_beside(records, at.device, at.gpu, chip_id(at.device.name))


def _clocks(request: Request, at: Station) -> AbstractContextManager[float | None]:
    """Returns the lock of the SM clock that was asked for, or of nothing."""
    if request.lock_clock_hz is None or at.gpu is None:
        return nullcontext(None)
    return locked_clock(at.gpu, request.lock_clock_hz)


def rules(request: Request, gauge: Gauge) -> Rules:
    """Returns the rules of a run: short windows do where only time is measured."""
    if request.device == "cpu":
        return visiting_rules(
            request.window_seconds, allow_disturbed=request.allow_disturbed
        )
    energy = gauge.has_energy
    window = request.window_seconds or (1.0 if energy else 0.2)
    return Rules(
        window_seconds=window,
        warmup_seconds=(1.0 if energy else 0.5) * window,
        longest_warmup_seconds=(20.0 if energy else 4.0) * window,
        most_windows=8 if energy else 6,
        clocks_locked=request.lock_clock_hz is not None,
        allow_disturbed=request.allow_disturbed,
    )


@contextmanager
def station(request: Request) -> Iterator[Station]:
    """Opens the device of `request`, refusing one that is not fit to be measured."""
    if request.device == "cpu":
        gauge = cpu_gauge()
        notes = () if gauge.has_energy else ("no RAPL energy counter: time only",)
        yield Station(
            device=open_device("cpu", request.threads),
            gauge=gauge,
            gpu=None,
            idle={},
            notes=notes,
        )
        return
    index, uuid = visible_gpu(request.device)
    import_torch()  # before the GPU is kept waiting for it
    gpu = open_gpu(index, uuid=uuid)
    try:
        notes = require_fit(fitness(gpu), allow=request.allow_disturbed)
        gauge = GpuGauge(gpu)
        resting = idle(gauge, IDLE_SECONDS, wait=time.sleep)
        device = open_device(request.device)
        assert isinstance(device, Cuda)
        if device.uuid is not None and gpu.uuid and device.uuid != gpu.uuid:
            gpu.close()
            gpu = open_gpu(uuid=device.uuid)
            notes = require_fit(fitness(gpu), allow=request.allow_disturbed)
            gauge = GpuGauge(gpu)
        device.synchronize()  # opens the context, so that this process shows
        yield Station(
            device=device,
            gauge=gauge,
            gpu=gpu,
            idle=resting,
            notes=notes,
            intruders=partial(newcomers, gpu, gpu.processes()),
        )
    finally:
        gpu.close()


def visible_gpu(
    name: str, environment: Mapping[str, str] = os.environ
) -> tuple[int, str | None]:
    """Returns NVML's index, or the UUID, of the GPU that CUDA calls `name`.

    >>> visible_gpu("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,6"})
    (6, None)
    """
    number = name.partition(":")[2] or environment.get("LOCAL_RANK", "0")
    if not number.isdecimal() or not name.startswith("cuda"):
        raise ValueError(f"--device: expected cpu, cuda or cuda:N, got {name!r}.")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").strip()
    if not visible:
        return int(number), None
    listed = [entry.strip() for entry in visible.split(",")]
    if int(number) >= len(listed):
        raise ValueError(
            f"--device: expected one of {len(listed)} visible GPUs, got {name!r}; "
            "see CUDA_VISIBLE_DEVICES."
        )
    entry = listed[int(number)]
    return (int(entry), None) if entry.isdecimal() else (int(number), entry)


def keep_jax_off_the_gpu() -> None:
    """Makes JAX use the processor in this process, before it takes the GPU's memory.

    Choosing cases needs gradients of the model; they must not disturb what is measured.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")


def _keep_idle(
    records: Records, bench: Bench, at: Station, shared: Mapping[str, Any]
) -> None:
    """Keeps the idle draw: reported beside every energy, never hidden in it."""
    if not at.idle or not bench.gauge.has_energy:
        return
    rows = {
        "clocks_idle": dict(at.idle),
        "loaded_idle": loaded_idle(bench, IDLE_SECONDS),
    }
    for kind, columns in rows.items():
        row = {**shared, **columns, "case": kind, "kind": kind, "run": 1}
        if not records.has(row):
            records.add({**row, "status": GOOD})


def _outcome(
    request: Request,
    at: Station,
    records: Records | None,
    tally: Tally,
    cases: list[Any],
    chip: Path | None,
    seconds: float,
) -> Outcome:
    names = {one.name for one in cases}
    rows = [] if records is None else records.rows
    good = [r for r in rows if r["status"] == GOOD and r["case"] in names]
    tables = () if records is None else tuple(map(records.kind_path, records.kinds()))
    return Outcome(
        tally=tally,
        device=at.device.name,
        out=request.out,
        tables=tables,
        chip=None if chip is None else str(chip),
        idle_watts=at.idle.get("idle_watts"),
        seconds=seconds,
        seconds_repeatability=repeatability(good, "seconds", runs=max(2, request.runs)),
        joules_repeatability=repeatability(good, "joules", runs=max(2, request.runs)),
        notes=at.notes,
    )
