"""Fingerprints: short texts that differ where two values differ.

Unlike `hash`, the same in every process, on every machine and for every version of JAX.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np

LENGTH = 32  # hexadecimal digits: 128 bits


def fingerprint(value: Any) -> str:
    """Returns the fingerprint of numbers, texts, arrays, and what is made of them.

    Numbers count by their value in float64, whatever type holds them; mappings whatever
    their order; dataclasses by name and fields.

    >>> fingerprint({"tp": 1, "dp": 2}) == fingerprint({"dp": 2.0, "tp": np.float32(1.0)})
    True
    """
    digest = hashlib.sha256()
    for piece in _pieces(value):
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()[:LENGTH]


def _pieces(value: Any) -> Iterator[bytes]:
    if value is None or isinstance(value, str):
        yield f"text {value}".encode() if isinstance(value, str) else b"none"
    elif isinstance(value, Enum):
        yield f"enum {type(value).__name__}.{value.name}".encode()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"fields of {type(value).__name__}".encode()
        names = [field.name for field in dataclasses.fields(value)]
        yield from _entries({name: getattr(value, name) for name in names})
    elif isinstance(value, Mapping):
        yield from _entries(value)
    elif isinstance(value, set | frozenset):
        yield f"set of {len(value)}".encode()
        yield from (text.encode() for text in sorted(map(fingerprint, value)))
    elif isinstance(value, list | tuple):
        yield f"list of {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    else:
        yield from _number_pieces(value)


def _number_pieces(value: Any) -> Iterator[bytes]:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"fingerprint: expected numbers, texts, arrays or collections of them, got "
            f"{type(value).__name__}."
        ) from None
    yield f"numbers {array.shape}".encode()
    yield np.ascontiguousarray(array).astype("<f8").tobytes()


def _entries(mapping: Mapping[Any, Any]) -> Iterator[bytes]:
    yield f"mapping of {len(mapping)}".encode()
    for key in sorted(mapping, key=str):
        yield str(key).encode()
        yield from _pieces(mapping[key])
