"""Models ready to be priced, by name or configuration."""

import os
from collections.abc import Mapping
from typing import Any

from jaxlens.models import load_shape
from jaxlens.quantizations import recast
from jaxlens.transformers import Model, model


def load_model(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    weights: str | None = None,
    kv: str | None = None,
) -> Model:
    """Returns the einsum description of a model.

    Args:
        source: HuggingFace id, path to a `config.json` or its contents.
        weights: Number format of the weights; by default the checkpoint's own.
        kv: Number format of the KV cache; by default the checkpoint's own.

    Raises:
        ValueError: where, what was expected, what came.
    """
    shape = load_shape(source)
    if weights is not None or kv is not None:
        shape = recast(shape, weights or shape.formats.feed_forward, kv)
    return model(shape)
