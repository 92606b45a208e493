"""Performance tables of aiconfigurator, as text or Parquet, under the schemas' names.

Source: NVIDIA, aiconfigurator, collected `*_perf` tables, 2025,
https://github.com/ai-dynamo/aiconfigurator (Apache-2.0). Latencies are milliseconds,
powers watts, and the message sizes of collectives count elements.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration.measured_tables import Table, build_table
from jaxlens.calibration.raw_tables import RawTable, read_columns
from jaxlens.calibration.row_checks import Cells

NAMES: Mapping[str, str] = {
    "framework": "backend",
    "device": "gpu",
    "num_key_value_heads": "kv_heads",
    "allreduce_dtype": "dtype",
    "nccl_dtype": "dtype",
    "latency": "latency_ms",
    "power": "power_w",
    "power_limit": "power_limit_w",
}
MARKS = frozenset(
    {
        "framework",
        "nccl_dtype",
        "allreduce_dtype",
        "message_size",
        "num_key_value_heads",
    }
)
ELEMENT_BYTES: Mapping[str, float] = {
    "half": 2.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "bf16": 2.0,
    "int8": 1.0,
    "fp8": 1.0,
    "float": 4.0,
    "float32": 4.0,
}
DECODE = "generation_attention"


def matches(columns: Collection[str]) -> bool:
    """Returns whether `columns` are those of a table as aiconfigurator writes it."""
    return bool(MARKS & {*columns})


def read(path: str | Path, **checks: Any) -> Table:
    """Returns the operation or collective table at `path`.

    `checks` are those of `read_table`. Collective tables name no chip: give `gpu`.
    """
    return build_table(tidied(read_columns(path)), **checks)


def tidied(raw: RawTable) -> RawTable:
    """Returns `raw` with the column names and bytes that the schemas expect."""
    cells: dict[str, Cells] = dict(raw.columns)
    if "message_size" in cells:
        cells = _collective(cells, raw)
    decode = DECODE in {str(name) for name in cells.get("op_name", ())}
    if decode and "isl" in cells and "step" in cells:
        context = _added(cells.pop("isl"), cells.pop("step"))
        cells["ctx"] = context
    renamed = {NAMES.get(name, name): values for name, values in cells.items()}
    if "backend" in renamed:
        renamed["backend"] = [str(name).lower() for name in renamed["backend"]]
    dropped = {"beam_width"} | (set() if "bytes" in renamed else {"op_name"})
    return raw.with_columns({k: v for k, v in renamed.items() if k not in dropped})


def _collective(cells: dict[str, Cells], raw: RawTable) -> dict[str, Cells]:
    """Returns `cells` with bytes instead of elements.

    bytes = message_size x bytes per element
    """
    spelled = next(
        (n for n in ("nccl_dtype", "allreduce_dtype") if n in cells), "dtype"
    )
    if spelled not in cells:
        raise ValueError(
            f"{raw.source}: expected an `nccl_dtype` column beside `message_size`, got "
            f"{', '.join(cells)}."
        )
    formats = [str(name).strip() for name in cells[spelled]]
    unknown = sorted({name for name in formats if name not in ELEMENT_BYTES})
    if unknown:
        raise ValueError(
            f"{raw.source}: expected {spelled} among {', '.join(ELEMENT_BYTES)}, got "
            f"{', '.join(unknown)}."
        )
    sizes = cells.pop("message_size")
    cells["bytes"] = [
        _times(size, ELEMENT_BYTES[name])
        for size, name in zip(sizes, formats, strict=True)
    ]
    cells.setdefault("op_name", ["all_reduce"] * len(formats))
    if "kernel_source" in cells:
        cells["impl"] = cells.pop("kernel_source")
    if "framework" not in cells and "backend" not in cells:
        cells["backend"] = ["nccl"] * len(formats)
    elif "framework" in cells:
        cells.pop("backend", None)  # the engine's mode, which `impl` tells as well
    return cells


def _times(cell: object, factor: float) -> object:
    """Returns the product, or the cell itself where it is no number: checked later."""
    try:
        return float(cell) * factor  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return cell


def _added(one: Cells, other: Cells) -> Cells:
    """Returns the sum of two columns, or the first where it makes no numbers."""
    try:
        return np.asarray(one, dtype=np.float64) + np.asarray(other, dtype=np.float64)
    except (TypeError, ValueError):
        return one
