"""Result files of the ML.ENERGY leaderboard as serving tables.

Source: ML.ENERGY leaderboard v3, one JSON file per task, 2025,
https://github.com/ml-energy/leaderboard.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlens.calibration.measured_tables import Table, build_table
from jaxlens.calibration.raw_tables import from_records, read_bytes, read_json

# Column of the serving schema -> field of a configuration, factor to SI.
NUMBERS: Mapping[str, tuple[str, float]] = {
    "gpus": ("num_gpus", 1.0),
    "data_parallel": ("data_parallel", 1.0),
    "expert_parallel": ("expert_parallel", 1.0),
    "output_tokens": ("avg_output_len", 1.0),
    "max_num_seqs": ("max_num_seqs", 1.0),
    "concurrency": ("avg_batch_size", 1.0),
    "output_tokens_per_second": ("output_throughput_tokens_per_sec", 1.0),
    "watts": ("avg_power_watts", 1.0),
    "joules_per_output_token": ("energy_per_token_joules", 1.0),
    "itl_p50_seconds": ("median_itl_ms", 1e-3),
    "itl_p99_seconds": ("p99_itl_ms", 1e-3),
}
FORMATS: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float8": "fp8",
}


def read(path: str | Path, **checks: Any) -> Table:
    """Returns the serving table in the leaderboard file at `path`.

    Rows are numbered by configuration, from 1. `checks` are those of `read_table`; the
    file does not name its engine, so `stack` is needed. Prompt lengths are unknown. The
    file's `tensor_parallel` is 1 wherever `expert_parallel` is not, a default label:
    attention runs tensor-parallel over `num_gpus / data_parallel`.
    """
    data = read_bytes(path)
    document = read_json(data, where=path)[0]
    runs = document.get("configurations") if isinstance(document, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise ValueError(
            f"{path}: expected a list of objects under `configurations`, got none."
        )
    task = str(document.get("task") or Path(path).stem)
    records = [_record(run, task) for run in runs]
    raw = from_records(records, source=str(path), data=data)
    return build_table(raw, kind="serving", **checks)


def _record(run: Mapping[str, Any], task: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "source": "mlenergy",
        "workload": run.get("task", task),
        "model": run.get("model_id"),
        "gpu": run.get("gpu_model"),
    }
    precision = str(run.get("weight_precision") or "").lower()
    record["weight_dtype"] = FORMATS.get(precision, precision)
    for name, (field, factor) in NUMBERS.items():
        value = run.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = value * factor
        record[name] = value
    return record
