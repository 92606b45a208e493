"""`jaxlens overlap`: how many stages, and how many SMs for communication."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlens.caveats import notes
from jaxlens.cli.jax_settings import stay_on_cpu
from jaxlens.cli.options import Json
from jaxlens.cli.overlap_tables import show
from jaxlens.cli.pictures import check_picture
from jaxlens.cli.quantities import quantity
from jaxlens.cli.tables import print_json
from jaxlens.deployments import UNLIMITED, Deployment
from jaxlens.requests import Request, prepare

if TYPE_CHECKING:
    from jaxlens.optimize.overlap_advice import Advice, Setting
    from jaxlens.optimize.overlap_plans import Plan
    from jaxlens.optimize.staging import Question

GRANULARITIES = ("program", "kind", "op")
MOST_VALUES = 100_000
LATENCY = {"prefill": "time of the prefill", "decode": "time of a decode step"}
ENERGY = {"prefill": "energy per prompt token", "decode": "energy per output token"}
EXAMPLES = """
[bold]Examples[/bold]

Prefill of 2048 tokens on 2, 4 or 8 GPUs: every SM count and 1 to 16 stages.

jaxlens overlap meta-llama/Llama-3.1-70B --gpu a100-sxm-80gb --tp 2,4,8 --plot front.png

Each of the layers its own split, a clock for prefill and one for 256 decode steps:

jaxlens overlap meta-llama/Llama-3.1-70B -g a100-sxm-80gb --per op --output 256

jaxlens overlap Qwen/Qwen3-32B -g h100-sxm --phase decode --stages 1,2,4 --comm-sms 4-32
"""


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="HuggingFace id, or path of a config.json.", show_default=False
        ),
    ],
    gpu: Annotated[str, typer.Option("--gpu", "-g", help="Chip id or TOML file.")],
    tp: Annotated[
        str, typer.Option(help="Tensor-parallel degrees, such as 2,4,8.")
    ] = "2,4,8",
    batch: Annotated[
        str, typer.Option("--batch", "-b", help="Sequences of one step: 1,2,4 or 1-64.")
    ] = "1,2,4,8,16,32,64",
    stages: Annotated[
        str, typer.Option(help="Stages to choose from; 1 is no overlap.")
    ] = "1-16",
    comm_sms: Annotated[
        str | None,
        typer.Option(
            help="SMs for communication to choose from; default: every count."
        ),
    ] = None,
    phase: Annotated[
        str, typer.Option(help="prefill (all prompts at once) or decode (one step).")
    ] = "prefill",
    tokens: Annotated[
        float,
        typer.Option(help="Tokens of a prompt; in decode, cached by each sequence."),
    ] = 2048.0,
    slowdown: Annotated[
        float,
        typer.Option(help="Take the least energy within so much of the fastest."),
    ] = 1.1,
    per: Annotated[
        str,
        typer.Option(
            help="One split for the program, or also one per kind of layer, or per op "
            "(each layer's collective on its own), with a clock per phase."
        ),
    ] = "program",
    output: Annotated[
        int,
        typer.Option(
            help="With --per kind or op: decode steps of the request after its prefill."
        ),
    ] = 0,
    ep: Annotated[float, typer.Option(help="Expert parallel.")] = 1.0,
    clock: Annotated[
        str | None, typer.Option(help="Highest SM clock, such as 1200MHz.")
    ] = None,
    power_cap: Annotated[
        str | None, typer.Option(help="Limit per GPU, such as 300W.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Format of weights, such as fp8.")
    ] = None,
    kv: Annotated[str | None, typer.Option(help="Format of the KV cache.")] = None,
    stack: Annotated[
        str | None,
        typer.Option(help="Serving stack, id or TOML file; default: vllm-0.11."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Fitted profile, from `jaxlens calibrate`.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw energy against latency to this file (png, svg, pdf)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Stages and SMs of products that overlap their collectives: the energy-latency front.

    A product is cut into stages, and while one is multiplied the one before travels on SMs
    that are given to communication. The front is found by gradients, not by trying all; rules
    of thumb (no overlap, half the SMs, max overlap) are priced beside it.
    """
    if plot is not None:
        check_picture(plot)
    if per not in GRANULARITIES:
        raise ValueError(
            f"per: expected one of {', '.join(GRANULARITIES)}, got {per!r}."
        )
    stay_on_cpu()
    degrees = whole_numbers(tp, "tp")
    request = prepare(
        model,
        gpu,
        stack=stack,
        profile=profile,
        weights=weights,
        kv=kv,
        deployment=Deployment(
            tensor_parallel=float(degrees[0]),
            expert_parallel=ep,
            overlap=True,
            clock_hz=_limit(clock, "hertz", "clock"),
            power_cap_watts=_limit(power_cap, "watts", "power cap"),
        ),
    )
    # Search needs JAX's linear algebra and takes a while to import.
    from jaxlens.optimize import overlap_advice
    from jaxlens.optimize.overlap_spaces import question, split_space

    asked = question(request, phase, tokens)
    space = split_space(
        request,
        asked,
        tensor_parallel=degrees,
        batch=whole_numbers(batch, "batch"),
        stages=whole_numbers(stages, "stages"),
        communication_sms=(
            None if comm_sms is None else whole_numbers(comm_sms, "communication SMs")
        ),
    )
    plan = None
    with _working(hidden=as_json):
        advice = overlap_advice.advise(asked, space, slowdown)
        best = advice.recommended
        if per != "program":
            phases = _phases(request, phase, tokens, output)
            layout = best.tensor_parallel, best.batch
            plan = overlap_advice.advise_plan(phases, layout, space, slowdown, per=per)
    if plot is not None:
        _draw(asked, advice, request, plot)
    content = _content(request, asked, advice, plan, per)
    content["plot"] = str(plot) if plot else None
    if as_json:
        print_json(content)
    else:
        show(advice, plan, content)


@contextmanager
def _working(hidden: bool) -> Iterator[None]:
    """A sign of life on the terminal: it is compilation that takes its time."""
    from rich.console import Console

    console = Console(stderr=True)
    if hidden or not console.is_terminal:
        yield
        return
    with console.status("compiling and searching"):
        yield


def whole_numbers(text: str, where: str) -> list[int]:
    """Returns the numbers of "1,2,8-16", in order.

    >>> whole_numbers("1,4-6", "stages")
    [1, 4, 5, 6]
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            raise ValueError(
                f"{where}: expected whole numbers such as 1,2,4 or 1-16, got {text!r}."
            ) from None
        if not 0 <= high - low < MOST_VALUES:
            raise ValueError(
                f"{where}: expected a range from small to large, got {part.strip()!r}."
            )
        found.extend(range(low, high + 1))
    return found


def _limit(text: str | None, unit: str, where: str) -> float:
    return UNLIMITED if text is None else quantity(text, unit, where=where)


def _phases(
    request: Request, phase: str, tokens: float, output: int
) -> "list[tuple[Question, float]]":
    """The phases of a plan: the one asked for, or a prefill and `output` decode steps."""
    from jaxlens.optimize.overlap_spaces import question

    if output < 0:
        raise ValueError(f"output: expected decode steps from 0, got {output}.")
    if output == 0:
        return [(question(request, phase, tokens), 1.0)]
    if phase != "prefill":
        raise ValueError(
            "output: expected none with --phase decode, which is priced by the step; "
            "leave --phase out for a whole request."
        )
    context = tokens + 0.5 * output
    return [
        (question(request, "prefill", tokens), 1.0),
        (question(request, "decode", context), float(output)),
    ]


def _content(
    request: Request, asked: "Question", advice: "Advice", plan: "Plan | None", per: str
) -> dict[str, Any]:
    """The whole answer for programs."""
    space = advice.space
    return {
        "model": request.shape.name,
        "chip": request.card.chip,
        "stack": request.card.stack,
        "phase": asked.phase,
        "tokens": float(asked.tokens),
        "per": per,
        "slowdown": advice.slowdown,
        "front": [asdict(setting) for setting in advice.front],
        "recommended": asdict(advice.recommended),
        "intuition": [asdict(rule) for rule in advice.rules],
        "evaluations": advice.evaluations,
        "intuition_evaluations": advice.rule_evaluations,
        "exhaustive_evaluations": space.size,
        "seconds": advice.seconds,
        "largest_batch": dict(
            zip(map(str, space.tensor_parallel), space.largest_batch, strict=True)
        ),
        "plan": None if plan is None else {**asdict(plan), "gap": plan.gap},
        "notes": _notes(request, advice.recommended),
    }


def _notes(request: Request, best: "Setting") -> list[str]:
    """What the answer leans on: most of what tells splits apart is a prior."""
    degree, batch = float(best.tensor_parallel), float(best.batch)
    layout = replace(request.deployment, tensor_parallel=degree, batch=batch)
    found = notes(replace(request, deployment=layout))
    if any(note.startswith("communication power") for note in found):
        return found
    watts = request.card.coefficients["chip.link_watts"].value
    return [*found, f"communication power: {watts:.0f} W a GPU while a collective runs"]


def _draw(asked: "Question", advice: "Advice", request: Request, path: Path) -> None:
    from jaxlens.cli.overlap_pictures import draw

    draw(asked, advice, request, path, LATENCY[asked.phase], ENERGY[asked.phase])
