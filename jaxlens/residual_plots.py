"""Pictures of predictions against measurements. Functions draw on the axes they are given."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from jaxlens.plots import COLOURS, GREY, GRID, INK, PAPER

BAND = 0.2  # relative error that is still good
MARKERS = ("o", "^", "s", "D", "v", "P")
RATIOS = (0.1, 0.2, 0.5, 0.8, 1.0, 1.25, 2.0, 5.0, 10.0)
MOST_POINTS = 400  # of a group: more only hide the box
MOST_GROUPS = 28
LONGEST_NAME = 30
MOST_NAMED = 8  # groups that a legend names


def panels(targets: int, factors: int, groups: int) -> tuple[Figure, np.ndarray]:
    """Returns a figure and its axes, target x (1 + factor), high enough for `groups`."""
    height = max(4.2, 1.4 + 0.24 * min(groups, MOST_GROUPS + 1))
    size = (5.2 + 3.7 * factors, height * targets + 0.7)
    figure = Figure(figsize=size, dpi=130)
    top = 1.0 - 0.7 / size[1]  # room above for a title
    figure.set_layout_engine("constrained", rect=(0.0, 0.0, 1.0, top))
    figure.set_facecolor(PAPER)
    ratios = [1.35, *[1.0] * factors]
    axes = figure.subplots(
        targets, 1 + factors, squeeze=False, gridspec_kw={"width_ratios": ratios}
    )
    return figure, axes


def title(figure: Figure, text: str, subtitle: str = "") -> Figure:
    """Writes a title above all panels; returns the figure."""
    inch = 1.0 / figure.get_figheight()
    left = 0.12 / figure.get_figwidth()
    figure.text(
        left, 1.0 - 0.32 * inch, text, fontsize=13, fontweight="bold", color=INK
    )
    figure.text(left, 1.0 - 0.58 * inch, subtitle, fontsize=9, color=GREY)
    return figure


def predicted_against_measured(
    axes: Axes,
    predicted: np.ndarray,
    measured: np.ndarray,
    *,
    name: str,
    groups: np.ndarray | None = None,
) -> Axes:
    """Draws predicted against measured values on log axes, and returns the axes.

    Args:
        axes: Where to draw.
        predicted: Positive values.
        measured: Positive values of the same rows, along the abscissa.
        name: The quantity, with its unit.
        groups: Label of each row, such as its GPU, which gives its colour.
    """
    both = np.concatenate([predicted, measured])
    ends = np.array([both.min() / 1.3, both.max() * 1.3])
    band = f"±{BAND:.0%} of measured"
    axes.fill_between(
        ends,
        (1.0 - BAND) * ends,
        (1.0 + BAND) * ends,
        color=GREY,
        alpha=0.15,
        linewidth=0,
        label=band,
    )
    axes.plot(ends, ends, color=GREY, linewidth=1.0)
    labels = np.full(len(measured), "") if groups is None else groups
    for position, label in enumerate(ordered(labels)):
        chosen = labels == label
        axes.scatter(
            measured[chosen],
            predicted[chosen],
            s=16,
            marker=MARKERS[position % len(MARKERS)],
            color=COLOURS[position % len(COLOURS)],
            alpha=0.6,
            linewidths=0,
            label=str(label) if position < MOST_NAMED else "",
            rasterized=True,
            zorder=3,
        )
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set_box_aspect(1)
    _log_ticks(axes, ends[1] / ends[0])
    axes.set_xlabel(f"measured {name}", color=INK)
    axes.set_ylabel(f"predicted {name}", color=INK)
    axes.legend(
        loc="upper left", fontsize=8, labelcolor=INK, framealpha=0.85, edgecolor="none"
    )
    return _calm(axes)


def residuals_by(
    axes: Axes, residuals: np.ndarray, labels: np.ndarray, *, factor: str
) -> Axes:
    """Draws residuals as one strip with a box for each label, and returns the axes.

    A box spans the middle half of a group, its line the median, its whiskers 10-90 %.

    Args:
        axes: Where to draw.
        residuals: log(predicted / measured).
        labels: Group of each row; the largest groups are drawn.
        factor: What the labels are, such as "model".
    """
    groups = _largest(labels)
    parts = [residuals[labels == label] for label in groups]
    edge = np.exp(1.08 * max(np.abs(residuals).max(), np.log(1.3)))
    axes.axvspan(1.0 - BAND, 1.0 + BAND, color=GREY, alpha=0.15, linewidth=0, zorder=0)
    axes.axvline(1.0, color=GREY, linewidth=1.0, zorder=1)
    for position, part in enumerate(parts):
        _strip(axes, part, position)
    axes.boxplot(
        [np.exp(part) for part in parts],
        positions=range(len(parts)),
        orientation="horizontal",
        widths=0.62,
        whis=(10, 90),
        showfliers=False,
        manage_ticks=False,
        boxprops={"color": INK, "linewidth": 0.9},
        whiskerprops={"color": INK, "linewidth": 0.9},
        capprops={"color": INK, "linewidth": 0.9},
        medianprops={"color": COLOURS[1], "linewidth": 1.8},
        zorder=4,
    )
    axes.set_xscale("log")
    axes.set_xlim(1.0 / edge, edge)
    axes.set_ylim(len(parts) - 0.4, -0.6)
    _ratio_ticks(axes, edge)
    names = [_shown(label, part) for label, part in zip(groups, parts, strict=True)]
    axes.set_yticks(range(len(parts)), names, fontsize=8)
    axes.set_xlabel("predicted / measured", color=INK)
    left_out = len(set(labels.tolist())) - len(groups)
    more = f" ({left_out} smaller ones not shown)" if left_out else ""
    axes.set_title(f"by {factor}{more}", loc="left", fontsize=10, color=INK)
    return _calm(axes)


def ordered(labels: np.ndarray) -> list[str]:
    """Returns the different labels, those that begin with a number by its size.

    >>> ordered(np.array(["16–32", "8", "b", "a", "8"]))
    ['8', '16–32', 'a', 'b']
    """

    def key(label: str) -> tuple[float, str]:
        number = re.match(r"\d+(\.\d+)?(e[+-]?\d+)?", label)
        return (float(number.group()) if number else float("inf"), label)

    return sorted(set(labels.tolist()), key=key)


def _largest(labels: np.ndarray) -> list[str]:
    names, counts = np.unique(labels, return_counts=True)
    kept = set(names[np.argsort(-counts, kind="stable")][:MOST_GROUPS].tolist())
    return [label for label in ordered(labels) if label in kept]


def _strip(axes: Axes, part: np.ndarray, position: int) -> None:
    step = -(-len(part) // MOST_POINTS)
    drawn = np.sort(part)[::step]
    across = np.random.default_rng(0).uniform(-0.24, 0.24, len(drawn))
    axes.scatter(
        np.exp(drawn),
        position + across,
        s=9,
        color=COLOURS[0],
        alpha=0.45,
        linewidths=0,
        rasterized=True,
        zorder=3,
    )


def _shown(label: str, part: np.ndarray) -> str:
    """The last part of a path-like name, without its middle, and the number of rows."""
    name = label.rpartition("/")[2]
    name = name if len(name) <= LONGEST_NAME else f"{name[:17]}…{name[-12:]}"
    return f"{name} ({len(part)})"


def _log_ticks(axes: Axes, span: float) -> None:
    subs: Sequence[float] = (1.0, 2.0, 5.0) if span < 1e3 else (1.0,)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=subs, numticks=20))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def _ratio_ticks(axes: Axes, edge: float) -> None:
    if edge < RATIOS[-1]:
        close = (0.8, 1.25) if edge > 2.2 else ()  # labels that would collide
        shown = [r for r in RATIOS if 1.0 / edge <= r <= edge and r not in close]
        axes.set_xticks(shown, [f"{ratio:g}" for ratio in shown])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _calm(axes: Axes) -> Axes:
    axes.grid(True, axis="both", which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=GRID, labelcolor=GREY, labelsize=8)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GRID)
    return axes
