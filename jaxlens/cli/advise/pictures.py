"""Pictures of advice: energy and time by clock, throughput by batch."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxlens.optimize.batch_advice import BatchAdvice
    from jaxlens.optimize.clock_advice import ClockAdvice


def draw_clocks(advice: "ClockAdvice", path: Path) -> None:
    """Writes energy and time by clock, both over those at the fastest, to `path`."""
    from jaxlens.plots import COLOURS, GREY

    settings, best = advice.settings, advice.advised
    clock = np.array([s.clock_hz for s in settings]) / 1e6
    slower = np.array([s.slowdown for s in settings])
    joules = 1.0 - np.array([s.saving for s in settings])
    figure, (axes,) = _figure(1)
    shown = slower <= max(2.0, 1.2 * advice.slowdown)
    axes.plot(clock[shown], joules[shown], color=COLOURS[0], linewidth=2.2)
    axes.plot(clock[shown], slower[shown], color=COLOURS[1], linewidth=2.2)
    for values, colour, name in (
        (joules, COLOURS[0], "energy"),
        (slower, COLOURS[1], "time"),
    ):
        first = int(np.flatnonzero(shown)[0])
        axes.annotate(
            name,
            (clock[first], values[first]),
            xytext=(6, 6),
            textcoords="offset points",
            color=colour,
        )
    axes.axhline(advice.slowdown, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.axvline(advice.knee.knee_hz / 1e6, color=GREY, linewidth=1.0)
    _words(axes, advice.knee.knee_hz / 1e6, 0.93, "voltage is flat to the left")
    _words(axes, 0.99, advice.slowdown, f"bound {advice.slowdown:g}", along="y")
    _star(
        axes, best.clock_hz / 1e6, 1.0 - best.saving, f"{best.clock_hz / 1e6:.0f} MHz"
    )
    axes.set_xlabel("SM clock (MHz)")
    axes.set_ylabel("over that at the fastest clock")
    asked = advice.request
    unit = "pass" if advice.forward else "output token"
    _save(
        figure,
        path,
        f"{asked.shape.name} on {asked.card.chip}: energy and time by clock",
        f"per {unit}, batch {float(asked.deployment.batch):g} · saves "
        f"{100.0 * best.saving:.1f} % at {100.0 * (best.slowdown - 1.0):+.1f} % time",
    )


def draw_batches(advice: "BatchAdvice", path: Path) -> None:
    """Writes throughput and time per token by batch, with replicas, to `path`."""
    from matplotlib.ticker import FuncFormatter

    from jaxlens.plots import COLOURS, GREY

    curve, chosen = advice.curve, advice.batch - 1
    figure, (left, right) = _figure(2)
    for axes, values in (
        (left, curve.output_tokens_per_second),
        (right, 1e3 * curve.seconds_per_output_token),
    ):
        axes.plot(curve.batch, values, color=COLOURS[0], linewidth=2.2)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("batch of a replica")
        _star(axes, float(advice.batch), float(values[chosen]), f"{advice.batch}")
    left.plot(
        curve.batch,
        curve.batch * advice.single_tokens_per_second,
        color=GREY,
        linewidth=1.0,
        linestyle=(0, (4, 3)),
        label="as if alone",
    )
    left.plot(
        curve.batch,
        advice.efficiency * curve.batch * advice.single_tokens_per_second,
        color=COLOURS[1],
        linewidth=1.0,
        label=f"least efficiency {advice.efficiency:g}",
    )
    more = [found for found in advice.replicas if found.count > 1]
    for number, found in enumerate(more):
        colour = COLOURS[2]
        left.plot(found.batch, found.output_tokens_per_second, "D", color=colour)
        right.plot(found.batch, 1e3 * found.seconds_per_output_token, "D", color=colour)
        if number in (0, len(more) - 1):
            _words(
                left,
                found.batch,
                found.output_tokens_per_second,
                f"x{found.count}",
                along="",
            )
    top = max(
        float(curve.output_tokens_per_second.max()),
        *(found.output_tokens_per_second for found in advice.replicas),
    )
    left.set_ylim(0.0, 1.15 * top)
    left.set_ylabel("output tokens per second")
    left.legend(frameon=False, loc="upper left")
    right.set_ylabel("time per output token (ms)")
    right.set_ylim(bottom=0.0)
    if advice.tpot_seconds is not None:
        right.axhline(1e3 * advice.tpot_seconds, color=GREY, linestyle=(0, (4, 3)))
    asked = advice.request
    _save(
        figure,
        path,
        f"{asked.shape.name} on {asked.card.chip}: throughput by batch",
        f"star: advised · diamonds: replicas that share the GPU · "
        f"{float(asked.workload.prompt_tokens):g} prompt and "
        f"{float(asked.workload.output_tokens):g} output tokens",
    )


def _figure(count: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    from jaxlens.plots import GREY, GRID, PAPER

    figure = Figure(figsize=(3.2 + 4.8 * count, 5.0), dpi=160)
    figure.set_layout_engine("constrained", rect=(0.0, 0.0, 1.0, 0.88))
    figure.set_facecolor(PAPER)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for one in axes:
        one.grid(True, color=GRID, linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(which="both", color=GRID, labelcolor=GREY)
        for name, spine in one.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(GRID)
    return figure, axes


def _star(axes: "Axes", x: float, y: float, label: str) -> None:
    from jaxlens.plots import INK, PAPER

    axes.plot(x, y, "*", color=INK, markersize=16, markeredgecolor=PAPER, zorder=6)
    axes.annotate(
        label, (x, y), xytext=(8, -14), textcoords="offset points", color=INK, zorder=7
    )


def _words(axes: "Axes", x: float, y: float, text: str, along: str = "x") -> None:
    """Small words; `along` is the axis on which the place is in data coordinates."""
    from jaxlens.plots import GREY

    places = {"x": axes.get_xaxis_transform(), "y": axes.get_yaxis_transform()}
    axes.annotate(
        text,
        (x, y),
        xycoords=places.get(along, "data"),
        xytext=(-5 if along else 7, 4),
        textcoords="offset points",
        ha="right" if along else "left",
        color=GREY,
        fontsize=9,
    )


def _save(figure: "Figure", path: Path, title: str, subtitle: str) -> None:
    from jaxlens.plots import GREY, INK

    figure.text(0.012, 0.945, title, fontsize=13, fontweight="bold", color=INK)
    figure.text(0.012, 0.9, subtitle, fontsize=9, color=GREY)
    figure.savefig(path)
