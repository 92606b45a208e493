"""Pictures of what was compared. Functions draw on the axes they are given."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Told apart in colour blindness and in grey. Source: M. Okabe, K. Ito, "Color Universal
# Design", 2008, https://jfly.uni-koeln.de/color (without yellow and black).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, GREY, GRID, PAPER = "#1f2328", "#6b7280", "#e5e7eb", "#ffffff"

FARTHEST_LIMIT = 1.5  # times the range that is shown: beyond it a limit is a remark

Values = Float[np.ndarray, " point"]


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Deployments of one kind of GPU: all that fit, and the best trade-offs of them."""

    seconds: Values
    joules: Values
    front_seconds: Values
    front_joules: Values


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One deployment to point at."""

    seconds: float
    joules: float
    label: str


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure with `count` axes side by side, which share their energies."""
    figure = Figure(figsize=(1.2 + 5.4 * count, 5.4), dpi=160)
    # Room above for a caption.
    figure.set_layout_engine("constrained", rect=(0.0, 0.0, 1.0, 0.89))
    figure.set_facecolor(PAPER)
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def energy_latency(
    axes: Axes,
    clouds: Mapping[str, Cloud],
    *,
    latency: str,
    limit_seconds: float | None = None,
    limit: str = "limit",
    joules_range: tuple[float, float] | None = None,
    winner: Mark | None = None,
) -> Axes:
    """Draws joules per output token against a latency, and returns the axes.

    Args:
        axes: Where to draw.
        clouds: By the name of the GPU, in the order of their colours.
        latency: Its name.
        limit_seconds: Latency beyond which a deployment does not count.
        limit: Name of that limit.
        joules_range: Energies to show; by default all.
        winner: The deployment to mark.
    """
    for position, (name, cloud) in enumerate(clouds.items()):
        colour = COLOURS[position % len(COLOURS)]
        axes.scatter(
            cloud.seconds * 1e3,
            cloud.joules,
            s=4,
            color=colour,
            alpha=0.06,
            linewidths=0,
            rasterized=True,
        )
        axes.plot(
            cloud.front_seconds * 1e3,
            cloud.front_joules,
            color=colour,
            linewidth=2.2,
            solid_capstyle="round",
            label=name,
            zorder=4,
        )
    _scales(axes, clouds)
    if joules_range is not None:
        axes.set_ylim(*joules_range)
    if limit_seconds is not None:
        _limit(axes, limit_seconds * 1e3, limit)
    if winner is not None:
        _winner(axes, winner)
    axes.set_xlabel(f"{latency} (ms)", color=INK)
    return axes


def _scales(axes: Axes, clouds: Mapping[str, Cloud]) -> None:
    """Logarithmic axes around the fronts, not around the farthest deployments."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    drawn = [cloud for cloud in clouds.values() if cloud.front_joules.size]
    axes.set_xlim(1.0, 1e3)
    axes.set_ylim(0.1, 10.0)
    if drawn:
        seconds = np.concatenate([cloud.front_seconds for cloud in drawn])
        spread = np.concatenate([cloud.seconds for cloud in drawn])
        joules = np.concatenate([cloud.front_joules for cloud in drawn])
        right = max(seconds.max(), np.quantile(spread, 0.9))
        axes.set_xlim(0.8e3 * seconds.min(), 1.1e3 * right)
        axes.set_ylim(0.75 * joules.min(), 1.5 * joules.max())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=GRID, labelcolor=GREY)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GRID)


def _limit(axes: Axes, milliseconds: float, name: str) -> None:
    text = f"{name} {milliseconds:g} ms"
    left, right = axes.get_xlim()
    if milliseconds > FARTHEST_LIMIT * right:
        axes.text(
            0.985,
            0.03,
            f"{text} →",
            transform=axes.transAxes,
            ha="right",
            color=GREY,
            fontsize=9,
        )
        return
    right = max(right, 1.25 * milliseconds)
    axes.set_xlim(min(left, 0.8 * milliseconds), right)
    axes.axvspan(milliseconds, right, color=GREY, alpha=0.10, linewidth=0, zorder=0)
    axes.axvline(milliseconds, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        text,
        (milliseconds, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(5, 0),
        textcoords="offset points",
        color=GREY,
        fontsize=9,
        in_layout=False,
    )


def _winner(axes: Axes, winner: Mark) -> None:
    at = (winner.seconds * 1e3, winner.joules)
    axes.plot(
        *at, "*", color=INK, markersize=17, markeredgecolor=PAPER, zorder=6, mew=1.2
    )
    axes.annotate(
        winner.label,
        at,
        xytext=(-12, -9),
        textcoords="offset points",
        ha="right",
        va="top",
        bbox={"boxstyle": "round,pad=0.3", "fc": PAPER, "ec": "none", "alpha": 0.8},
        color=INK,
        fontsize=9,
        in_layout=False,
        zorder=7,
        linespacing=1.35,
    )


def caption(figure: Figure, axes: list[Axes], title: str, subtitle: str) -> Figure:
    """Writes title, axis of energies and legend around `axes`; returns the figure."""
    figure.text(0.012, 0.948, title, fontsize=13, fontweight="bold", color=INK)
    figure.text(0.012, 0.905, subtitle, fontsize=9, color=GREY)
    first = axes[0]
    first.set_ylabel("energy per output token (J)", color=INK)
    legend = first.legend(labelcolor=INK, loc="upper right", framealpha=0.9)
    legend.get_frame().set_linewidth(0.0)
    return figure
