"""The picture of what `jaxlens explore` compared."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxlens.cli.tables import scaled
from jaxlens.deployments import UNLIMITED
from jaxlens.exploring import REASONS, ExploreResult, front, request

if TYPE_CHECKING:
    from jaxlens.plots import Cloud

FORMATS = (".png", ".svg", ".pdf")
LATENCIES = (
    ("seconds_per_output_token", "time per output token", "tpot", "TPOT limit"),
    ("seconds_prefill", "time to first token (bare prefill)", "ttft", "TTFT limit"),
)


def check_picture(path: Path) -> None:
    """Raises `ValueError` if no picture can be drawn or kept at `path`."""
    if find_spec("matplotlib") is None:
        raise ValueError(
            "plot: expected matplotlib, got none; pip install 'jaxlens[plot]'."
        )
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"plot: expected a file that ends in {', '.join(FORMATS)}, got {path}."
        )
    if not path.absolute().parent.is_dir():
        raise ValueError(f"plot: expected a folder that exists, got {path.parent}.")


def draw(result: ExploreResult, winner: int | None, path: Path) -> None:
    """Writes energy against both latencies, a colour per GPU, to `path`."""
    from jaxlens import plots

    energies = _joules_range(result)
    figure, axes = plots.panels(len(LATENCIES))
    for panel, (name, words, limit, label) in zip(axes, LATENCIES, strict=True):
        seconds = float(getattr(result.limits, f"{limit}_seconds"))
        mark = None
        if winner is not None:
            mark = plots.Mark(
                seconds=float(result.columns[name][winner]),
                joules=float(result.columns["joules_per_output_token"][winner]),
                label=_label(result, winner),
            )
        plots.energy_latency(
            panel,
            _clouds(result, name, limit),
            latency=words,
            limit_seconds=None if seconds >= UNLIMITED else seconds,
            limit=label,
            joules_range=energies,
            winner=mark,
        )
    workload = result.requests[0].workload
    plots.caption(
        figure,
        axes,
        f"{result.requests[0].shape.name}: energy against latency",
        f"{float(workload.prompt_tokens):g} prompt and "
        f"{float(workload.output_tokens):g} output tokens · "
        f"{result.size:,} deployments · curves: the best trade-offs · "
        f"dots: all that fit · star: the best within the limits",
    )
    figure.savefig(path)


def _clouds(result: ExploreResult, latency: str, limit: str) -> "dict[str, Cloud]":
    from jaxlens.plots import Cloud

    fits = np.all(
        [result.meets(reason) for reason in REASONS if reason != limit],
        axis=0,
    )
    seconds = result.columns[latency]
    joules = result.columns["joules_per_output_token"]
    clouds = {}
    for gpu in range(len(result.plans)):
        dots = fits & (result.columns["gpu"] == gpu)
        best = front(result, latency, gpu, within_limits=False)
        clouds[result.labels[gpu]] = Cloud(
            seconds=seconds[dots],
            joules=joules[dots],
            front_seconds=seconds[best],
            front_joules=joules[best],
        )
    return clouds


def _joules_range(result: ExploreResult) -> tuple[float, float] | None:
    """A decade from below the least energy of any front, if there is one."""
    fronts = [front(result, name, within_limits=False) for name, *_ in LATENCIES]
    joules = result.columns["joules_per_output_token"][np.concatenate(fronts)]
    if joules.size == 0:
        return None
    return 0.55 * float(joules.min()), 10.0 * float(joules.min())


def _label(result: ExploreResult, winner: int) -> str:
    asked = request(result, winner)
    joules = float(result.columns["joules_per_output_token"][winner])
    return (
        f"{asked.gpus} × {asked.card.chip}\n{scaled(joules, 'J')} per token\n"
        f"batch {float(asked.deployment.batch):g}, "
        f"{float(asked.deployment.clock_hz) * 1e-6:.0f} MHz"
    )
