"""Pictures of overlap: what was compared, its front, and rules of thumb beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxlens.plots import COLOURS, GREY, GRID, INK, PAPER

RULE_MARKERS = ("X", "v", "P", "^")


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Settings: how many GPUs work together, what a step takes, whether it is staged."""

    degree: Int[np.ndarray, " setting"]
    seconds: Float[np.ndarray, " setting"]
    joules: Float[np.ndarray, " setting"]
    staged: Bool[np.ndarray, " setting"]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One setting to point at."""

    seconds: float
    joules: float
    label: str


def energy_latency(
    axes: Axes,
    dots: Points,
    front: Points,
    *,
    latency: str,
    energy: str,
    best: Mark | None = None,
    rules: Sequence[Mark] = (),
) -> Axes:
    """Draws joules against latency, a colour per tensor-parallel degree; returns the axes.

    Filled circles of the front are sequential, open diamonds staged.

    Args:
        axes: Where to draw.
        dots: All settings.
        front: The best trade-offs, fastest first.
        latency: Name of the latency.
        energy: Name of the energy.
        best: The recommended setting.
        rules: What rules of thumb choose.
    """
    axes.plot(front.seconds * 1e3, front.joules, color=GREY, linewidth=1.0, zorder=2)
    for position, degree in enumerate(np.unique(dots.degree)):
        colour = COLOURS[position % len(COLOURS)]
        own = dots.degree == degree
        axes.scatter(
            dots.seconds[own] * 1e3,
            dots.joules[own],
            s=5,
            color=colour,
            alpha=0.15,
            linewidths=0,
            rasterized=True,
        )
        member = front.degree == degree
        for staged, marker in ((False, "o"), (True, "D")):
            chosen = member & (front.staged == staged)
            axes.plot(
                front.seconds[chosen] * 1e3,
                front.joules[chosen],
                marker,
                color=colour,
                markersize=6 if staged else 7,
                markerfacecolor=PAPER if staged else colour,
                markeredgecolor=colour if staged else PAPER,
                markeredgewidth=1.4 if staged else 0.8,
                zorder=4,
                label=f"TP {degree}, {'staged' if staged else 'no overlap'}"
                if chosen.any()
                else None,
            )
        if not member.any():
            axes.plot([], [], "o", color=colour, label=f"TP {degree}, not on the front")
    for marker, rule in zip(RULE_MARKERS, rules, strict=False):
        axes.plot(
            rule.seconds * 1e3,
            rule.joules,
            marker,
            color=INK,
            markersize=8,
            markeredgecolor=PAPER,
            zorder=5,
            label=rule.label,
        )
    if best is not None:
        axes.plot(
            best.seconds * 1e3,
            best.joules,
            "*",
            color=INK,
            markersize=12,
            markeredgecolor=PAPER,
            zorder=6,
            label=best.label,
        )
    _scales(axes, dots, front)
    axes.set_xlabel(f"{latency} (ms)", color=INK)
    axes.set_ylabel(f"{energy} (J)", color=INK)
    legend = axes.legend(
        labelcolor=INK, loc="lower left", framealpha=0.9, fontsize=8, ncols=2
    )
    legend.get_frame().set_linewidth(0.0)
    return axes


def _scales(axes: Axes, dots: Points, front: Points) -> None:
    """Logarithmic axes around the front, with room above it and for the legend below."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    right = max(front.seconds.max(), float(np.quantile(dots.seconds, 0.9)))
    high = max(1.3 * front.joules.max(), 1.6 * front.joules.min())
    axes.set_xlim(0.85e3 * front.seconds.min(), 1.2e3 * right)
    axes.set_ylim(front.joules.min() * (front.joules.min() / high) ** 0.45, high)
    narrow = high < 4.0 * front.joules.min()
    steps = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0) if narrow else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=GRID, labelcolor=GREY)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GRID)
