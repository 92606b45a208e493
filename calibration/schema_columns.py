"""The columns of measured tables: names in SI, spellings in files, and what cells may hold.

A `Schema` lists the columns that a kind of table may have. Every column has one SI name
(`seconds`, `watts`, `bytes` ...) and the names, each with a factor to SI, under which
files spell it. Unit conversion happens through these factors and nowhere else.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from jaxlens.precisions import FORMATS

Rule = Literal["text", "flag", "positive", "nonnegative", "count"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its SI name, its spellings in files, and what a cell may hold."""

    name: str
    rule: Rule
    spellings: tuple[tuple[str, float], ...] = ()  # (name in the file, factor to SI)
    required: bool = False
    default: float | str | None = None  # stands in for an empty cell or no column
    choices: Collection[str] | None = None

    @property
    def is_text(self) -> bool:
        """Whether cells are words, not numbers."""
        return self.rule == "text"


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One kind of table: its columns, and the file columns that give it away."""

    kind: str
    columns: tuple[Column, ...]
    signature: tuple[frozenset[str], ...]  # any of these sets of file columns
    model_is_huggingface_id: bool = True

    @property
    def names(self) -> frozenset[str]:
        """The SI names of all columns."""
        return frozenset(column.name for column in self.columns)


def texts(*names: str, required: bool = False) -> tuple[Column, ...]:
    """Returns columns of words, spelled as they are called."""
    return tuple(Column(name=name, rule="text", required=required) for name in names)


def number(
    name: str,
    *spellings: str | tuple[str, float],
    rule: Rule = "positive",
    required: bool = False,
    default: float | None = None,
) -> Column:
    """Returns a column of numbers; a spelling alone is in SI, one in a pair is not."""
    pairs = ((s, 1.0) if isinstance(s, str) else s for s in spellings)
    return Column(
        name=name,
        rule=rule,
        spellings=((name, 1.0), *pairs),
        required=required,
        default=default,
    )


def text(
    name: str, *spellings: str, required: bool = False, default: str | None = None
) -> Column:
    """Returns a column of words."""
    return Column(
        name=name,
        rule="text",
        spellings=tuple((s, 1.0) for s in (name, *spellings)),
        required=required,
        default=default,
    )


def number_format(name: str) -> Column:
    """Returns a column of number formats, as predictions call them."""
    return Column(name=name, rule="text", choices=tuple(FORMATS))
