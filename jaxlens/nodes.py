"""Numbers at the nodes of a quadrature, as variables of their own rather than an axis.

A compiler then computes everything about one configuration in one loop, also where sums over
nodes follow each other, and whatever axes configurations have.
"""

import operator
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import jax

from jaxlens import elementary


class Nodes:
    """A number for each node of the quadrature; arithmetic goes node by node."""

    __array_ufunc__ = None  # NumPy leaves arithmetic to this class

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = tuple(values)

    def __getitem__(self, node: int) -> Any:
        return self.values[node]

    def __neg__(self) -> "Nodes":
        return at_each(operator.neg, self)

    def __add__(self, other: Any) -> "Nodes":
        return at_each(operator.add, self, other)

    def __radd__(self, other: Any) -> "Nodes":
        return at_each(operator.add, other, self)

    def __sub__(self, other: Any) -> "Nodes":
        return at_each(operator.sub, self, other)

    def __rsub__(self, other: Any) -> "Nodes":
        return at_each(operator.sub, other, self)

    def __mul__(self, other: Any) -> "Nodes":
        return at_each(operator.mul, self, other)

    def __rmul__(self, other: Any) -> "Nodes":
        return at_each(operator.mul, other, self)

    def __truediv__(self, other: Any) -> "Nodes":
        return at_each(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> "Nodes":
        return at_each(operator.truediv, other, self)


jax.tree_util.register_pytree_node(
    Nodes, lambda nodes: (nodes.values, None), lambda _, values: Nodes(values)
)


def at_each(function: Callable[..., Any], *arguments: Any) -> Nodes:
    """Returns `function` at every node; what has no nodes is the same at all."""
    count = next(len(one.values) for one in arguments if isinstance(one, Nodes))
    rows = [x.values if isinstance(x, Nodes) else (x,) * count for x in arguments]
    return Nodes(map(function, *rows))


def total(values: Nodes) -> Any:
    """Returns the sum over all nodes."""
    return reduce(operator.add, values.values)


def most(values: Nodes) -> Any:
    """Returns the largest of all nodes."""
    return reduce(elementary.maximum, values.values)
