"""The picture of what `jaxlens overlap` compared."""

from pathlib import Path

import numpy as np

from jaxlens.optimize.overlap_advice import Advice, Setting
from jaxlens.optimize.overlap_spaces import evaluate, everything, feasible, splits
from jaxlens.optimize.staging import Question
from jaxlens.requests import Request

MOST_DOTS = 20_000


def draw(
    asked: Question,
    advice: Advice,
    request: Request,
    path: Path,
    latency: str,
    energy: str,
) -> None:
    """Writes energy against latency, a colour per tensor-parallel degree, to `path`."""
    from matplotlib.figure import Figure

    from jaxlens import plots
    from jaxlens.overlap_plots import Mark, Points, energy_latency

    space = advice.space
    grid = everything(space)
    grid = grid[feasible(space, grid)]
    if len(grid) > MOST_DOTS:
        chosen = np.random.default_rng(0).choice(len(grid), MOST_DOTS, replace=False)
        grid = grid[np.sort(chosen)]
    values, columns = splits(space, grid), evaluate(asked, space, grid)
    front = advice.front
    best = advice.recommended
    figure = Figure(figsize=(8.2, 6.0), dpi=160, facecolor=plots.PAPER)
    figure.set_layout_engine("constrained", rect=(0.0, 0.0, 1.0, 0.90))
    axes = figure.subplots()
    energy_latency(
        axes,
        Points(
            degree=values["tensor_parallel"].astype(int),
            seconds=columns["seconds"],
            joules=columns["joules_per_token"],
            staged=values["stages"] > 1.0,
        ),
        Points(
            degree=np.array([s.tensor_parallel for s in front]),
            seconds=np.array([s.seconds for s in front]),
            joules=np.array([s.joules_per_token for s in front]),
            staged=np.array([s.stages > 1 for s in front]),
        ),
        latency=latency,
        energy=energy,
        best=Mark(
            seconds=best.seconds,
            joules=best.joules_per_token,
            label=f"recommended: {_words(best)}",
        ),
        rules=[
            Mark(
                seconds=rule.setting.seconds,
                joules=rule.setting.joules_per_token,
                label=f"{rule.name}: {_words(rule.setting)}",
            )
            for rule in advice.rules
        ],
    )
    title = f"{request.shape.name} on {request.card.chip}: overlap in {asked.phase}"
    figure.text(0.012, 0.948, title, fontsize=13, fontweight="bold", color=plots.INK)
    figure.text(
        0.012,
        0.905,
        f"{float(asked.tokens):g} tokens per sequence · {space.size:,} settings · line: "
        f"the best trade-offs, found with {advice.evaluations:,} evaluations",
        fontsize=9,
        color=plots.GREY,
    )
    figure.savefig(path)


def _words(setting: Setting) -> str:
    if setting.stages == 1:
        return f"TP {setting.tensor_parallel}, sequential"
    return (
        f"TP {setting.tensor_parallel}, {setting.stages} stages, "
        f"{setting.communication_sms} SMs"
    )
