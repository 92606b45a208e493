"""`jaxlens advise clock`: the SM clock of least energy, and the power cap like it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlens.caveats import notes
from jaxlens.cli.jax_settings import stay_on_cpu
from jaxlens.cli.options import Json, ServingOptions, request, with_options
from jaxlens.cli.pictures import check_picture
from jaxlens.cli.quantities import quantity
from jaxlens.cli.tables import (
    print_json,
    print_line,
    print_notes,
    print_table,
    scaled,
    share,
    signed_share,
)
from jaxlens.deployments import UNLIMITED

if TYPE_CHECKING:
    from jaxlens.optimize.clock_advice import ClockAdvice, PhaseClocks, Setting

PHASES = ("serving", "prefill")
PLURALS = {"decode": "decode steps", "mixed": "steps with prompts", "pass": "passes"}
SHOWN = 12  # rows of the table for people
EXAMPLES = """
[bold]Examples[/bold]

At most 10 % slower than at full clock, and what nvidia-smi needs for it:

jaxlens advise clock meta-llama/Llama-3.1-8B -g h100-sxm --batch 64

A clock for prefill and one for decode, where a switch takes 10 ms; and the picture:

jaxlens advise clock Qwen/Qwen3-32B -g h200-sxm -b 64 --per-phase --plot clocks.png

A forward pass over 8 prompts of 512 tokens, eager, whatever the time:

jaxlens advise clock facebook/opt-1.3b -g a100-pcie-40gb --stack hf-eager -b 8
--prompt 512 --slowdown 2
"""


@with_options(ServingOptions)
def command(
    options: ServingOptions,
    slowdown: Annotated[
        float,
        typer.Option(help="Longest time per output token, over that at full clock."),
    ] = 1.1,
    phase: Annotated[
        str | None,
        typer.Option(
            help="serving, or prefill: one pass over a batch of prompts. Default: what "
            "the stack runs."
        ),
    ] = None,
    per_phase: Annotated[
        bool,
        typer.Option(
            "--per-phase", help="Also look for a clock for prefill and one for decode."
        ),
    ] = False,
    clock_switch_seconds: Annotated[
        str, typer.Option(help="How long a change of clock takes: 0.01 or 10ms.")
    ] = "0.01",
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw energy and time by clock to a png, svg or pdf file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The SM clock of least energy within a slowdown, and the power cap like it.

    Voltage falls with the clock down to a knee; below it a lower clock only takes longer.
    The clock is one that the chip supports. Beside it stands the power cap that takes the same
    time without a lock. The lines for nvidia-smi are printed for both.
    """
    if plot is not None:
        check_picture(plot)
    if options.clock is not None:
        raise ValueError("clock: expected none, as it is what is searched; drop it.")
    if phase is not None and phase not in PHASES:
        raise ValueError(f"phase: expected one of {', '.join(PHASES)}, got {phase!r}.")
    stay_on_cpu()
    from jaxlens.optimize.clock_advice import advise_clock

    advice = advise_clock(
        request(options),
        slowdown=slowdown,
        forward=None if phase is None else phase == "prefill",
        per_phase=per_phase,
        switch_seconds=quantity(clock_switch_seconds, "seconds", where="clock switch"),
    )
    if plot is not None:
        from jaxlens.cli.advise.pictures import draw_clocks

        draw_clocks(advice, plot)
    if as_json:
        print_json(content(advice))
    else:
        show(advice)
        if plot is not None:
            print_line(f"picture: {plot}")


def content(advice: "ClockAdvice") -> dict[str, Any]:
    """Returns the whole answer for programs."""
    asked = advice.request
    return {
        "model": asked.shape.name,
        "gpu": asked.card.chip,
        "stack": asked.card.stack,
        "phase": "prefill" if advice.forward else "serving",
        "unit": _unit(advice),
        "slowdown_bound": advice.slowdown,
        "advised": vars(advice.advised),
        "fastest": vars(advice.fastest),
        "least_energy": vars(advice.unbounded),
        "power_cap": None if advice.cap is None else vars(advice.cap),
        "knee": vars(advice.knee),
        "per_phase": [vars(found) for found in advice.phases],
        "clocks": [vars(setting) for setting in advice.settings],
        "commands": {
            "lock": list(advice.commands),
            "cap": list(advice.cap_commands),
            "reset": list(advice.reset),
        },
        "notes": _notes(advice),
    }


def show(advice: "ClockAdvice") -> None:
    """Prints the answer for people."""
    asked, best, full = advice.request, advice.advised, advice.fastest
    what = "forward pass" if advice.forward else "serving"
    print_line(
        f"{asked.shape.name} on {asked.card.chip} under {asked.card.stack}, {what} at "
        f"batch {float(asked.deployment.batch):g}: {best.clock_hz / 1e6:.0f} MHz saves "
        f"{share(best.saving)} of the energy at {signed_share(best.slowdown - 1.0)} time",
        style="bold",
    )
    print_table(
        ("", "MHz", "time", "energy", "power", "time", "energy"),
        [_row(advice, setting) for setting in _shown(advice)],
    )
    print_line(
        f"per {_unit(advice)}; bound on the slowdown {advice.slowdown:g} over "
        f"{full.clock_hz / 1e6:.0f} MHz"
    )
    print_line(f"  {advice.knee.text}")
    _show_cap(advice)
    for found in advice.phases:
        print_line(f"  {_phase_words(found)}")
    _show_commands(advice)
    print_notes(_notes(advice))


def _shown(advice: "ClockAdvice") -> "list[Setting]":
    """Rows from the lowest clock worth a look to the fastest, the advised among them."""
    least = min(advice.unbounded.clock_hz, advice.advised.clock_hz)
    rows = [s for s in advice.settings if s.clock_hz >= 0.8 * least]
    stride = max(1, len(rows) // SHOWN)
    kept = {id(s) for s in (advice.advised, advice.fastest, advice.unbounded)}
    return [s for n, s in enumerate(rows) if n % stride == 0 or id(s) in kept]


def _row(advice: "ClockAdvice", setting: "Setting") -> tuple[str, ...]:
    words = [
        word
        for word, other in (
            ("advised", advice.advised),
            ("fastest", advice.fastest),
            ("least energy", advice.unbounded),
        )
        if setting is other
    ]
    return (
        ", ".join(words),
        f"{setting.clock_hz / 1e6:.0f}",
        scaled(setting.seconds, "s"),
        scaled(setting.joules, "J"),
        f"{setting.watts:.0f} W",
        signed_share(setting.slowdown - 1.0),
        signed_share(-setting.saving),
    )


def _show_cap(advice: "ClockAdvice") -> None:
    cap, best = advice.cap, advice.advised
    if cap is None:
        print_line("  no power cap is equivalent to the advised clock")
        return
    reached = ", ".join(
        f"{PLURALS[name]} at {hz / 1e6:.0f} MHz" for name, hz in cap.reached_hz.items()
    )
    print_line(
        f"  without a lock, a cap of {cap.watts:.0f} W takes the same time at "
        f"{signed_share(cap.joules / best.joules - 1.0)} energy: {reached}"
    )


def _phase_words(found: "PhaseClocks") -> str:
    pair = f"prefill {found.prefill_hz / 1e6:.0f} MHz, decode {found.decode_hz / 1e6:.0f} MHz"
    single = f"one clock of {found.single_hz / 1e6:.0f} MHz"
    if not found.pays:
        return f"{found.schedule}: {single} is best, two clocks do not pay"
    return f"{found.schedule}: {pair} saves {share(found.saving)} over {single}"


def _show_commands(advice: "ClockAdvice") -> None:
    for title, lines in (
        ("lock", advice.commands),
        ("or cap", advice.cap_commands),
        ("undo the lock", advice.reset),
    ):
        for line in lines:
            print_line(f"  {title}: {line}")


def _unit(advice: "ClockAdvice") -> str:
    return "pass" if advice.forward else "output token"


def _notes(advice: "ClockAdvice") -> list[str]:
    own = [
        note
        for note in notes(advice.request)
        if not note.startswith("clock and cap lean")  # said in more detail
    ]
    if float(advice.request.deployment.power_cap_watts) != UNLIMITED:
        own.append("the power cap that was given holds at every clock of the table")
    return list(dict.fromkeys([*advice.notes, *own]))
