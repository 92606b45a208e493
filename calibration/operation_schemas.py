"""Tables of single operations and of forward passes: kernels, collectives, copies."""

from jaxlens.calibration.schema_columns import (
    Column,
    Schema,
    number,
    number_format,
    text,
    texts,
)

FORWARD = Schema(
    kind="forward",
    signature=(frozenset({"model", "batch", "prompt_tokens", "seconds"}),),
    columns=(
        *texts("source", "attention"),
        *texts("stack", "gpu", "model", required=True),
        text("phase", default="prefill"),
        number_format("weight_dtype"),
        number("batch", rule="count", required=True),
        number("prompt_tokens", rule="count", required=True),
        number("sm_clock_hz"),
        number("seconds", required=True),
        number("joules"),
        number("temperature_celsius"),
    ),
)

# What `jaxlens measure` writes beside: of a row's own conditions and spread ...
MEASURED = (
    text("case"),
    text("clock_setting"),
    number("run", rule="count"),
    number("sm_clock_hz"),
    number("idle_watts", rule="nonnegative"),
    number("seconds_spread", rule="nonnegative"),
    number("watts_spread", rule="nonnegative"),
    Column(name="tight", rule="flag"),
    Column(name="fills_cache", rule="flag"),
)
# ... and, of tables with these columns, where rows come from, which nobody asks for.
ORIGIN = frozenset({"case", "device_name", "measured_at"})

OPERATION = (
    *MEASURED,
    text("gpu", required=True),
    text("backend"),
    text("version", "table_version"),
    text("stack"),
    text("kernel_source"),
    number(
        "seconds",
        ("latency_ms", 1e-3),
        ("latency_us", 1e-6),
        ("latency", 1e-3),
        required=True,
    ),
    number("watts", "power_w", "power"),
    number("power_cap_watts", "power_limit_w", "power_limit"),
    number("power_window_seconds", "power_window_est_s"),
    number("flop", "flops"),
    number("bytes"),
    number("roofline_seconds", ("roofline_ms", 1e-3)),
)
LATENCIES = ("latency_ms", "latency_us", "latency", "seconds")


def signatures(*columns: str) -> tuple[frozenset[str], ...]:
    """Returns `columns` with each of the names that a latency goes by."""
    return tuple(frozenset({*columns, latency}) for latency in LATENCIES)


GEMM = Schema(
    kind="gemm",
    signature=signatures("m", "n", "k"),
    columns=(
        *OPERATION,
        text("dtype", "gemm_dtype", required=True),
        *(number(name, rule="count", required=True) for name in ("m", "n", "k")),
    ),
)

_ATTENTION = (
    *OPERATION,
    number("batch", "batch_size", rule="count", required=True),
    number("heads", "num_heads", rule="count", required=True),
    number("kv_heads", "num_key_value_heads", rule="count", required=True),
    number("head_dim", rule="count", required=True),
    number("window", "window_size", rule="nonnegative", default=0.0),
    text("dtype", "attn_dtype"),
    text("kv_dtype", "kv_cache_dtype"),
)

ATTENTION_PREFILL = Schema(
    kind="attention_prefill",
    signature=(
        *signatures("isl", "num_heads"),
        *signatures("prompt_tokens", "heads"),
    ),
    columns=(
        *_ATTENTION,
        number("prompt_tokens", "isl", rule="count", required=True),
        number("cached_tokens", "step", rule="nonnegative", default=0.0),
    ),
)

ATTENTION_DECODE = Schema(
    kind="attention_decode",
    signature=(
        *signatures("ctx", "num_heads"),
        *signatures("context_tokens", "heads"),
    ),
    columns=(
        *_ATTENTION,
        number("context_tokens", "ctx", rule="count", required=True),
    ),
)

MOE = Schema(
    kind="moe",
    signature=(
        *signatures("num_experts", "moe_ep_size"),
        *signatures("experts", "expert_parallel"),
    ),
    columns=(
        *OPERATION,
        text("dtype", "moe_dtype", required=True),
        text("distribution", default="balanced"),
        number("tokens", "num_tokens", rule="count", required=True),
        number("width", "hidden_size", rule="count", required=True),
        number("expert_width", "inter_size", rule="count", required=True),
        number("top_k", "topk", rule="count", required=True),
        number("experts", "num_experts", rule="count", required=True),
        number("tensor_parallel", "moe_tp_size", rule="count", default=1.0),
        number("expert_parallel", "moe_ep_size", rule="count", default=1.0),
    ),
)

COLLECTIVES = Schema(
    kind="collectives",
    signature=(
        *signatures("op_name", "num_gpus", "bytes"),
        *signatures("operation", "gpus", "bytes"),
    ),
    columns=(
        *(column for column in OPERATION if column.name not in {"flop", "bytes"}),
        text("operation", "op_name", required=True),
        text("dtype", required=True),
        text("implementation", "impl"),
        number("gpus", "num_gpus", rule="count", required=True),
        number("bytes", required=True),
        number("bus_bytes_per_s", ("busbw_GBps", 1e9), rule="nonnegative"),
    ),
)

ALLTOALL = Schema(
    kind="alltoall",
    signature=(frozenset({"dispatch_sms", "combine_sms"}),),
    columns=(
        *(column for column in OPERATION if column.is_text),
        number("nodes", "node_num", rule="count", required=True),
        number("width", "hidden_size", rule="count", required=True),
        number("tokens", "num_token", rule="count", required=True),
        number("top_k", "num_topk", rule="count", required=True),
        number("experts", "num_experts", rule="count", required=True),
        number("dispatch_sms", rule="count", required=True),
        number("dispatch_seconds", ("dispatch_transmit_us", 1e-6), required=True),
        number("combine_sms", rule="count", required=True),
        number("combine_seconds", ("combine_transmit_us", 1e-6), required=True),
    ),
)

COPY = Schema(
    kind="copy",
    signature=signatures("bytes", "fills_cache"),
    columns=(
        *(column for column in OPERATION if column.name != "bytes"),
        number("bytes", required=True),  # read and written ones together
    ),
)

ELEMENTWISE = Schema(
    kind="elementwise",
    signature=signatures("operation", "tokens", "width"),
    columns=(
        *OPERATION,
        text("operation", required=True),
        text("dtype", required=True),
        number("tokens", rule="count", required=True),
        number("width", rule="count", required=True),
    ),
)
