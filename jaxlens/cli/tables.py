"""How numbers look to people: units, shares and tables; and JSON for programs."""

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PREFIXES = (
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
    (1e-12, "p"),
)
SMALLEST_WIDTH = 120  # columns of a table that is piped


def scaled(value: float, unit: str, digits: int = 3) -> str:
    """Returns `value` with the prefix that leaves one to three digits in front.

    >>> scaled(0.0213, "s")
    '21.3 ms'
    """
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g} {unit}".rstrip()
    size = abs(value) * (1.0 + 0.5 * 10.0**-digits)
    factor, prefix = next((pair for pair in PREFIXES if size >= pair[0]), PREFIXES[-1])
    number = value / factor
    before = len(str(int(abs(number))))
    return f"{number:.{max(0, digits - before)}f} {prefix}{unit}".rstrip()


def share(value: float) -> str:
    """Returns a fraction in percent."""
    return f"{100.0 * value:.1f} %"


def signed_share(value: float) -> str:
    """Returns a fraction in percent, with its sign."""
    return f"{100.0 * value:+.1f} %"


@cache
def console() -> "Console":
    """Returns the console: no colour and a fixed width where output is piped."""
    from rich.console import Console

    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = max(out.width, SMALLEST_WIDTH)
    return out


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    left: int = 1,
) -> None:
    """Prints a table whose first `left` columns are words, the others numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    for position, name in enumerate(columns):
        words = position < left
        table.add_column(
            name,
            justify="left" if words else "right",
            no_wrap=position == 0,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console().print(table)


def print_line(text: str = "", style: str | None = None) -> None:
    """Prints one line of text, markup taken literally."""
    console().print(text, style=style, markup=False)


def print_notes(notes: Iterable[str]) -> None:
    """Prints what to know about the numbers above."""
    for note in notes:
        print_line(f"  note: {note}", style="yellow")


def print_json(content: Any) -> None:
    """Prints `content` as JSON."""
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
