"""The README prints what it says it prints."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """Returns the fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_example_prints_what_the_page_shows():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(
            compile(blocks("python")[0], "README.md", "exec"), {}
        )  # the page's own code
    assert printed.getvalue().strip() == blocks("text")[0].strip()


def test_every_command_it_names_exists():
    from typer.main import get_command

    from jaxlens.cli import app

    named = set(re.findall(r"`jaxlens (\w+)", README))
    assert named <= set(get_command(app).commands)
