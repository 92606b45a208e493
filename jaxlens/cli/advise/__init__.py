"""`jaxlens advise`: what to set, found by search. One file for each piece of advice."""

from collections.abc import Callable
from typing import Any

import typer

from jaxlens.cli.advise import batch, clock, hardware, layout

app = typer.Typer(
    help="What to set, found by search under limits: layouts, clocks, batches, chips.",
    context_settings={"help_option_names": ["--help", "-h"]},
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def _register(name: str, command: Callable[..., Any], examples: str) -> None:
    """Adds a command; its docstring is its help, with paragraphs that flow."""
    paragraphs = (command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(name, help=text, epilog=examples)(command)


_register("layout", layout.command, layout.EXAMPLES)
_register("hardware", hardware.command, hardware.EXAMPLES)
_register("clock", clock.command, clock.EXAMPLES)
_register("batch", batch.command, batch.EXAMPLES)
