"""Measured tables from files, whatever tool wrote them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlens.calibration.adapters import (
    aiconfigurator,
    mlenergy,
    nccl_tests,
    vllm_bench,
)
from jaxlens.calibration.derived_columns import ChipWatts
from jaxlens.calibration.measured_tables import Known, Table, build_table
from jaxlens.calibration.raw_tables import (
    RawTable,
    from_records,
    read_bytes,
    read_columns,
    read_json,
)
from jaxlens.calibration.row_checks import BadRow

__all__ = ["BadRow", "Table", "build_table", "read_table"]


def read_table(
    path: str | Path,
    *,
    kind: str | None = None,
    gpu: str | None = None,
    stack: str | None = None,
    strict: bool = False,
    power: str | Path | None = None,
    tensor_parallel: int | None = None,
    known_model: Known | None = None,
    known_gpu: Known | None = None,
    chip_watts: ChipWatts | None = None,
) -> Table:
    """Returns the measured table at `path`, of the kind that its columns give away.

    CSV and Parquet of every kind of `schemas.SCHEMAS`, JSON clock curves and records,
    and the result files of ML.ENERGY, `vllm bench serve`, nccl-tests and
    aiconfigurator.

    Args:
        path: The file.
        kind: Name of a schema; overrides recognition.
        gpu: Chip of the rows that name none.
        stack: Serving stack of the rows that name none.
        strict: Raise on the first bad rows where otherwise they are set aside.
        power: Log of watts over the run, for a result of `vllm bench serve`.
        tensor_parallel: GPUs of the engine of such a result, which does not say.
        known_model: Whether a model id resolves; the catalogue where not given.
        known_gpu: Whether a chip id resolves; the catalogue where not given.
        chip_watts: Idle and TDP watts of a chip id; the catalogue where not given.
    """
    checks: dict[str, Any] = {
        "gpu": gpu,
        "stack": stack,
        "strict": strict,
        "known_model": known_model,
        "known_gpu": known_gpu,
        "chip_watts": chip_watts,
    }
    data = read_bytes(path)
    bench = {"power": power, "layout": _layout(tensor_parallel)}
    bench = {name: value for name, value in bench.items() if value}
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in {b"{", b"["}:
        return _read_json(path, data, kind, checks, bench)
    _refuse(path, bench)
    if data[:4] != b"PAR1" and nccl_tests.matches(data):
        return nccl_tests.read(path, **checks)
    raw = read_columns(path)
    if aiconfigurator.matches(raw.columns):
        raw = aiconfigurator.tidied(raw)
    return build_table(raw, kind=kind, **checks)


def _read_json(
    path: str | Path,
    data: bytes,
    kind: str | None,
    checks: Mapping[str, Any],
    bench: Mapping[str, Any],
) -> Table:
    documents = read_json(data, where=path)
    first = documents[0]
    if isinstance(first, dict) and "output_throughput" in first:
        return vllm_bench.read(path, **bench, **checks)
    _refuse(path, bench)
    if isinstance(first, dict) and "configurations" in first:
        return mlenergy.read(path, **checks)
    if isinstance(first, dict) and first and all(map(_is_number, first)):
        raw = _clock_curve(first, str(path), data, kind)
        stem = re.sub(r"_(supply_voltage|idle_power)$", "", Path(path).stem)
        return build_table(raw, kind=kind, **{**checks, "gpu": checks["gpu"] or stem})
    records = first if isinstance(first, list) else documents
    if not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path}: expected JSON objects, got {str(records)[:40]!r}.")
    raw = from_records(records, source=str(path), data=data)
    return build_table(raw, kind=kind, **checks)


def _layout(tensor_parallel: int | None) -> dict[str, Any]:
    if tensor_parallel is None:
        return {}
    return {"gpus": tensor_parallel, "tensor_parallel": tensor_parallel}


def _refuse(path: str | Path, bench: Mapping[str, Any]) -> None:
    """Raises for a power log or a layout beside a table that has columns for them."""
    if bench:
        raise ValueError(
            f"{path}: expected a result of `vllm bench serve` to go with a power log or "
            f"a layout, got another table; give it columns of watts and GPUs."
        )


def _clock_curve(
    curve: Mapping[str, Any], source: str, data: bytes, kind: str | None
) -> RawTable:
    """Returns `{"SM clock in MHz": millivolts or idle watts}` as a table."""
    names = {"clocks_voltage": "supply_millivolts", "clocks_idle": "idle_watts"}
    stem = Path(source).stem
    if kind is None and stem.endswith("_supply_voltage"):
        kind = "clocks_voltage"
    elif kind is None and stem.endswith("_idle_power"):
        kind = "clocks_idle"
    if kind not in names:
        raise ValueError(
            f"{source}: expected a clock curve of kind {' or '.join(names)}, got "
            f"{kind}; name the kind (--kind)."
        )
    records = [
        {"sm_clock_mhz": clock, names[kind]: value} for clock, value in curve.items()
    ]
    return from_records(records, source=source, data=data)


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True
