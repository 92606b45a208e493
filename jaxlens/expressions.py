"""Bounds between knobs, such as `tensor_parallel * pipeline_parallel <= 16`, as slacks.

Numbers, names, + - * / %, min, max and brackets on both sides of <=, <, >=, > or ==, in
chains and joined by `and`. A bound is a signed relative slack, negative where it is missed:

    slack(a <= b) = (b - a) / max(|a|, |b|)
"""

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.pytrees import pytree, static

Scalar = Float[Array, ""] | float

LONGEST = 500  # characters of one bound
TOLERANCE = 1e-6  # relative: equal in float32
MISSED = -1e-5  # slack of a strict bound at equality

OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Mod: lambda a, b: a - b * elementary.floor(a / b + TOLERANCE),
}
FUNCTIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "min": elementary.minimum,
    "max": elementary.maximum,
}
COMPARISONS = (ast.LtE, ast.Lt, ast.GtE, ast.Gt, ast.Eq)
GRAMMAR = "numbers, names, + - * / %, min(), max(), brackets, <= < >= > == and `and`"


@pytree
class Formula:
    """A bound whose structure is static and whose numbers are traced."""

    pattern: str = static()  # with names such as `_0` in the place of numbers
    numbers: tuple[Scalar, ...]


@dataclass(frozen=True)
class Bound:
    """A bound as it was written, and the names in it."""

    text: str
    names: tuple[str, ...]

    @property
    def formula(self) -> Formula:
        """The bound for compiled programs: other numbers are no other program."""
        tree = _Numbered()
        pattern = ast.unparse(tree.visit(ast.parse(self.text, mode="eval").body))
        return Formula(pattern=pattern, numbers=tuple(tree.numbers))


def bound(
    text: str, known: Iterable[str], aliases: Mapping[str, str] | None = None
) -> Bound:
    """Returns the bound that `text` states over the names in `known`.

    Args:
        text: Such as "tp * pp <= 16".
        known: Names that may occur.
        aliases: Other spellings, by the name that they stand for.

    Raises:
        ValueError: it is no bound, or has a name that does not exist.

    >>> bound("2 * a <= b", ["a", "b"]).names
    ('a', 'b')
    """
    where = f"where {text!r}"
    tree = _parsed(text, where)
    renamed = _Renamed(aliases or {}).visit(tree)
    names = tuple(sorted({n.id for n in ast.walk(renamed) if isinstance(n, ast.Name)}))
    allowed = [*known, *FUNCTIONS]
    for name in names:
        if name not in allowed:
            near = get_close_matches(name, allowed, 3)
            hint = f"near: {', '.join(near)}" if near else f"there are {_list(allowed)}"
            raise ValueError(
                f"{where}: expected names that exist, got {name!r}; {hint}."
            )
    used = tuple(name for name in names if name not in FUNCTIONS)
    if not used:
        raise ValueError(
            f"{where}: expected at least one name; there are {_list(known)}."
        )
    return Bound(text=ast.unparse(renamed), names=used)


def slack(bound: Bound | Formula, values: Mapping[str, Any]) -> Any:
    """Returns the signed relative slack of a bound: negative where it is missed.

    The least of its comparisons; infinite values count as missed. Scalars or arrays.
    """
    formula = bound.formula if isinstance(bound, Bound) else bound
    numbers = {f"_{place}": value for place, value in enumerate(formula.numbers)}
    tree = ast.parse(formula.pattern, mode="eval").body
    found = [_compare(*parts, {**values, **numbers}) for parts in _comparisons(tree)]
    least = found[0]
    for other in found[1:]:
        least = elementary.minimum(least, other)
    return elementary.where(elementary.isnan(least), -1.0, least)


class _Renamed(ast.NodeTransformer):
    def __init__(self, aliases: Mapping[str, str]) -> None:
        self.aliases = aliases

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(id=self.aliases.get(node.id, node.id), ctx=node.ctx)


class _Numbered(ast.NodeTransformer):
    """Puts names in the place of numbers."""

    def __init__(self) -> None:
        self.numbers: list[float] = []

    def visit_Constant(self, node: ast.Constant) -> ast.Name:
        self.numbers.append(float(str(node.value)))
        return ast.Name(id=f"_{len(self.numbers) - 1}", ctx=ast.Load())


def _parsed(text: str, where: str) -> ast.expr:
    try:
        if len(text) > LONGEST:
            raise ValueError(f"{where}: expected at most {LONGEST} characters.")
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(
            f"{where}: expected a bound such as `tensor_parallel * pipeline_parallel "
            f"<= 16`; it may have {GRAMMAR}."
        ) from None
    for left, _, right in _comparisons(tree, where):
        for side in (left, right):
            _check(side, where)
    return tree


def _comparisons(
    tree: ast.expr, where: str = ""
) -> list[tuple[ast.expr, ast.cmpop, ast.expr]]:
    if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
        return [part for value in tree.values for part in _comparisons(value, where)]
    if not isinstance(tree, ast.Compare):
        raise ValueError(
            f"{where}: expected a comparison such as a <= b, got "
            f"{ast.unparse(tree)!r}; it may have {GRAMMAR}."
        )
    sides = [tree.left, *tree.comparators]
    parts = list(zip(sides, tree.ops, sides[1:], strict=False))
    for _, operation, _ in parts:
        if not isinstance(operation, COMPARISONS):
            raise ValueError(
                f"{where}: expected <=, <, >=, > or ==; no other compares."
            )
    return parts


def _check(tree: ast.expr, where: str) -> None:
    """Refuses everything that is not arithmetic."""
    match tree:
        case ast.Constant() if type(tree.value) in (int, float):
            if math.isfinite(float(str(tree.value))):
                return
        case ast.Name():
            return
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _check(operand, where)
        case ast.BinOp(left=left, op=operation, right=right):
            if type(operation) in OPERATORS:
                _check(left, where)
                return _check(right, where)
        case ast.Call(func=ast.Name(id=name), args=[first, second], keywords=[]):
            if name in FUNCTIONS:
                _check(first, where)
                return _check(second, where)
    raise ValueError(f"{where}: expected only {GRAMMAR}, got {ast.unparse(tree)!r}.")


def _compare(
    left: ast.expr, operation: ast.cmpop, right: ast.expr, values: Mapping[str, Scalar]
) -> Scalar:
    first, second = _evaluated(left, values), _evaluated(right, values)
    if isinstance(operation, ast.GtE | ast.Gt):
        first, second = second, first
    size = elementary.maximum(
        elementary.maximum(elementary.absolute(first), elementary.absolute(second)),
        1e-30,
    )
    relative = (second - first) / size
    if isinstance(operation, ast.Eq):
        relative = -elementary.absolute(relative)
    if isinstance(operation, ast.Lt | ast.Gt):
        return elementary.where(
            relative > TOLERANCE, relative, elementary.minimum(relative, MISSED)
        )
    return elementary.where(elementary.absolute(relative) <= TOLERANCE, 0.0, relative)


def _evaluated(tree: ast.expr, values: Mapping[str, Scalar]) -> Any:
    match tree:
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=operation, operand=operand):
            value = _evaluated(operand, values)
            return -value if isinstance(operation, ast.USub) else value
        case ast.BinOp(left=left, op=operation, right=right):
            sides = _evaluated(left, values), _evaluated(right, values)
            return OPERATORS[type(operation)](*sides)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name](*(_evaluated(a, values) for a in arguments))
    raise AssertionError


def _list(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
