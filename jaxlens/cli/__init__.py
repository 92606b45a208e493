"""The command line: parse, call one library function, print a table or JSON."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from jaxlens.cli import (
    advise,
    calibrate,
    coreset,
    explore,
    gpus,
    measure,
    models,
    overlap,
    pools,
    predict,
    sensitivity,
    shards,
    validate,
)
from jaxlens.cli.jax_settings import keep_compilations

USER_ERROR = 2
# The base of everything that is wrong with a command line.
UsageError: Any = typer.BadParameter.__mro__[1]

HELP = (
    "Energy and latency of language-model inference, predicted.\n\n"
    "Energies are of the GPUs unless a line says otherwise. Every command prints JSON in "
    "SI units with --json, and what rests on a guess says so."
)

START = """
[bold]Start here[/bold]

jaxlens predict meta-llama/Llama-3.1-70B-Instruct --gpu h100-sxm --tp 4 --batch 64

jaxlens models llama     jaxlens gpus     jaxlens predict --help
"""

app = typer.Typer(
    name="jaxlens",
    help=HELP,
    epilog=START,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _register(name: str, command: Callable[..., Any], examples: str) -> None:
    """Adds a command; its docstring is its help, with paragraphs that flow."""
    paragraphs = (command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(name, help=text, epilog=examples)(command)


_register("predict", predict.command, predict.EXAMPLES)
_register("explore", explore.command, explore.EXAMPLES)
_register("overlap", overlap.command, overlap.EXAMPLES)
app.add_typer(advise.app, name="advise")
_register("pools", pools.command, pools.EXAMPLES)
_register("sensitivity", sensitivity.command, sensitivity.EXAMPLES)
_register("models", models.command, models.EXAMPLES)
_register("gpus", gpus.command, gpus.EXAMPLES)
_register("shards", shards.command, shards.EXAMPLES)
_register("validate", validate.command, validate.EXAMPLES)
_register("calibrate", calibrate.command, calibrate.EXAMPLES)
_register("coreset", coreset.command, coreset.EXAMPLES)
_register("measure", measure.command, measure.EXAMPLES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    What the user can put right is one line on stderr and exit code 2.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    keep_compilations()
    try:
        code = app(given or ["--help"], prog_name="jaxlens", standalone_mode=False)
    except UsageError as error:
        message = error.format_message().rstrip(".")
        return _complain(f"{message}; `jaxlens --help` explains.")
    except (ValueError, OSError) as error:
        return _complain(str(error))
    return code if isinstance(code, int) else 0


def _complain(message: str) -> int:
    print(f"jaxlens: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR
