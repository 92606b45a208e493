"""Model shapes read from HuggingFace configurations.

Every layer is described on its own, from its index, and equal layers are then counted,
so sliding-window mixes, interleaved experts and per-layer head counts need no special
case.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from jaxlens.config_values import ConfigValues, config_values
from jaxlens.quantizations import kv_format, weight_formats
from jaxlens.shapes import (
    Attention,
    Experts,
    Feed,
    FeedForward,
    LatentAttention,
    Mamba,
    Mixer,
    ModelShape,
)

WINDOWED = {
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
LATENT = ("deepseek_v2", "deepseek_v3", "kimi_k2")
HYBRID = "nemotron_h"

Block = TypeVar("Block", Mixer, Feed)


def shape_from_config(
    config: Mapping[str, Any], *, name: str = "model", where: str = "config"
) -> ModelShape:
    """Returns the shape of the language model that a HuggingFace `config` describes.

    Raises `ValueError` that names `where` and the key for a missing or impossible
    value.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{where}: expected a table of keys, got {config!r}.")
    values = config_values(config, where=where)
    _refuse_unsupported(values)
    mixers, feeds = _blocks(values)
    positions = values.optional_size("max_position_embeddings")
    learned = 0
    if values.flag("learned_positions"):
        learned = values.size("max_position_embeddings")
        learned += values.size("position_offset", 0, least=0)
        learned += values.size("type_vocab_size", 0, least=0)
    return ModelShape(
        name=name,
        width=values.size("hidden_size"),
        vocabulary=values.size("vocab_size"),
        mixers=mixers,
        feeds=feeds,
        tied_embeddings=values.flag("tie_word_embeddings"),
        learned_positions=learned,
        norms_per_layer=values.size("norms_per_layer", 2),
        norm_bias=values.flag("norm_bias"),
        tanh_gelu=values.flag("tanh_gelu"),
        narrow_softmax=values.flag("narrow_softmax"),
        parallel_blocks=values.flag("parallel_blocks"),
        max_context=positions,
        language_head=values.flag("language_head", True),
        truncated_sampling=values.flag("truncated_sampling", True),
        formats=weight_formats(values),
        kv_format=kv_format(values),
    )


def _refuse_unsupported(values: ConfigValues) -> None:
    """Raises for options that change the shape in a way that has no description."""
    embedding = values.optional_size("word_embed_proj_dim")
    if embedding is not None and embedding != values.size("hidden_size"):
        raise ValueError(
            f"{values.where}: expected `word_embed_proj_dim` equal to `hidden_size`, "
            f"got {embedding}; projected embeddings are not supported."
        )
    for key in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
        if values.optional(key, 0) != 0:
            raise ValueError(
                f"{values.where}: expected `{key}` 0, got {values.optional(key)!r}; "
                "shared caches and per-layer embeddings are not supported."
            )


def _blocks(values: ConfigValues) -> tuple[tuple[Mixer, ...], tuple[Feed, ...]]:
    """Returns the mixers and feeds of the whole model, equal ones counted."""
    layers = values.size("num_hidden_layers")
    if values.model_type == HYBRID:
        return _hybrid_blocks(values, layers)
    if values.model_type in LATENT:
        mixers: Iterable[Mixer] = [_latent_attention(values)] * layers
    else:
        mixers = _attentions(values, layers)
    feeds = [feed for layer in range(layers) for feed in _layer_feeds(values, layer)]
    return _counted(mixers), _counted(feeds)


def _counted(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Returns one block per kind, with its number of layers, in order of appearance."""
    return tuple(
        replace(block, layers=layers) for block, layers in Counter(blocks).items()
    )


def _hybrid_blocks(
    values: ConfigValues, layers: int
) -> tuple[tuple[Mixer, ...], tuple[Feed, ...]]:
    """Returns blocks in the order that `hybrid_override_pattern` spells.

    M is Mamba-2, * attention, - a dense and E an expert feed-forward block.
    """
    pattern = values.optional("hybrid_override_pattern")
    if not isinstance(pattern, str) or set(pattern) - set("M*-E"):
        raise ValueError(
            f"{values.where}: expected `hybrid_override_pattern` of the letters M, *, "
            f"- and E, got {pattern!r}."
        )
    if len(pattern) != layers:
        raise ValueError(
            f"{values.where}: expected `hybrid_override_pattern` of num_hidden_layers "
            f"= {layers} letters, got {len(pattern)}."
        )
    makers = {"M": _mamba, "-": _feed_forward, "E": _experts}
    blocks = {letter: makers[letter](values) for letter in set(pattern) - {"*"}}
    if "*" in pattern:
        blocks["*"] = _attention(values, kv_heads=None, window=None)
    return (
        _counted(blocks[letter] for letter in pattern if letter in "M*"),
        _counted(blocks[letter] for letter in pattern if letter in "-E"),
    )


def _attentions(values: ConfigValues, layers: int) -> list[Attention]:
    per_layer = values.sizes("num_key_value_heads_per_layer", count=layers)
    kv_heads = per_layer or (None,) * layers
    windows = _windows(values, layers)
    return [
        _attention(values, kv_heads=kv_heads[layer], window=windows[layer])
        for layer in range(layers)
    ]


def _attention(
    values: ConfigValues, *, kv_heads: int | None, window: int | None
) -> Attention:
    """Returns one attention layer; global ones of Gemma-4 have their own heads."""
    heads = values.size("num_attention_heads")
    kv_heads = kv_heads or values.size("num_key_value_heads", heads)
    head_dim = values.optional_size("head_dim")
    shared = False
    if window is None and values.optional("global_head_dim") is not None:
        head_dim = values.size("global_head_dim")
        shared = values.flag("attention_k_eq_v")
        if shared:
            kv_heads = values.size("num_global_key_value_heads", kv_heads)
    if heads % kv_heads:
        raise ValueError(
            f"{values.where}: expected `num_attention_heads` to be a multiple of "
            f"`num_key_value_heads`, got {heads} and {kv_heads}."
        )
    biased = values.flag("attention_bias")
    return Attention(
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or _head_dim(values, heads),
        window=window,
        bias=biased or values.flag("qkv_bias"),
        output_bias=biased,
        query_key_norm=values.flag("query_key_norm"),
        shared_key_value=shared,
        causal=values.flag("causal", True),
    )


def _head_dim(values: ConfigValues, heads: int) -> int:
    width = values.size("hidden_size")
    if width % heads:
        raise ValueError(
            f"{values.where}: expected `hidden_size` to be a multiple of "
            f"`num_attention_heads`, got {width} and {heads}; or state `head_dim`."
        )
    return width // heads


def _windows(values: ConfigValues, layers: int) -> list[int | None]:
    """Returns how many tokens each layer sees; None where it sees the whole context."""
    kinds = values.optional("layer_types")
    if kinds is not None:
        return [_window(values, kind) for kind in _layer_types(values, kinds, layers)]
    chunk = values.optional_size("attention_chunk_size")
    if chunk is not None:
        every = values.size("no_rope_layer_interval", 4)
        local = values.layer_list("no_rope_layers") or tuple(
            (layer + 1) % every for layer in range(layers)
        )
        if len(local) != layers:
            raise ValueError(
                f"{values.where}: expected `no_rope_layers` to list {layers} layers, "
                f"as `num_hidden_layers` says, got {len(local)}."
            )
        return [chunk if uses_rope else None for uses_rope in local]
    sliding = values.optional_size("sliding_window")
    if sliding is None or not values.flag("use_sliding_window", True):
        return [None] * layers
    if values.optional("max_window_layers") is not None:
        first = values.size("max_window_layers", least=0)
        return [sliding if layer >= first else None for layer in range(layers)]
    every = values.optional_size("sliding_window_pattern")
    if every is None:
        return [sliding] * layers
    return [sliding if (layer + 1) % every else None for layer in range(layers)]


def _layer_types(values: ConfigValues, kinds: Any, layers: int) -> list[str]:
    named = isinstance(kinds, list | tuple) and all(isinstance(k, str) for k in kinds)
    if not named or len(kinds) != layers:
        raise ValueError(
            f"{values.where}: expected `layer_types` to list {layers} layers, as "
            f"`num_hidden_layers` says, got {kinds!r}."
        )
    return list(kinds)


def _window(values: ConfigValues, kind: str) -> int | None:
    if kind == "full_attention":
        return None
    if kind not in WINDOWED:
        raise ValueError(
            f"{values.where}: expected `layer_types` among full_attention, "
            f"{', '.join(WINDOWED)}, got {kind!r}."
        )
    return values.size(WINDOWED[kind])


def _latent_attention(values: ConfigValues) -> LatentAttention:
    return LatentAttention(
        layers=1,
        heads=values.size("num_attention_heads"),
        query_rank=values.optional_size("q_lora_rank"),
        kv_rank=values.size("kv_lora_rank"),
        nope_dim=values.size("qk_nope_head_dim"),
        rope_dim=values.size("qk_rope_head_dim"),
        value_dim=values.size("v_head_dim"),
    )


def _mamba(values: ConfigValues) -> Mamba:
    return Mamba(
        layers=1,
        heads=values.size("mamba_num_heads"),
        head_dim=values.size("mamba_head_dim"),
        state=values.size("ssm_state_size"),
        groups=values.size("mamba_num_groups"),
        convolution=values.size("conv_kernel"),
    )


def _layer_feeds(values: ConfigValues, layer: int) -> list[Feed]:
    """Returns the feed-forward blocks of a layer: a dense one, experts, or both."""
    experts = values.optional_size("num_experts")
    if values.flag("enable_moe_block"):
        return [_feed_forward(values), _experts(values)]
    if experts is None or not _has_experts(values, layer):
        return [_feed_forward(values)]
    return [_experts(values)]


def _has_experts(values: ConfigValues, layer: int) -> bool:
    listed = values.layer_list("moe_layers")
    if listed is not None:
        return layer in listed
    if values.model_type in LATENT:
        first = values.size("first_k_dense_replace", least=0)
        return layer >= first and layer % values.size("moe_layer_freq") == 0
    sparse_step = values.optional_size("decoder_sparse_step")
    step = values.size("interleave_moe_layer_step", sparse_step or 1)
    dense = values.layer_list("mlp_only_layers") or ()
    return (layer + 1) % step == 0 and layer not in dense


def _feed_forward(values: ConfigValues) -> FeedForward:
    """Returns a dense block; four times the model's width where none is stated."""
    stated = values.optional_size("intermediate_size_mlp")
    assumed = None
    if values.values.get("intermediate_size", 0) is None:
        assumed = 4 * values.size("hidden_size")
    return FeedForward(
        layers=1,
        width=stated or values.size("intermediate_size", assumed),
        matrices=values.size("mlp_matrices", 3),
        bias=values.flag("mlp_bias"),
    )


def _experts(values: ConfigValues) -> Experts:
    experts, top_k = values.size("num_experts"), values.size("num_experts_per_tok")
    if top_k > experts:
        raise ValueError(
            f"{values.where}: expected `num_experts_per_tok` up to `num_experts` = "
            f"{experts}, got {top_k}."
        )
    stated = values.optional_size("moe_intermediate_size")
    width = stated or values.size("intermediate_size")
    return Experts(
        layers=1,
        experts=experts,
        top_k=top_k,
        width=width,
        matrices=values.size("mlp_matrices", 3),
        shared_width=_shared_width(values, width),
        shared_gate=values.flag("shared_expert_gate"),
        bias=values.flag("expert_bias"),
    )


def _shared_width(values: ConfigValues, width: int) -> int:
    """Returns the width of all shared experts of a layer together."""
    if values.model_type.startswith("llama4"):
        return width
    for key in (
        "moe_shared_expert_intermediate_size",
        "shared_expert_intermediate_size",
    ):
        if values.optional(key) is not None:
            return values.size(key, least=0)
    return width * values.size("n_shared_experts", 0, least=0)
