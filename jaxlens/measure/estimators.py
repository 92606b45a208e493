"""What many short timings of one kernel say about its time on an undisturbed machine.

On a processor everything else only ever adds time: interrupts, other processes, other virtual
machines on the host's caches and memory channels. So the estimate is low twice over: of the
blocks in a window, and of windows that lie far apart in time,

    t = 10 % quantile over windows of the 5 % quantile over the blocks of a window,

rather than a mean or a median, which follow the disturbance. The lowest block of all would
follow the resolution of the clock and one lucky moment instead. On a GPU, which nothing else
uses, windows are averaged as a whole: their energy is.

Source: J. Chen and J. Revels, "Robust benchmarking in noisy environments", 2016,
https://arxiv.org/abs/1608.04295 (noise of timings is positive, so low order statistics repeat).
Measured: of 35 such pairs of quantiles, over 24 kernels and 3 runs beside other work on two
virtual cores, this one repeats best in the mean over kernels, and as well as any in the median.
"""

import math
from collections.abc import Sequence

import numpy as np

BLOCK_SHARE = 0.05  # of the blocks of a window that are faster than its value
WINDOW_SHARE = 0.1  # of the windows whose value is lower than the estimate
DRAWS = 200  # of the bootstrap
TAIL = 0.025  # on either side of a 95 % interval


def of_blocks(spans: Sequence[float]) -> float:
    """Returns what the blocks of one window say.

    >>> of_blocks([1.0, 2.0, 9.0])
    1.1
    """
    return float(np.quantile(np.asarray(spans, dtype=float), BLOCK_SHARE))


def of_windows(values: Sequence[float]) -> float:
    """Returns what the values of all windows say together.

    >>> of_windows([1.0, 2.0, 9.0])
    1.2
    """
    return float(np.quantile(np.asarray(values, dtype=float), WINDOW_SHARE))


def redrawn(windows: int) -> np.ndarray:
    """Returns the positions of windows in each draw of a bootstrap; always the same."""
    return np.random.default_rng(windows).integers(windows, size=(DRAWS, windows))


def of_redrawn_windows(values: Sequence[float], draws: np.ndarray) -> np.ndarray:
    """Returns `of_windows` for each draw."""
    return np.quantile(np.asarray(values, dtype=float)[draws], WINDOW_SHARE, axis=1)


def spread(middle: float, drawn: np.ndarray) -> float:
    """Returns the half-width of the 95 % interval of `drawn`, relative to `middle`.

    >>> round(spread(1.0, np.linspace(0.9, 1.1, 201)), 3)
    0.095
    """
    low, high = np.quantile(drawn, [TAIL, 1.0 - TAIL])
    return float(max(high - middle, middle - low) / middle)


def spread_of_windows(values: Sequence[float]) -> float:
    """Returns the spread of `of_windows`; infinite with fewer than two windows."""
    if len(values) < 2:
        return math.inf
    drawn = of_redrawn_windows(values, redrawn(len(values)))
    return spread(of_windows(values), drawn)
