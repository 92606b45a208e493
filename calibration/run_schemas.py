"""Tables that only `jaxlens measure` writes: of less than a whole GPU, and of whole runs."""

from dataclasses import replace

from jaxlens.calibration.operation_schemas import (
    ATTENTION_DECODE,
    ATTENTION_PREFILL,
    COLLECTIVES,
    COPY,
    ELEMENTWISE,
    FORWARD,
    GEMM,
    MOE,
    OPERATION,
)
from jaxlens.calibration.schema_columns import Column, Schema, number, text, texts

_LIMITED = number("limited_seconds", required=True)  # on less than the whole GPU
_WITHOUT_TIME = tuple(column for column in OPERATION if column.name != "seconds")
_SIZES = (
    *(number(name, rule="count") for name in ("m", "n", "k", "batch", "heads")),
    *(number(name, rule="count") for name in ("kv_heads", "head_dim", "tokens")),
    *(number(name, rule="count") for name in ("prompt_tokens", "context_tokens")),
    *(number(name, rule="count") for name in ("width", "expert_width", "top_k")),
    *(number(name, rule="count") for name in ("experts", "gpus", "copied_bytes")),
    *(number(name, rule="count") for name in ("tensor_parallel", "expert_parallel")),
    *(number(name, rule="nonnegative") for name in ("cached_tokens", "window")),
    *texts("dtype", "kv_dtype", "weight_dtype", "operation", "operation_kind"),
    *texts("distribution", "model", "phase", "attention", "sm_limit"),
    number("granted_sms", rule="count"),
    number("sm_share"),
)

OVERLAP = Schema(
    kind="overlap",
    signature=(frozenset({"product_slowdown", "copy_slowdown"}),),
    columns=(
        *_WITHOUT_TIME,
        text("dtype", required=True),
        *(number(name, rule="count", required=True) for name in ("m", "n", "k")),
        number("copied_bytes", rule="count", required=True),
        number("limited_seconds", "seconds"),
        number("seconds_alone", required=True),
        number("copy_seconds_alone", required=True),
        number("product_slowdown", required=True),
        number("copy_slowdown", required=True),
    ),
)

SM_SHARE = Schema(
    kind="sm_share",
    signature=(frozenset({"operation_kind", "granted_sms"}),),
    columns=(
        *(column for column in _WITHOUT_TIME if column.name != "bytes"),
        number("bytes"),
        *(
            replace(column, required=column.name in {"operation_kind", "sm_share"})
            for column in _SIZES
        ),
        _LIMITED,
    ),
)

LOADED_IDLE = Schema(
    kind="loaded_idle",
    signature=(frozenset({"loaded_idle_watts"}),),
    columns=(
        text("gpu", required=True),
        text("stack"),
        number("loaded_idle_watts", required=True),
        number("sm_clock_hz", ("sm_clock_mhz", 1e6)),
    ),
)

# A whole run, of rows of all kinds. What a kind needs is looked up row by row.
RUN = Schema(
    kind="run",
    signature=(frozenset({"case", "kind", "status", "run"}),),
    columns=(
        *(column for column in _WITHOUT_TIME if column.name != "case"),
        text("case", required=True),
        text("kind", required=True),
        Column(name="status", rule="text", required=True, choices=("ok",)),
        *_SIZES,
        number("seconds"),
        number("limited_seconds"),
        number("joules"),
        number("loaded_idle_watts"),
        *(number(name) for name in ("seconds_alone", "copy_seconds_alone")),
        *(number(name) for name in ("product_slowdown", "copy_slowdown")),
    ),
)


def _locked(schema: Schema, *sizes: str) -> Schema:
    """Returns the schema of the same kernels at a locked clock, told by `sizes`."""
    columns = (
        replace(column, required=True) if column.name == "sm_clock_hz" else column
        for column in schema.columns
        if column.name != "seconds"
    )
    return Schema(
        kind=f"clock_{schema.kind}",
        signature=(frozenset({*sizes, "limited_seconds"}),),
        columns=(*columns, _LIMITED),
    )


LOCKED = (
    _locked(GEMM, "m", "n", "k"),
    _locked(ATTENTION_DECODE, "context_tokens", "heads"),
    _locked(ATTENTION_PREFILL, "prompt_tokens", "heads"),
    _locked(MOE, "experts", "expert_width"),
    _locked(COLLECTIVES, "operation", "gpus", "bytes"),
    _locked(ELEMENTWISE, "operation", "tokens", "width"),
    _locked(FORWARD, "model", "batch", "prompt_tokens"),
    _locked(COPY, "bytes", "fills_cache"),
)
