"""Frozen, keyword-only dataclasses that JAX can trace, batch and differentiate."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """Marks a field as part of the structure: changing it recompiles."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(static,)
)
def pytree(cls: type[T]) -> type[T]:
    """Turns `cls` into a frozen, keyword-only dataclass registered with JAX."""
    return jax.tree_util.register_dataclass(
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    )
