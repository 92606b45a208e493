"""Results of `vllm bench serve`, with a power log, as serving tables.

Source: vLLM, `vllm bench serve --save-result`, 2025,
https://docs.vllm.ai/en/latest/benchmarking/cli.html.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.calibration.adapters.power_logs import PowerLog, read_power_log
from jaxlens.calibration.measured_tables import Table, build_table
from jaxlens.calibration.raw_tables import from_records, read_bytes, read_json

LAYOUT = (
    "gpus",
    "tensor_parallel",
    "data_parallel",
    "expert_parallel",
    "pipeline_parallel",
    "weight_dtype",
    "kv_dtype",
    "max_num_seqs",
    "power_cap_watts",
    "sm_clock_hz",
)


def read(
    path: str | Path,
    *,
    power: str | Path | None = None,
    window: tuple[float, float] | None = None,
    layout: Mapping[str, Any] | None = None,
    **checks: Any,
) -> Table:
    """Returns the runs in the result file at `path`, one row each.

    The result names neither GPU nor layout: `checks` (those of `read_table`) give `gpu`
    and `stack`, and `layout` gives any of `LAYOUT`, which `--metadata key=value` of the
    benchmark may carry as well. Watts are the mean of the power log over the run, which
    ends when the result's `date` was written and began `duration` before; `window`
    (start and end, in the log's seconds) overrides it. A log whose times start near 0
    has no common clock and is averaged over all of it.
    """
    data = read_bytes(path)
    unknown = {*(layout or {})} - {*LAYOUT}
    if unknown:
        raise ValueError(
            f"{path}: expected a layout of {', '.join(LAYOUT)}, got {sorted(unknown)}."
        )
    documents = read_json(data, where=path)
    results = [r for d in documents for r in (d if isinstance(d, list) else [d])]
    if not results or not all(isinstance(result, dict) for result in results):
        raise ValueError(f"{path}: expected benchmark results, got other JSON.")
    log = None if power is None else read_power_log(power)
    if log is not None and len(results) > 1 and window is not None:
        raise ValueError(f"{path}: expected one result to go with a window, got more.")
    records = [_record(result, layout or {}) for result in results]
    if log is not None:
        for record, result in zip(records, results, strict=True):
            record["watts"] = log.mean_watts(*(window or _window(result, log, path)))
    raw = from_records(records, source=str(path), data=data)
    return build_table(raw, kind="serving", **checks)


def _record(result: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: layout.get(name, result.get(name)) for name in LAYOUT}
    completed = result.get("completed")
    record: dict[str, Any] = {
        "source": "vllm-bench",
        "workload": result.get("label") or "",
        "model": result.get("model_id"),
        **{name: value for name, value in given.items() if value is not None},
        "prompt_tokens": _per_request(result.get("total_input_tokens"), completed),
        "output_tokens": _per_request(result.get("total_output_tokens"), completed),
        "output_tokens_cv": _variation(result.get("output_lens")),
        "concurrency": _concurrency(result),
        "output_tokens_per_second": result.get("output_throughput"),
    }
    for name, field in (
        ("itl_mean_seconds", "mean_itl_ms"),
        ("itl_p50_seconds", "median_itl_ms"),
        ("itl_p99_seconds", "p99_itl_ms"),
        ("ttft_p50_seconds", "median_ttft_ms"),
    ):
        milliseconds = _value(result.get(field))
        record[name] = None if not milliseconds > 0.0 else 1e-3 * milliseconds
    return record


def _concurrency(result: Mapping[str, Any]) -> float | None:
    """Returns the mean number of requests in flight (Little's law).

    concurrency = requests per second x mean seconds per request

    Seconds per request come from `mean_e2el_ms` where the benchmark saved it, else from
    mean TTFT + mean TPOT x (mean output tokens - 1). Requests that wait in the
    engine's queue count too: keep the client's concurrency within `max_num_seqs`.
    """
    completed = _value(result.get("completed"))
    duration = _value(result.get("duration"))
    rate = _value(result.get("request_throughput"))
    if math.isnan(rate) and duration > 0.0:
        rate = completed / duration
    milliseconds = _value(result.get("mean_e2el_ms"))
    if math.isnan(milliseconds) and completed > 0.0:
        tokens = _value(result.get("total_output_tokens")) / completed
        first = _value(result.get("mean_ttft_ms"))
        milliseconds = first + _value(result.get("mean_tpot_ms")) * (tokens - 1.0)
    running = 1e-3 * rate * milliseconds
    return running if running > 0.0 else None


def _window(
    result: Mapping[str, Any], log: PowerLog, path: str | Path
) -> tuple[float, float]:
    first, last = log.span
    if first < 1e8:  # no clock of this age: seconds since the log was started
        return first, last
    duration = _value(result.get("duration"))
    try:
        end = datetime.strptime(str(result.get("date")), "%Y%m%d-%H%M%S").timestamp()
    except ValueError:
        message = (
            f"{path}: expected `date` as YYYYMMDD-HHMMSS, got {result.get('date')!r}."
        )
        raise ValueError(f"{message[:-1]}; give the window of the run.") from None
    return end - duration, end


def _value(cell: Any) -> float:
    plain = isinstance(cell, int | float) and not isinstance(cell, bool)
    return float(cell) if plain else math.nan


def _per_request(total: Any, completed: Any) -> float | None:
    count = _value(completed)
    mean = _value(total) / count if count > 0.0 else math.nan
    return None if math.isnan(mean) else mean


def _variation(lengths: Any) -> float | None:
    """Returns the coefficient of variation of the output lengths, where saved."""
    if not isinstance(lengths, Sequence) or isinstance(lengths, str) or not lengths:
        return None
    counts = np.array([_value(length) for length in lengths])
    counts = counts[counts > 0.0]
    return float(np.std(counts) / np.mean(counts)) if len(counts) else None
