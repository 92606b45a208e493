"""A billion deployments of one model: the best, the Pareto front and what rules out.

Layouts x prompts x power caps x batches x clocks of Llama-3.1-70B on an H100, streamed in
constant memory. Prints rate, memory and what was found.
"""

import argparse
import json
import math
import os
import resource
import sys
import time
from typing import Any

# Read once, when JAX starts: results that share terms are computed in one loop, so that no
# term is computed twice. About three times as fast.
SHARED_LOOPS = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {SHARED_LOOPS}".strip()

import jax  # noqa: E402

from jaxlens.device_layouts import layouts  # noqa: E402
from jaxlens.questions import Question, deployment_space, question  # noqa: E402
from jaxlens.requests import has_network, prepare  # noqa: E402
from jaxlens.spaces import Space, grid, integers  # noqa: E402
from jaxlens.streams import Histogram, Keep, Objective, Survey, compilations, stream  # noqa: E402
from jaxlens.sweeps import outcome  # noqa: E402

MODEL = "meta-llama/Llama-3.1-70B-Instruct"
GPU = "h100-sxm"
MOST_GPUS = 16
BATCHES, CLOCKS, CAPS = 512, 101, 11
ENERGY, TOKEN = "joules_per_output_token", "seconds_per_output_token"
FRONTS = {
    2: (Objective(TOKEN), Objective(ENERGY)),
    3: (Objective(TOKEN), Objective("seconds_prefill"), Objective(ENERGY)),
}


def asked(points: int) -> tuple[Question, Space]:
    """Returns the question, and a space of at least that many deployments."""
    request = prepare(MODEL, GPU)
    chip = request.profile.chip
    listed = layouts(
        request.shape,
        chip,
        request.deployment,
        MOST_GPUS,
        network=has_network(request.card),
    )
    prompts = max(1, math.ceil(points / (len(listed) * BATCHES * CLOCKS * CAPS)))
    most_watts = float(chip.tdp_watts)
    space = deployment_space(
        listed,
        prompt_tokens=integers("prompt_tokens", 1024, 1024 + 64 * (prompts - 1), 64),
        power_cap_watts=grid("power_cap_watts", 0.5 * most_watts, most_watts, CAPS),
        sequences=integers("sequences", 1, BATCHES),
        clock=grid("clock", 0.4, 1.0, CLOCKS),
    )
    shared = question(
        request.model, request.profile, request.deployment, request.workload, listed
    )
    return shared, space


def report(survey: Survey, wall_seconds: float) -> dict[str, Any]:
    """Returns what is printed."""
    best = survey.top[ENERGY]
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "points": survey.evaluated,
        "interrupted": survey.interrupted,
        "wall_seconds": wall_seconds,
        "streaming_seconds": survey.seconds,
        "configurations_per_second": survey.configurations_per_second,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "programs": compilations(outcome),
        "feasible": survey.feasible,
        "infeasible_by_reason": survey.infeasible_by_reason,
        "infeasible_by_one_reason": survey.infeasible_by_one_reason,
        "front_points": int(survey.front.index.size),
        "front_epsilon": survey.front_epsilon,
        "quantiles_of_joules_per_output_token": dict(
            zip(
                ("0.01", "0.5", "0.99"),
                survey.quantiles(ENERGY, (0.01, 0.5, 0.99)),
                strict=True,
            )
        ),
        "best": {
            "index": int(best.index[0]),
            **{name: float(values[0]) for name, values in best.columns.items()},
        }
        if best.index.size
        else None,
    }


def main() -> None:
    """Streams the space and prints what was found, as text or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=float, default=1e9)
    parser.add_argument("--front", type=int, choices=sorted(FRONTS), default=2)
    parser.add_argument("--block", type=int, help="points at once on a device")
    parser.add_argument("--threads", type=int, help="by default one a core")
    parser.add_argument("--checkpoint", help="file to go on from after an interruption")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    points = int(given.points)
    shared, space = asked(points)
    keep = Keep(
        objectives=(Objective(ENERGY),),
        front=FRONTS[given.front],
        histograms=(Histogram(ENERGY, 1e-3, 1e3),),
    )
    began = shown = time.perf_counter()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        now = time.perf_counter()
        if now - shown > 5.0:
            shown = now
            rate = done / (now - began)
            left = (total - done) / rate
            print(
                f"{done / total:6.1%}  {rate / 1e6:.2f} M/s  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    survey = stream(
        outcome,
        shared,
        space,
        keep,
        count=points,
        progress=progress,
        block=given.block,
        threads=given.threads,
        checkpoint=given.checkpoint,
    )
    found = report(survey, time.perf_counter() - began)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:40} {value}")


if __name__ == "__main__":
    main()
