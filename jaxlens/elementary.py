"""Elementary functions of numbers, of NumPy arrays and of what JAX traces.

A formula written with them is one formula for all three. Given NumPy numbers it runs at once,
without tracing or compiling anything; given traced ones, or plain floats alone, it is that of
`jax.numpy`.
"""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PLAIN = (float, int, bool)
OF_NUMPY = (np.ndarray, np.float32, np.float64, np.bool_, np.int32, np.int64)


def on_numpy(*values: Any) -> bool:
    """Returns whether all values are numbers of which at least one is NumPy's."""
    found = False
    for value in values:
        kind = type(value)
        if kind in OF_NUMPY:
            found = True
        elif kind not in PLAIN:
            return False
    return found


def _either(of_numpy: Callable[..., Any], of_jax: Callable[..., Any]) -> Any:
    def function(*values: Any) -> Any:
        return (of_numpy if on_numpy(*values) else of_jax)(*values)

    return function


exp = _either(np.exp, jnp.exp)
expm1 = _either(np.expm1, jnp.expm1)
log = _either(np.log, jnp.log)
log1p = _either(np.log1p, jnp.log1p)
log2 = _either(np.log2, jnp.log2)
sqrt = _either(np.sqrt, jnp.sqrt)
absolute = _either(np.absolute, jnp.absolute)
floor = _either(np.floor, jnp.floor)
nearest = _either(np.rint, jnp.round)
isnan = _either(np.isnan, jnp.isnan)
maximum = _either(np.maximum, jnp.maximum)
minimum = _either(np.minimum, jnp.minimum)
clip = _either(lambda x, low, high: np.minimum(np.maximum(x, low), high), jnp.clip)
where = _either(np.where, jnp.where)
position = _either(
    lambda x: np.asarray(x).astype(np.int32),
    lambda x: jnp.asarray(x).astype(jnp.int32),
)
ones_like = _either(np.ones_like, jnp.ones_like)


def entry(table: Any, at: Any, like: Any = None) -> Any:
    """Returns the entry of a table at a position, in the type of `like` if that is given."""
    if on_numpy(table, at):
        return table[at]
    dtype = None if like is None else jnp.asarray(like).dtype
    return jnp.asarray(table, dtype)[at]


def lifted(*values: Any) -> tuple[Any, ...]:
    """Returns values as numbers or arrays of one type."""
    if on_numpy(*values):
        dtype = np.result_type(*values)
        return tuple(np.asarray(value, dtype)[()] for value in values)
    dtype = jnp.result_type(*values, 1.0)
    return tuple(jnp.asarray(value, dtype) for value in values)


def constant(value: float, like: Any) -> Any:
    """Returns a number in the type of `like`."""
    if on_numpy(like):
        return like.dtype.type(value)
    return jnp.asarray(value, like.dtype)


def stop_gradient(tree: Any) -> Any:
    """Returns what is no function of anything, as far as derivatives are concerned."""
    if on_numpy(*jax.tree.leaves(tree)):
        return tree
    return jax.lax.stop_gradient(tree)


class CustomJvp:
    """A function with a derivative of its own: `jax.custom_jvp` where JAX is at work."""

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self._plain, self._traced = function, jax.custom_jvp(function)

    def __call__(self, *values: Any) -> Any:
        """Returns the function's value."""
        given = on_numpy(*jax.tree.leaves(values))
        return (self._plain if given else self._traced)(*values)

    def defjvp(self, jvp: Callable[..., Any]) -> Callable[..., Any]:
        """Sets the derivative, as `jax.custom_jvp.defjvp`."""
        return self._traced.defjvp(jvp)
