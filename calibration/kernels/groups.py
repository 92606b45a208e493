"""Groups of rows that share coefficients, and the folds that judge them."""

import zlib

import numpy as np

from jaxlens.calibration.kernels.formulas import Columns, Labels

SEPARATOR = " | "


def group_names(columns: Columns, labels: Labels, kind: str) -> np.ndarray:
    """Returns the name of the group of every row: its labels, joined.

    Columns that the table lacks count as empty; `kind` stands for the whole table.
    """
    rows = len(columns["gpu"])
    parts = []
    for label in labels:
        if label == "kind":
            parts.append(np.full(rows, kind))
        elif label not in columns:
            parts.append(np.full(rows, ""))
        elif columns[label].dtype.kind == "U":
            parts.append(columns[label])
        else:
            parts.append(np.array([f"{value:g}" for value in columns[label].tolist()]))
    distinct = [np.unique(part, return_inverse=True) for part in parts]
    codes = np.stack([code for _, code in distinct], axis=1)
    unique, position = np.unique(codes, axis=0, return_inverse=True)
    names = [
        SEPARATOR.join(
            str(words[code])
            for (words, _), code in zip(distinct, row.tolist(), strict=True)
        )
        for row in unique
    ]
    return np.array(names, np.str_)[position.reshape(-1)]


def folds(columns: Columns, shape: Labels, count: int, seed: int) -> np.ndarray:
    """Returns the fold of every row; rows of one shape share it.

    A hash of the shape, so that a row's fold depends on no other row.
    """
    return (_hashes(columns, shape, seed) % np.uint64(count)).astype(int)


def even_folds(columns: Columns, shape: Labels, count: int, seed: int) -> np.ndarray:
    """Returns the fold of every row, each of as many shapes: for groups of few rows."""
    _, position = np.unique(_hashes(columns, shape, seed), return_inverse=True)
    return position % count


def _hashes(columns: Columns, shape: Labels, seed: int) -> np.ndarray:
    mixed = np.full(len(columns["gpu"]), np.uint64(0x9E3779B97F4A7C15 + seed))
    for name in shape:
        values = columns[name]
        if values.dtype.kind == "U":
            words, codes = np.unique(values, return_inverse=True)
            values = np.array([zlib.crc32(str(w).encode()) for w in words])[codes]
        values = values.astype(np.float64).view(np.uint64)
        mixed = (mixed ^ values) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(32)
    return mixed


def members(names: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows of every group, by name, in order of first appearance."""
    unique, position = np.unique(names, return_inverse=True)
    order = np.argsort(position, kind="stable")
    bounds = np.searchsorted(position[order], np.arange(len(unique) + 1))
    return {
        str(name): order[bounds[i] : bounds[i + 1]] for i, name in enumerate(unique)
    }
