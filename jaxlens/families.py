"""What each HuggingFace model type assumes where its `config.json` says nothing.

A `config.json` holds only what differs from the defaults of its configuration class,
and older classes use names of their own. `FAMILIES` holds those defaults, in the keys
of the Llama family, and a few architectural facts that no key states:

    attention_bias, qkv_bias  bias on all four attention projections / all but the
    output mlp_bias, norm_bias       bias on the feed-forward matrices / on the norms
    mlp_matrices              3 if gated, else 2 query_key_norm            a norm with
    weights on each query and key head norms_per_layer, parallel_blocks,
    position_offset, causal, language_head, tanh_gelu, narrow_softmax

`truncated_sampling` is False for a family whose published generation_config.json sets
neither top_p nor top_k: an engine that follows it never sorts the vocabulary.

Source: the configuration and modelling classes of HuggingFace transformers 4.57, 2025,
https://github.com/huggingface/transformers/tree/main/src/transformers/models.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# Keys that mean the same, the usual one first.
SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "hidden_size": ("n_embd", "n_embed", "d_model"),
        "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
        "num_attention_heads": ("n_head", "n_heads"),
        "intermediate_size": ("ffn_dim", "n_inner"),
        "max_position_embeddings": ("n_positions", "seq_length"),
        "head_dim": ("attention_head_dim",),
        "num_experts": ("num_local_experts", "n_routed_experts"),
        "num_experts_per_tok": ("experts_per_token", "top_k_experts"),
        "mamba_num_groups": ("n_groups",),
        "attention_bias": ("use_bias",),
        "torch_dtype": ("dtype",),
    }
)

_BIASED = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
_LEARNED = {**_BIASED, "mlp_matrices": 2, "tie_word_embeddings": True}
_GPT2 = {
    **_LEARNED,
    "intermediate_size": None,
    "learned_positions": True,
    "tanh_gelu": True,
    "narrow_softmax": True,
}
_QWEN2 = {"qkv_bias": True, "use_sliding_window": False, "max_window_layers": 28}
_QWEN3 = {"query_key_norm": True, "use_sliding_window": False, "max_window_layers": 28}
_QWEN3_MOE = {**_QWEN3, "decoder_sparse_step": 1, "mlp_only_layers": []}
_GEMMA = {"tie_word_embeddings": True, "head_dim": 256}
_GEMMA3 = {
    **_GEMMA,
    "norms_per_layer": 4,
    "query_key_norm": True,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 262208,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 131072,
}
_GEMMA4 = {**_GEMMA, "norms_per_layer": 4, "query_key_norm": True}
_LLAMA4 = {"no_rope_layer_interval": 4, "interleave_moe_layer_step": 1}
_DEEPSEEK = {"first_k_dense_replace": 0, "moe_layer_freq": 1, "n_shared_experts": 0}

FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "aquila": {},
        "bert": {
            **_LEARNED,
            "learned_positions": True,
            "causal": False,
            "narrow_softmax": True,
            "language_head": False,
            "type_vocab_size": 2,
        },
        "bloom": {**_LEARNED, "intermediate_size": None},
        "deci": {},
        "deepseek_v2": _DEEPSEEK,
        "deepseek_v3": _DEEPSEEK,
        "gemma": _GEMMA,
        "gemma2": {**_GEMMA, "norms_per_layer": 4, "sliding_window_pattern": 2},
        "gemma3": _GEMMA3,
        "gemma3_text": _GEMMA3,
        "gemma4": _GEMMA4,
        "gemma4_text": _GEMMA4,
        "gpt2": _GPT2,
        "gpt_oss": {
            "attention_bias": True,
            "expert_bias": True,
            "truncated_sampling": False,
        },
        "gptj": {
            "intermediate_size": None,
            "mlp_matrices": 2,
            "mlp_bias": True,
            "norm_bias": True,
            "norms_per_layer": 1,
            "parallel_blocks": True,
            "tanh_gelu": True,
        },
        "kimi_k2": _DEEPSEEK,
        "llama": {},
        "llama4": _LLAMA4,
        "llama4_text": _LLAMA4,
        "mistral": {},
        "mixtral": {},
        "nemotron_h": {"mlp_matrices": 2},
        "opt": {**_LEARNED, "learned_positions": True, "position_offset": 2},
        "phi3": {},
        "qwen2": _QWEN2,
        "qwen2_moe": {
            **_QWEN2,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "shared_expert_gate": True,
        },
        "qwen3": _QWEN3,
        "qwen3_moe": _QWEN3_MOE,
        "qwen3_vl": _QWEN3,
        "qwen3_vl_text": _QWEN3,
        "qwen3_vl_moe": _QWEN3_MOE,
        "qwen3_vl_moe_text": _QWEN3_MOE,
        "starcoder2": _LEARNED,
    }
)
