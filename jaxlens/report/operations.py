"""Where the operations of a step stand against the roofs of their chip."""

from dataclasses import dataclass

from jaxlens.precisions import UNITS
from jaxlens.requests import Request
from jaxlens.rooflines import seconds_per_flop
from jaxlens.serving import machine, traffic
from jaxlens.steps import Staged, items, lines
from jaxlens.works import Work


@dataclass(frozen=True, kw_only=True)
class Operation:
    """All launches of one operation in one step, on one GPU."""

    name: str
    phase: str
    flop: float
    hbm_bytes: float
    seconds: float
    peak_flop_per_s: float  # of its number format, at the clock that was asked for

    @property
    def flop_per_byte(self) -> float:
        """Arithmetic intensity."""
        return self.flop / self.hbm_bytes

    @property
    def flop_per_s(self) -> float:
        """What the operation reaches."""
        return self.flop / self.seconds


def operations(request: Request) -> list[Operation]:
    """Returns the multiplying operations of a decode step and of a prefill chunk.

    Operations of layers that are alike count together. Collectives and element-wise
    kernels have no place under a roofline and are left out.
    """
    chip, stack = request.profile.chip, request.profile.stack
    carried = traffic(stack, request.deployment, request.workload)
    at_clock = machine(chip, stack, request.deployment)
    found = []
    for phase, load in (("decode", carried.decode), ("prefill", carried.prefill)):
        asked = items(request.model, request.deployment, load, (phase,))
        cost = lines(asked, at_clock, request.deployment.communication_sms)
        totals: dict[str, list[float]] = {}
        peaks: dict[str, float] = {}
        for item in asked:
            work = item.asks.product if isinstance(item.asks, Staged) else item.asks
            if not isinstance(work, Work):
                continue
            layers, flop = float(item.layers), float(work.flop)
            moved = float(work.hbm_bytes) + float(work.kv_bytes)
            if flop * layers <= 0.0 or moved <= 0.0:
                continue
            total = totals.setdefault(item.name, [0.0, 0.0])
            total[0] += layers * flop
            total[1] += layers * moved
            share = float(at_clock.clock_share)
            peaks[item.name] = share / float(seconds_per_flop(work.mix, chip))
        found += [
            Operation(
                name=name,
                phase=phase,
                flop=flop,
                hbm_bytes=moved,
                seconds=float(cost[name].seconds),
                peak_flop_per_s=peaks[name],
            )
            for name, (flop, moved) in totals.items()
        ]
    return found


def roofs(request: Request) -> dict[str, float]:
    """Returns the chip's peaks that the model uses, in FLOP/s, and its HBM rate in B/s."""
    chip = request.profile.chip
    share = float(machine(chip, request.profile.stack, request.deployment).clock_share)
    formats = request.shape.formats
    used = {UNITS[formats.attention], UNITS[formats.feed_forward], "bf16"}
    peaks = {
        f"{unit} peak": share * float(getattr(chip, f"peak_{unit}_flop_per_s"))
        for unit in sorted(used)
    }
    return {**peaks, "HBM": float(chip.hbm_bytes_per_s)}
