"""Datasheet facts of the chip and the number format of every row of a table.

Chips are those of the catalogue, unless a table brings the facts of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxlens.hardware import Chip
from jaxlens.profiles import load_chip

Facts = Mapping[str, float]
Chips = Mapping[str, Facts]  # by the id that tables use
CATALOGUE: Chips = MappingProxyType({})  # no facts of its own: all from the catalogue
FACTS = (
    "sms",
    "peak_fp32_flop_per_s",
    "peak_tf32_flop_per_s",
    "peak_bf16_flop_per_s",
    "peak_fp8_flop_per_s",
    "peak_fp4_flop_per_s",
    "hbm_bytes_per_s",
    "l2_bytes",
    "link_bytes_per_s",
    "network_bytes_per_s",
    "tdp_watts",
)

# Matrix unit, bytes of a weight, bytes of an activation. FP4 formats carry a scale per
# 16 (NVFP4) or 32 (MXFP4) elements, INT4 one of 16 bits per 128.
FORMATS: dict[str, tuple[str, float, float]] = {
    "fp32": ("tf32", 4.0, 4.0),
    "tf32": ("tf32", 4.0, 4.0),
    "bf16": ("bf16", 2.0, 2.0),
    "int8_wo": ("bf16", 1.0, 2.0),
    "int4_wo": ("bf16", 4.125 / 8.0, 2.0),
    "w4a16_mxfp4": ("bf16", 4.25 / 8.0, 2.0),
    "fp8": ("fp8", 1.0, 1.0),
    "fp8_block": ("fp8", 1.0, 1.0),
    "int8": ("fp8", 1.0, 1.0),
    "w4a8_mxfp4_mxfp8": ("fp8", 4.25 / 8.0, 1.0),
    "nvfp4": ("fp4", 4.5 / 8.0, 4.5 / 8.0),
}
SPELLINGS = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp16": "bf16",
    "half": "bf16",
    "float32": "fp32",
    "float": "fp32",
    "float8": "fp8",
    "fp8_e4m3": "fp8",
    "int4": "int4_wo",
    "mxfp4": "w4a16_mxfp4",
    "": "bf16",
}


def facts_of(
    chips: Mapping[str, Chip | str | Path | Mapping[str, Any]] | None,
) -> dict[str, Facts]:
    """Returns the facts that formulas need, of chips given as such or as chip files."""
    return {
        name: {
            fact: float(
                getattr(chip if isinstance(chip, Chip) else load_chip(chip), fact)
            )
            for fact in FACTS
        }
        for name, chip in (chips or {}).items()
    }


def fact(gpus: np.ndarray, name: str, chips: Chips = CATALOGUE) -> np.ndarray:
    """Returns a datasheet fact, such as `sms`, for every row."""
    names, position = np.unique(gpus, return_inverse=True)
    values = [
        chips[gpu][name] if gpu in chips else float(getattr(load_chip(gpu), name))
        for gpu in map(str, names)
    ]
    return np.array(values)[position]


def formats(dtypes: np.ndarray) -> np.ndarray:
    """Returns the format that every table's spelling of a dtype stands for."""
    names, position = np.unique(dtypes, return_inverse=True)
    known = [SPELLINGS.get(name.lower(), name.lower()) for name in names.tolist()]
    known = [name if name in FORMATS else "bf16" for name in known]
    return np.array(known, np.str_)[position]


def precision_features(
    gpus: np.ndarray, dtypes: np.ndarray, chips: Chips = CATALOGUE
) -> dict[str, np.ndarray]:
    """Returns peak, weight bytes and activation bytes for every row."""
    names = formats(dtypes)
    peaks = np.zeros(len(names))
    for unit in {FORMATS[name][0] for name in set(names.tolist())}:
        of_unit = np.array([FORMATS[name][0] == unit for name in names.tolist()])
        peaks = np.where(of_unit, fact(gpus, f"peak_{unit}_flop_per_s", chips), peaks)
    return {
        "flop_per_s": peaks,
        "weight_bytes": np.array([FORMATS[name][1] for name in names.tolist()]),
        "activation_bytes": np.array([FORMATS[name][2] for name in names.tolist()]),
    }


def without_matrix_unit(gpus: np.ndarray, chips: Chips = CATALOGUE) -> np.ndarray:
    """Returns 1 for chips whose matrix products run in vector units, as processors' do."""
    matrix = fact(gpus, "peak_bf16_flop_per_s", chips)
    return (matrix <= fact(gpus, "peak_fp32_flop_per_s", chips)).astype(float)


def memory_features(
    gpus: np.ndarray, chips: Chips = CATALOGUE
) -> dict[str, np.ndarray]:
    """Returns SMs, HBM bandwidth and L2 size for every row."""
    names = ("sms", "hbm_bytes_per_s", "l2_bytes")
    return {name: fact(gpus, name, chips) for name in names}
