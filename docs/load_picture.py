"""Draws `load.png` and prints the table of `load_and_pools.md`: model against simulation.

Run from the root of the repository: `PYTHONPATH=tests python docs/load_picture.py`.
"""

from pathlib import Path

import discrete_event_server as reference
import jax
import numpy as np
from matplotlib import pyplot as plt

from jaxlens.queueing import server_load
from jaxlens.queueing.occupancy import Server, occupancy
from jaxlens.queueing.step_laws import StepLaw

HERE = Path(__file__).resolve().parent
LOADS = (0.3, 0.6, 0.85)
SHOWN = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
REQUESTS = 60_000
# Fixed, per sequence and per prompt token; slots, budget, prompt and output tokens.
SERVERS = {
    "short prompts": (0.008, 1e-4, 2.2e-5, 256, 8192, 256, 128),
    "long prompts": (0.008, 1e-4, 2.2e-5, 256, 8192, 1024, 128),
    "64 slots": (0.008, 1e-4, 2.2e-5, 64, 2048, 1024, 128),
    "many chunks": (0.018, 1.2e-4, 6.4e-5, 256, 2048, 4096, 128),
    "costly prompts": (0.018, 1.2e-4, 6.4e-5, 256, 8192, 1024, 64),
    "few slots": (0.018, 1.2e-4, 1e-5, 16, 8192, 512, 256),
}
PICTURED = ("long prompts", "many chunks", "few slots")
ESTIMATE = jax.jit(server_load)


def server(name: str) -> Server:
    """Returns one of `SERVERS`."""
    fixed, sequence, token, slots, budget, prompt, output = SERVERS[name]
    law = StepLaw(
        fixed=fixed,
        per_sequence=sequence,
        per_prompt_token=token,
        per_prompt_token_full=token,
        slots=float(slots),
    )
    return Server(
        law=law,
        slots=float(slots),
        budget_tokens=float(budget),
        prompt_tokens=float(prompt),
        output_tokens=float(output),
        output_tokens_cv=0.5,
    )


def simulated(name: str, load: float, burstiness: float) -> list[float]:
    """Returns mean, p50 and p99 of TTFT, and mean TPOT, as the simulation has them."""
    fixed, sequence, token, slots, budget, prompt, output = SERVERS[name]
    rate = load * float(occupancy(server(name), 1.0).capacity)
    random = np.random.default_rng(1)
    seen = reference.simulate(
        lambda sequences, tokens: fixed + sequence * sequences + token * tokens,
        reference.arrival_times(random, rate, burstiness, REQUESTS),
        reference.output_lengths(random, output, 0.5, REQUESTS),
        prompt,
        slots,
        budget,
    )
    first = seen.ttft_seconds
    tails = np.quantile(first, [0.5, 0.99])
    return [first.mean(), *tails, seen.tpot_seconds.mean()]


def modelled(name: str, load: float, burstiness: float) -> list[float]:
    """Returns the same of the model."""
    of = server(name)
    found = ESTIMATE(of, load * float(occupancy(of, 1.0).capacity), burstiness)
    return [
        float(found.seconds_to_first_token),
        float(found.seconds_to_first_token_p50),
        float(found.seconds_to_first_token_p99),
        float(found.seconds_per_output_token),
    ]


def print_table() -> None:
    """Prints errors of mean, p50 and p99 of TTFT and of TPOT, in percent."""
    for name in SERVERS:
        for burstiness in (1.0, 4.0):
            cells = []
            for load in LOADS:
                pairs = zip(
                    modelled(name, load, burstiness),
                    simulated(name, load, burstiness),
                    strict=True,
                )
                cells.append(" / ".join(f"{100 * (m / s - 1):+.0f}" for m, s in pairs))
            print(f"| {name} | {burstiness:.0f} | {' | '.join(cells)} |")


def draw() -> None:
    """Draws p50 and p99 of TTFT against load: lines of the model, dots simulated."""
    figure, panels = plt.subplots(1, len(PICTURED), figsize=(11, 3.4), sharex=True)
    lines = np.linspace(0.02, 0.97, 60)
    for axes, name in zip(panels, PICTURED, strict=True):
        for burstiness, colour in ((1.0, "tab:blue"), (4.0, "tab:red")):
            found = np.array([modelled(name, load, burstiness) for load in lines])
            dots = np.array([simulated(name, load, burstiness) for load in SHOWN])
            for row, style in ((1, "-"), (2, "--")):
                words = f"p{(50, 99)[row - 1]}, burstiness {burstiness:.0f}"
                axes.plot(lines, found[:, row], style, color=colour, label=words)
                axes.plot(SHOWN, dots[:, row], "o", color=colour, markersize=3.5)
        axes.set_yscale("log")
        axes.set_title(name)
        axes.set_xlabel("load, share of capacity")
    panels[0].set_ylabel("TTFT (s)")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "load.png", dpi=110)


if __name__ == "__main__":
    print_table()
    draw()
