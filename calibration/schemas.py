"""What the columns of each kind of measured table are called, and their units.

A `Schema` lists the columns that a kind of table may have. Every column has one SI name
(`seconds`, `watts`, `bytes` ...) and the names, each with a factor to SI, under which
files spell it. Unit conversion happens through these factors and nowhere else.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from jaxlens.precisions import FORMATS

Rule = Literal["text", "flag", "positive", "nonnegative", "count"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its SI name, its spellings in files, and what a cell may hold."""

    name: str
    rule: Rule
    spellings: tuple[tuple[str, float], ...] = ()  # (name in the file, factor to SI)
    required: bool = False
    default: float | str | None = None  # stands in for an empty cell or no column
    choices: Collection[str] | None = None

    @property
    def is_text(self) -> bool:
        """Whether cells are words, not numbers."""
        return self.rule == "text"


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One kind of table: its columns, and the file columns that give it away."""

    kind: str
    columns: tuple[Column, ...]
    signature: tuple[frozenset[str], ...]  # any of these sets of file columns
    model_is_huggingface_id: bool = True

    @property
    def names(self) -> frozenset[str]:
        """The SI names of all columns."""
        return frozenset(column.name for column in self.columns)


def _texts(*names: str, required: bool = False) -> tuple[Column, ...]:
    return tuple(Column(name=name, rule="text", required=required) for name in names)


def _number(
    name: str,
    *spellings: str | tuple[str, float],
    rule: Rule = "positive",
    required: bool = False,
    default: float | None = None,
) -> Column:
    pairs = ((s, 1.0) if isinstance(s, str) else s for s in spellings)
    return Column(
        name=name,
        rule=rule,
        spellings=((name, 1.0), *pairs),
        required=required,
        default=default,
    )


def _text(
    name: str, *spellings: str, required: bool = False, default: str | None = None
) -> Column:
    return Column(
        name=name,
        rule="text",
        spellings=tuple((s, 1.0) for s in (name, *spellings)),
        required=required,
        default=default,
    )


def _format(name: str) -> Column:
    return Column(name=name, rule="text", choices=tuple(FORMATS))


SERVING = Schema(
    kind="serving",
    signature=(frozenset({"model", "concurrency", "output_tokens_per_second"}),),
    columns=(
        *_texts("source", "workload"),
        *_texts("stack", "gpu", "model", required=True),
        _format("weight_dtype"),
        _format("kv_dtype"),
        _number("gpus", rule="count"),
        _number("tensor_parallel", rule="count"),
        _number("data_parallel", rule="count", default=1.0),
        _number("expert_parallel", rule="count", default=1.0),
        _number("pipeline_parallel", rule="count", default=1.0),
        _number("prompt_tokens", rule="nonnegative"),
        Column(name="prompt_tokens_is_estimate", rule="flag"),
        _number("output_tokens"),
        _number("output_tokens_cv", rule="nonnegative"),
        _number("max_num_seqs", rule="count"),
        _number("concurrency", required=True),
        _number("output_tokens_per_second", required=True),
        _number("watts"),
        _number("joules_per_output_token"),
        _number("itl_mean_seconds"),
        _number("itl_p50_seconds"),
        _number("itl_p99_seconds"),
        _number("ttft_p50_seconds"),
        _number("sm_clock_hz"),
        _number("power_cap_watts"),
        _number("replicas", rule="count", default=1.0),
        Column(name="clean", rule="flag", default=1.0),
    ),
)

FORWARD = Schema(
    kind="forward",
    signature=(frozenset({"model", "batch", "prompt_tokens", "seconds"}),),
    columns=(
        *_texts("source", "attention"),
        *_texts("stack", "gpu", "model", required=True),
        _text("phase", default="prefill"),
        _format("weight_dtype"),
        _number("batch", rule="count", required=True),
        _number("prompt_tokens", rule="count", required=True),
        _number("sm_clock_hz"),
        _number("seconds", required=True),
        _number("joules"),
        _number("temperature_celsius"),
    ),
)

_OPERATION = (
    _text("gpu", required=True),
    _text("backend"),
    _text("version", "table_version"),
    _text("stack"),
    _text("kernel_source"),
    _number(
        "seconds",
        ("latency_ms", 1e-3),
        ("latency_us", 1e-6),
        ("latency", 1e-3),
        required=True,
    ),
    _number("watts", "power_w", "power"),
    _number("power_cap_watts", "power_limit_w", "power_limit"),
    _number("power_window_seconds", "power_window_est_s"),
    _number("flop", "flops"),
    _number("bytes"),
    _number("roofline_seconds", ("roofline_ms", 1e-3)),
)
_LATENCIES = ("latency_ms", "latency_us", "latency", "seconds")


def _signatures(*columns: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset({*columns, latency}) for latency in _LATENCIES)


GEMM = Schema(
    kind="gemm",
    signature=_signatures("m", "n", "k"),
    columns=(
        *_OPERATION,
        _text("dtype", "gemm_dtype", required=True),
        *(_number(name, rule="count", required=True) for name in ("m", "n", "k")),
    ),
)

_ATTENTION = (
    *_OPERATION,
    _number("batch", "batch_size", rule="count", required=True),
    _number("heads", "num_heads", rule="count", required=True),
    _number("kv_heads", "num_key_value_heads", rule="count", required=True),
    _number("head_dim", rule="count", required=True),
    _number("window", "window_size", rule="nonnegative", default=0.0),
    _text("dtype", "attn_dtype"),
    _text("kv_dtype", "kv_cache_dtype"),
)

ATTENTION_PREFILL = Schema(
    kind="attention_prefill",
    signature=(
        *_signatures("isl", "num_heads"),
        *_signatures("prompt_tokens", "heads"),
    ),
    columns=(
        *_ATTENTION,
        _number("prompt_tokens", "isl", rule="count", required=True),
        _number("cached_tokens", "step", rule="nonnegative", default=0.0),
    ),
)

ATTENTION_DECODE = Schema(
    kind="attention_decode",
    signature=(
        *_signatures("ctx", "num_heads"),
        *_signatures("context_tokens", "heads"),
    ),
    columns=(
        *_ATTENTION,
        _number("context_tokens", "ctx", rule="count", required=True),
    ),
)

MOE = Schema(
    kind="moe",
    signature=(
        *_signatures("num_experts", "moe_ep_size"),
        *_signatures("experts", "expert_parallel"),
    ),
    columns=(
        *_OPERATION,
        _text("dtype", "moe_dtype", required=True),
        _text("distribution", default="balanced"),
        _number("tokens", "num_tokens", rule="count", required=True),
        _number("width", "hidden_size", rule="count", required=True),
        _number("expert_width", "inter_size", rule="count", required=True),
        _number("top_k", "topk", rule="count", required=True),
        _number("experts", "num_experts", rule="count", required=True),
        _number("tensor_parallel", "moe_tp_size", rule="count", default=1.0),
        _number("expert_parallel", "moe_ep_size", rule="count", default=1.0),
    ),
)

COLLECTIVES = Schema(
    kind="collectives",
    signature=(
        *_signatures("op_name", "num_gpus", "bytes"),
        *_signatures("operation", "gpus", "bytes"),
    ),
    columns=(
        *(column for column in _OPERATION if column.name not in {"flop", "bytes"}),
        _text("operation", "op_name", required=True),
        _text("dtype", required=True),
        _text("implementation", "impl"),
        _number("gpus", "num_gpus", rule="count", required=True),
        _number("bytes", required=True),
        _number("bus_bytes_per_s", ("busbw_GBps", 1e9), rule="nonnegative"),
    ),
)

ALLTOALL = Schema(
    kind="alltoall",
    signature=(frozenset({"dispatch_sms", "combine_sms"}),),
    columns=(
        *(column for column in _OPERATION if column.is_text),
        _number("nodes", "node_num", rule="count", required=True),
        _number("width", "hidden_size", rule="count", required=True),
        _number("tokens", "num_token", rule="count", required=True),
        _number("top_k", "num_topk", rule="count", required=True),
        _number("experts", "num_experts", rule="count", required=True),
        _number("dispatch_sms", rule="count", required=True),
        _number("dispatch_seconds", ("dispatch_transmit_us", 1e-6), required=True),
        _number("combine_sms", rule="count", required=True),
        _number("combine_seconds", ("combine_transmit_us", 1e-6), required=True),
    ),
)

CLOCKS_VOLTAGE = Schema(
    kind="clocks_voltage",
    signature=(frozenset({"sm_clock_mhz", "supply_millivolts"}),),
    columns=(
        _text("gpu", required=True),
        _number("sm_clock_hz", ("sm_clock_mhz", 1e6), required=True),
        _number("volts", ("supply_millivolts", 1e-3)),
    ),
)

CLOCKS_IDLE = Schema(
    kind="clocks_idle",
    signature=(frozenset({"sm_clock_mhz", "idle_watts"}),),
    columns=(
        _text("gpu", required=True),
        _number("sm_clock_hz", ("sm_clock_mhz", 1e6), required=True),
        _number("idle_watts"),
    ),
)

POWERCAP = Schema(
    kind="powercap",
    signature=(frozenset({"power_cap_w", "steady_tok_s"}),),
    model_is_huggingface_id=False,
    columns=(
        *_texts("source", "phase"),
        _text("gpu", required=True),
        _text("stack", "engine", required=True),
        _text("model", required=True),
        _number("concurrency", required=True),
        _number("power_cap_watts", "power_cap_w", required=True),
        _number("output_tokens_per_second", "steady_tok_s", required=True),
        _number("watts", "steady_power_w"),
        _number("joules_per_output_token", "steady_j_per_token"),
        _number("sm_clock_hz", ("steady_sm_mhz", 1e6)),
        _number("run_output_tokens_per_second", "tok_s"),
        _number("run_watts", "mean_power_w"),
        _number("run_joules_per_output_token", "j_per_token"),
        _number("run_sm_clock_hz", ("mean_sm_mhz", 1e6)),
        _number("run_seconds", "dur_s"),
        _number("request_seconds", "mean_req_latency_s"),
        _number("requests", "n_requests", rule="count"),
        _number("output_tokens_total", "tokens", rule="count"),
        _number("temperature_celsius", "mean_temp_c"),
    ),
)

# The order matters where one signature contains another: the narrower comes first.
SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {
        schema.kind: schema
        for schema in (
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
    raise ValueError(
        f"{where}: expected the columns of a {', '.join(SCHEMAS)} table, got {shown}; "
        "name the kind (--kind) to see which columns it lacks."
    )


def schema_of(kind: str, *, where: str) -> Schema:
    """Returns the schema called `kind`."""
    if kind not in SCHEMAS:
        raise ValueError(
            f"{where}: expected a kind among {', '.join(SCHEMAS)}, got {kind!r}."
        )
    return SCHEMAS[kind]
