"""The kinds of measured tables, and how their columns give each away."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from jaxlens.calibration.operation_schemas import (
    ALLTOALL,
    ATTENTION_DECODE,
    ATTENTION_PREFILL,
    COLLECTIVES,
    COPY,
    ELEMENTWISE,
    FORWARD,
    GEMM,
    MOE,
)
from jaxlens.calibration.run_schemas import (
    LOADED_IDLE,
    LOCKED,
    OVERLAP,
    RUN,
    SM_SHARE,
)
from jaxlens.calibration.schema_columns import (
    Column,
    Schema,
    number,
    number_format,
    text,
    texts,
)

SERVING = Schema(
    kind="serving",
    signature=(frozenset({"model", "concurrency", "output_tokens_per_second"}),),
    columns=(
        *texts("source", "workload"),
        *texts("stack", "gpu", "model", required=True),
        number_format("weight_dtype"),
        number_format("kv_dtype"),
        number("gpus", rule="count"),
        number("tensor_parallel", rule="count"),
        number("data_parallel", rule="count", default=1.0),
        number("expert_parallel", rule="count", default=1.0),
        number("pipeline_parallel", rule="count", default=1.0),
        number("prompt_tokens", rule="nonnegative"),
        Column(name="prompt_tokens_is_estimate", rule="flag"),
        number("output_tokens"),
        number("output_tokens_cv", rule="nonnegative"),
        number("max_num_seqs", rule="count"),
        number("concurrency", required=True),
        number("output_tokens_per_second", required=True),
        number("watts"),
        number("joules_per_output_token"),
        number("itl_mean_seconds"),
        number("itl_p50_seconds"),
        number("itl_p99_seconds"),
        number("ttft_p50_seconds"),
        number("sm_clock_hz"),
        number("power_cap_watts"),
        number("replicas", rule="count", default=1.0),
        Column(name="clean", rule="flag", default=1.0),
    ),
)

CLOCKS_VOLTAGE = Schema(
    kind="clocks_voltage",
    signature=(frozenset({"sm_clock_mhz", "supply_millivolts"}),),
    columns=(
        text("gpu", required=True),
        number("sm_clock_hz", ("sm_clock_mhz", 1e6), required=True),
        number("volts", ("supply_millivolts", 1e-3)),
    ),
)

CLOCKS_IDLE = Schema(
    kind="clocks_idle",
    signature=(frozenset({"sm_clock_mhz", "idle_watts"}),),
    columns=(
        text("gpu", required=True),
        number("sm_clock_hz", ("sm_clock_mhz", 1e6), required=True),
        number("idle_watts"),
    ),
)

POWERCAP = Schema(
    kind="powercap",
    signature=(frozenset({"power_cap_w", "steady_tok_s"}),),
    model_is_huggingface_id=False,
    columns=(
        *texts("source", "phase"),
        text("gpu", required=True),
        text("stack", "engine", required=True),
        text("model", required=True),
        number("concurrency", required=True),
        number("power_cap_watts", "power_cap_w", required=True),
        number("output_tokens_per_second", "steady_tok_s", required=True),
        number("watts", "steady_power_w"),
        number("joules_per_output_token", "steady_j_per_token"),
        number("sm_clock_hz", ("steady_sm_mhz", 1e6)),
        number("run_output_tokens_per_second", "tok_s"),
        number("run_watts", "mean_power_w"),
        number("run_joules_per_output_token", "j_per_token"),
        number("run_sm_clock_hz", ("mean_sm_mhz", 1e6)),
        number("run_seconds", "dur_s"),
        number("request_seconds", "mean_req_latency_s"),
        number("requests", "n_requests", rule="count"),
        number("output_tokens_total", "tokens", rule="count"),
        number("temperature_celsius", "mean_temp_c"),
    ),
)

# The order matters where one signature contains another: the narrower comes first.
SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {
        schema.kind: schema
        for schema in (
            RUN,
            OVERLAP,
            SM_SHARE,
            LOADED_IDLE,
            SERVING,
            FORWARD,
            GEMM,
            ATTENTION_DECODE,
            ATTENTION_PREFILL,
            MOE,
            COLLECTIVES,
            ALLTOALL,
            CLOCKS_VOLTAGE,
            CLOCKS_IDLE,
            POWERCAP,
            ELEMENTWISE,
            COPY,
            *LOCKED,
        )
    }
)


def recognise(file_columns: Collection[str], *, where: str) -> Schema:
    """Returns the schema whose signature is among `file_columns`."""
    present = frozenset(file_columns)
    for schema in SCHEMAS.values():
        if any(signature <= present for signature in schema.signature):
            return schema
    shown = ", ".join(sorted(present)[:12]) or "none"
    kinds = sorted(
        (kind for kind in SCHEMAS if not kind.startswith("clock_")),
        key=lambda kind: kind in {"run", "overlap", "sm_share", "loaded_idle"},
    )
    raise ValueError(
        f"{where}: expected the columns of a {', '.join(kinds)} table, got {shown}; "
        "name the kind (--kind) to see which columns it lacks."
    )


def schema_of(kind: str, *, where: str) -> Schema:
    """Returns the schema called `kind`."""
    if kind not in SCHEMAS:
        raise ValueError(
            f"{where}: expected a kind among {', '.join(SCHEMAS)}, got {kind!r}."
        )
    return SCHEMAS[kind]
