"""Two kernels at the same time: how much each slows the other down.

Both run back to back for about as long, A for n launches and B for m. The one that ends first
was never alone, so its slowdown is plain; the other ran on alone for the rest, at its own
speed, which is taken out:

    slowdown_A = T_A / (n a),    slowdown_B = T_A / (m b - (T_B - T_A))    for T_A <= T_B

with a and b the seconds of one launch alone.
"""

import threading
import time
from dataclasses import dataclass

from jaxlens.measure.benches import Bench, Columns
from jaxlens.measure.cases import Case, case
from jaxlens.measure.devices import Device
from jaxlens.measure.gauges import Recorder, steady_watts
from jaxlens.measure.kernels import prepare
from jaxlens.measure.operations import kernel as kernel_of
from jaxlens.measure.windows import Loop, calls_for, half_width, run_window

SHORTEST_SECONDS = 0.2  # on a processor, where threads take a while to start


@dataclass(frozen=True, kw_only=True)
class Slowdowns:
    """Time while both run over time alone."""

    first: float
    second: float


def slowdowns(
    alone: tuple[float, float], together: tuple[float, float]
) -> Slowdowns | None:
    """Returns the slowdowns; None if the longer one ran alone for nearly all of its work.

    Args:
        alone: seconds of all launches of each, run alone.
        together: seconds of the same launches, started together.

    >>> slowdowns((1.0, 1.0), (1.5, 2.0))
    Slowdowns(first=1.5, second=3.0)
    """
    if together[0] > together[1]:
        turned = slowdowns((alone[1], alone[0]), (together[1], together[0]))
        return turned and Slowdowns(first=turned.second, second=turned.first)
    shared = alone[1] - (together[1] - together[0])
    if shared <= 0.1 * alone[1]:
        return None
    return Slowdowns(first=together[0] / alone[0], second=together[0] / shared)


def measure_overlap(one: Case, bench: Bench) -> Columns:
    """Returns the slowdowns of a matrix product and a copy beside each other."""
    device = bench.device
    product = case("gemm", {name: one[name] for name in ("m", "n", "k", "dtype")})
    copied = case("copy", {"bytes": one["copied_bytes"]})
    loops = tuple(
        prepare(kernel_of(inner, device), device, replay=False).loop
        for inner in (product, copied)
    )
    seconds = bench.rules.window_seconds
    if device.kind == "cpu":
        seconds = max(seconds, SHORTEST_SECONDS)
    calls = tuple(calls_for(device, loop, seconds) for loop in loops)
    found: list[Slowdowns] = []
    watts: list[float | None] = []
    alone = (0.0, 0.0)
    for _ in range(bench.rules.fewest_windows):
        windows = [
            run_window(device, bench.gauge, loop, count, lead=max(1, count // 10))
            for loop, count in zip(loops, calls, strict=True)
        ]
        with Recorder(bench.gauge) as recorder:
            both = together(device, loops, calls)
        watts.append(steady_watts(recorder.readings))
        pair = slowdowns((windows[0].span_seconds, windows[1].span_seconds), both)
        if pair is not None:
            found.append(pair)
        alone = (windows[0].seconds, windows[1].seconds)
    return _columns(found, alone, watts)


def _columns(
    found: list[Slowdowns], alone: tuple[float, float], watts: list[float | None]
) -> Columns:
    if not found:
        raise RuntimeError("the two kernels did not run beside each other")
    first = sorted(pair.first for pair in found)
    second = sorted(pair.second for pair in found)
    drawn = sorted(value for value in watts if value is not None)
    return {
        "seconds": alone[0] * first[len(first) // 2],
        "seconds_alone": alone[0],
        "copy_seconds_alone": alone[1],
        "product_slowdown": first[len(first) // 2],
        "copy_slowdown": second[len(second) // 2],
        "seconds_spread": half_width(first),
        "watts": drawn[len(drawn) // 2] if drawn else None,
        "windows": len(found),
    }


def together(
    device: Device, loops: tuple[Loop, ...], calls: tuple[int, ...]
) -> tuple[float, float]:
    """Returns the seconds that each loop takes if both start at once."""
    barrier = threading.Barrier(len(loops))
    spans = [0.0] * len(loops)
    errors: list[Exception] = []

    def work(position: int) -> None:
        try:
            with device.torch.inference_mode():  # a mode of each thread
                barrier.wait()
                spans[position] = _timed(device, loops[position], calls[position])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(loops))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return spans[0], spans[1]


def _timed(device: Device, loop: Loop, calls: int) -> float:
    """Returns the time of a loop in its own thread, and on a stream of its own."""
    if device.kind == "cpu":
        start = time.perf_counter()
        device.seconds(loop.calls, calls)
        return time.perf_counter() - start
    torch = device.torch
    with torch.cuda.device(device.place), torch.cuda.stream(torch.cuda.Stream()):
        return device.seconds(loop.calls, calls)
