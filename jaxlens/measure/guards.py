"""Whether a GPU is fit to be measured: what would disturb it, what is worth a note."""

from dataclasses import dataclass

from jaxlens.measure.nvml import Gpu
from jaxlens.measure.refusals import Unavailable

BUSY_AT_REST = 0.05  # share of time with kernels before the first of ours


@dataclass(frozen=True, kw_only=True)
class Fitness:
    """Findings before a run. Notes go into the records, refusals end it."""

    others: frozenset[int]  # processes that were on the GPU before this one
    notes: tuple[str, ...]
    refusals: tuple[str, ...]


def fitness(gpu: Gpu) -> Fitness:
    """Returns what speaks for and against measuring `gpu` now.

    Call it before this process opens a CUDA context: whoever computes on the GPU then is
    somebody else. Process ids are the host's, which a container cannot compare with its own.
    """
    modes = gpu.modes()
    notes: list[str] = []
    refusals: list[str] = []
    others = gpu.processes()
    if others:
        shown = ", ".join(map(str, sorted(others)))
        refusals.append(
            f"other processes compute on GPU {gpu.index} (pid {shown}); stop them"
        )
    elif (gpu.busy_share() or 0.0) > BUSY_AT_REST:
        refusals.append(
            f"GPU {gpu.index} is busy although no process shows; somebody else uses it"
        )
    if modes.mig:
        refusals.append(
            f"MIG is on: GPU {gpu.index} is a slice, and its energy counter covers the "
            "whole board; measure a GPU without MIG"
        )
    if modes.ecc is False:
        notes.append("ECC is off: memory is faster and larger than with it")
    if modes.persistence is False:
        notes.append("persistence mode is off: idle power includes driver reloads")
    limit, default = modes.power_limit_watts, modes.default_power_limit_watts
    if limit is not None and default is not None and limit < default:
        notes.append(f"power limit {limit:.0f} W is below the default {default:.0f} W")
    if gpu.joules() is None:
        notes.append("no energy counter: energy comes from sampled power")
    return Fitness(others=others, notes=tuple(notes), refusals=tuple(refusals))


def require_fit(found: Fitness, *, allow: bool = False) -> tuple[str, ...]:
    """Returns the notes on a fit GPU; refuses an unfit one unless `allow`."""
    if found.refusals and not allow:
        raise Unavailable(
            f"measure: expected a GPU to itself, got: {'; '.join(found.refusals)}. "
            "With --allow-disturbed the run goes on and its rows say so."
        )
    return (*found.notes, *found.refusals)


def newcomers(gpu: Gpu, before: frozenset[int]) -> frozenset[int]:
    """Returns processes that came to the GPU since `before` was read."""
    return gpu.processes() - before
