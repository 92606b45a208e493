"""One self-contained HTML page: style, script and data inside, no request to a network."""

import html
import json
import os
import tempfile
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from jaxlens.exploring import ExploreResult
from jaxlens.report.content import content


def write_report(
    result: ExploreResult,
    path: str | PathLike[str],
    *,
    title: str = "",
    commands: dict[str, str] | None = None,
) -> Path:
    """Returns the path of the report on `result`, written whole or not at all.

    Args:
        result: What was compared.
        path: File to write, ending in .html.
        title: Heading; by default the name of the model.
        commands: Text to run, by what it does.

    Raises:
        ValueError: the path cannot hold a page, or nothing is within the limits.
    """
    target = check_path(path)
    text = page(content(result, title=title, commands=commands))
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as part:
            part.write(text)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise ValueError(f"report: could not write {target}: {error}.") from error
    return target


def check_path(path: str | PathLike[str]) -> Path:
    """Returns where a report goes; raises `ValueError` if it cannot go there."""
    target = Path(path).expanduser()
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"report: expected a file that ends in .html, got {target}.")
    if not target.absolute().parent.is_dir():
        raise ValueError(
            f"report: expected a folder that exists, got {target.parent}; create it."
        )
    return target


def page(content: dict[str, Any]) -> str:
    """Returns the HTML of a report; names from users are text wherever they appear."""
    parts = {
        "@TITLE@": html.escape(str(content["title"])),
        "@STYLE@": _part("style.css"),
        "@DATA@": _embedded(content),
        "@SCRIPT@": _part("script.js"),
    }
    # The frame has each mark once, in this order: what is put in is not searched again.
    pieces, rest = [], _part("frame.html")
    for mark, part in parts.items():
        before, rest = rest.split(mark, 1)
        pieces += [before, part]
    return "".join([*pieces, rest])


def _embedded(content: dict[str, Any]) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _part(name: str) -> str:
    return files("jaxlens.report").joinpath(name).read_text(encoding="utf-8")
