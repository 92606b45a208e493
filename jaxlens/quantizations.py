"""Number formats of a checkpoint's weights, from its `quantization_config`.

A method names one low format and the modules it leaves alone. A kind of weight counts
as quantised where more than half of its modules are. Embeddings and language-model head
stay in the checkpoint's 16-bit format unless the method says otherwise, as engines keep
them.

Source: HuggingFace transformers, quantization configurations, 2025,
https://huggingface.co/docs/transformers/main_classes/quantization; compressed-tensors,
2025, https://github.com/vllm-project/compressed-tensors; NVIDIA ModelOpt, 2025,
https://github.com/NVIDIA/Model-Optimizer.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any

from jaxlens.config_values import ConfigValues
from jaxlens.precisions import FORMATS
from jaxlens.shapes import Experts, ModelShape, WeightFormats

PLAIN = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

# Module names inside a layer, in the spellings of the supported families.
MODULES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "attention": (
        ("self_attn.q_proj", "mixer.q_proj", "mixer.in_proj"),
        ("self_attn.k_proj", "mixer.k_proj"),
        ("self_attn.v_proj", "mixer.v_proj"),
        ("self_attn.o_proj", "mixer.o_proj", "mixer.out_proj"),
    ),
    "feed_forward": (
        ("mlp.gate_proj", "feed_forward.gate_proj"),
        ("mlp.up_proj", "feed_forward.up_proj", "mixer.up_proj"),
        ("mlp.down_proj", "feed_forward.down_proj", "mixer.down_proj"),
    ),
    "experts": (
        (
            "mlp.experts.0.gate_proj",
            "feed_forward.experts.0.gate_proj",
            "block_sparse_moe.experts.0.w1",
        ),
        (
            "mlp.experts.0.down_proj",
            "feed_forward.experts.0.down_proj",
            "block_sparse_moe.experts.0.w2",
        ),
    ),
}
LAYERS = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "backbone.layers",
)


def base_format(values: ConfigValues) -> str:
    """Returns the format of what is not quantised: the `torch_dtype`, else bf16."""
    dtype = str(values.optional("torch_dtype", "bfloat16")).removeprefix("torch.")
    if dtype not in PLAIN:
        raise ValueError(
            f"{values.where}: expected `torch_dtype` to be one of {', '.join(PLAIN)}, "
            f"got {dtype!r}."
        )
    return PLAIN[dtype]


def weight_formats(values: ConfigValues) -> WeightFormats:
    """Returns the format of each kind of weight of a model."""
    plain = base_format(values)
    formats = WeightFormats(
        attention=plain, feed_forward=plain, experts=plain, head=plain
    )
    settings = _settings(values)
    if settings is None:
        return formats
    low, block_scaled = _low_format(settings, where=values.where)
    if settings["quant_method"] == "mxfp4":
        return replace(formats, experts=low)
    excluded = _exclusions(settings, where=values.where)
    layers = range(values.size("num_hidden_layers"))
    kinds = {
        kind: low
        for kind, modules in MODULES.items()
        if _mostly_quantised(modules, layers, excluded)
    }
    if settings.get("lm_head") is True:
        kinds["head"] = low
    return replace(formats, **kinds, block_scaled=block_scaled)


def kv_format(values: ConfigValues) -> str:
    """Returns the format of cached keys and values that the checkpoint asks for."""
    settings = _settings(values) or {}
    scheme = settings.get("kv_cache_scheme")
    eight_bit = isinstance(scheme, Mapping) and scheme.get("num_bits") == 8
    if eight_bit or settings.get("kv_cache_quant_algo") == "FP8":
        return "fp8"
    return base_format(values)


def recast(shape: ModelShape, weights: str, kv: str | None = None) -> ModelShape:
    """Returns `shape` with its weights in the format `weights`, its cache in `kv`.

    A checkpoint that already keeps some weights in that format is left as published.
    Else a plain format converts everything, the cache too, mxfp4 the experts of a model
    that has some, and any other low format all but embeddings and head.
    """
    for name in (weights, kv or weights):
        if name not in FORMATS:
            raise ValueError(
                f"weights: expected one of {', '.join(FORMATS)}, got {name!r}."
            )
    formats = shape.formats
    kv = kv or (weights if weights in PLAIN.values() else shape.kv_format)
    low = {formats.attention, formats.feed_forward, formats.experts}
    if weights in PLAIN.values():
        formats = WeightFormats(
            attention=weights, feed_forward=weights, experts=weights, head=weights
        )
    elif weights not in low:
        experts_only = weights == "mxfp4" and any(
            isinstance(feed, Experts) for feed in shape.feeds
        )
        formats = replace(formats, experts=weights, block_scaled=False)
        if not experts_only:
            formats = replace(formats, attention=weights, feed_forward=weights)
    return replace(shape, formats=formats, kv_format=kv)


def _settings(values: ConfigValues) -> dict[str, Any] | None:
    """Returns the quantisation settings, flat, with `quant_method` filled in."""
    given = values.optional("quantization_config")
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{values.where}: expected `quantization_config` to be a table, got "
            f"{given!r}."
        )
    nested = given.get("quantization")
    flat = {**given, **nested} if isinstance(nested, Mapping) else dict(given)
    if flat.get("quant_algo") is not None:
        flat["quant_method"] = "modelopt"
    flat["quant_method"] = str(flat.get("quant_method", "")).replace("_", "-")
    return flat


def _low_format(settings: Mapping[str, Any], *, where: str) -> tuple[str, bool]:
    """Returns the format of quantised weights, and whether blocks share a scale."""
    method = settings["quant_method"]
    readers: Mapping[str, Callable[[Mapping[str, Any]], tuple[str | None, bool]]] = {
        "fp8": lambda s: ("fp8", s.get("weight_block_size") is not None),
        "fbgemm-fp8": lambda s: ("fp8", False),
        "modelopt": _modelopt_format,
        "compressed-tensors": _compressed_tensors_format,
        "gptq": lambda s: (_integer(s.get("bits", 4)), False),
        "awq": lambda s: (_integer(s.get("bits", s.get("w_bit", 4))), False),
        "bitsandbytes": lambda s: ("int4" if s.get("load_in_4bit") else "int8", False),
        "mxfp4": lambda s: ("mxfp4", False),
    }
    if method not in readers:
        raise ValueError(
            f"{where}: expected `quant_method` to be one of {', '.join(readers)}, got "
            f"{method!r}; remove `quantization_config` to describe a 16-bit model."
        )
    low, block_scaled = readers[method](settings)
    if low is None:
        raise ValueError(
            f"{where}: expected {method} weights of 4 or 8 bits, got "
            f"{dict(settings)!r}."
        )
    return low, block_scaled


def _integer(bits: Any) -> str | None:
    return f"int{bits}" if bits in (4, 8) else None


def _modelopt_format(settings: Mapping[str, Any]) -> tuple[str | None, bool]:
    algorithm = str(settings.get("quant_algo", "")).upper()
    for start, low in (("FP8", "fp8"), ("NVFP4", "nvfp4"), ("W4A8_NVFP4", "nvfp4")):
        if algorithm.startswith(start):
            return low, algorithm.startswith("FP8_PB")
    if algorithm.startswith(("W4A16", "INT4", "W4A8")):
        return "int4", False
    return ("int8" if algorithm.startswith(("INT8", "W8A8")) else None), False


def _compressed_tensors_format(settings: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Reads the weights of the first group of layers."""
    groups = settings.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None, False
    bits, block_scaled = weights.get("num_bits"), weights.get("strategy") == "block"
    if weights.get("type") != "float":
        return _integer(bits), block_scaled
    if bits == 4:
        return ("mxfp4" if weights.get("group_size") == 32 else "nvfp4"), block_scaled
    return ("fp8" if bits == 8 else None), block_scaled


def _exclusions(settings: Mapping[str, Any], *, where: str) -> Callable[[str], bool]:
    """Returns a test of whether a module, by its dotted name, stays unquantised."""
    listed: list[str] = []
    for key in (
        "modules_to_not_convert",
        "ignore",
        "exclude_modules",
        "ignored_layers",
    ):
        entries = settings.get(key) or []
        if not isinstance(entries, list | tuple):
            raise ValueError(
                f"{where}: expected `{key}` to be a list, got {entries!r}."
            )
        listed += [str(entry) for entry in entries]
    plain = {name for name in listed if "*" not in name and not name.startswith("re:")}
    try:
        expressions = [re.compile(n[3:]) for n in listed if n.startswith("re:")]
    except re.error as error:
        raise ValueError(
            f"{where}: expected regular expressions after `re:`, got {error}."
        ) from error
    globs = [n for n in listed if "*" in n and not n.startswith("re:")]

    def excluded(name: str) -> bool:
        return (
            any(part in plain for part in _dotted_parts(name))
            or any(fnmatchcase(name, g) or fnmatchcase(name, f"{g}.*") for g in globs)
            or any(expression.match(name) for expression in expressions)
        )

    return excluded


def _dotted_parts(name: str) -> Iterable[str]:
    """Yields every run of neighbouring segments of a dotted name."""
    segments = name.split(".")
    for start, stop in combinations(range(len(segments) + 1), 2):
        yield ".".join(segments[start:stop])


def _mostly_quantised(
    modules: Iterable[tuple[str, ...]],
    layers: Iterable[int],
    excluded: Callable[[str], bool],
) -> bool:
    kept = total = 0
    for layer in layers:
        for spellings in modules:
            names = (f"{root}.{layer}.{name}" for root in LAYERS for name in spellings)
            kept += any(excluded(name) for name in names)
            total += 1
    return 2 * kept < total
