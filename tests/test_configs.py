import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxlens.configs import shape_from_config
from jaxlens.models import known_models, load_shape
from jaxlens.parameters import parameters
from jaxlens.quantizations import recast
from jaxlens.shapes import (
    Attention,
    Experts,
    FeedForward,
    LatentAttention,
    Mamba,
    WeightFormats,
)

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def shape(**changes):
    return shape_from_config({**LLAMA, **changes}, where="config.json")


def attentions(model):
    return [mixer for mixer in model.mixers if isinstance(mixer, Attention)]


def test_smallest_llama_by_hand():
    small = shape()
    assert small.mixers == (Attention(layers=2, heads=4, kv_heads=2, head_dim=16),)
    assert small.feeds == (FeedForward(layers=2, width=256),)
    count = parameters(small)
    assert count.attention == 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64)
    assert count.feed_forward == 2 * 3 * 64 * 256
    assert count.norms == 5 * 64
    assert count.embedding == count.head == 100 * 64
    assert count.total == count.active


def test_missing_kv_heads_mean_multi_head_attention():
    config = {key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"}
    assert attentions(shape_from_config(config))[0].kv_heads == 4


def test_gemma_3_mixes_five_local_layers_with_one_global():
    gemma = load_shape("google/gemma-3-27b-it")
    windows = {mixer.window: mixer.layers for mixer in attentions(gemma)}
    assert windows == {1024: 52, None: 10}
    assert gemma.tied_embeddings and gemma.norms_per_layer == 4


def test_gemma_3_configuration_leans_on_class_defaults():
    config = {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
    }
    parsed = shape_from_config(config, name="google/gemma-3-4b-it")
    assert parsed == load_shape("google/gemma-3-4b-it")


def test_gpt_oss_alternates_windows_and_keeps_attention_in_bf16():
    oss = load_shape("openai/gpt-oss-120b")
    assert [(m.window, m.layers) for m in attentions(oss)] == [(128, 18), (None, 18)]
    assert oss.formats == WeightFormats(experts="mxfp4")


def test_llama_4_interleaves_dense_layers_and_shares_an_expert():
    maverick = load_shape("meta-llama/Llama-4-Maverick-17B-128E-Instruct")
    assert [(m.window, m.layers) for m in attentions(maverick)] == [
        (8192, 36),
        (None, 12),
    ]
    dense, experts = maverick.feeds
    assert (dense.layers, dense.width) == (24, 16384)
    assert isinstance(experts, Experts)
    assert (experts.layers, experts.width, experts.shared_width) == (24, 8192, 8192)
    scout = load_shape("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert [type(feed) for feed in scout.feeds] == [Experts]


def test_gemma_4_runs_a_dense_block_beside_experts():
    gemma = load_shape("google/gemma-4-26B-A4B")
    local, everywhere = attentions(gemma)
    assert (local.layers, local.head_dim, local.shared_key_value) == (25, 256, False)
    assert (everywhere.head_dim, everywhere.kv_heads) == (512, 2)
    assert everywhere.shared_key_value
    assert [feed.layers for feed in gemma.feeds] == [30, 30]


def test_deepseek_v3_has_latent_attention_and_three_dense_layers():
    deepseek = load_shape("deepseek-ai/DeepSeek-V3.1")
    assert deepseek.mixers == (
        LatentAttention(
            layers=61,
            heads=128,
            query_rank=1536,
            kv_rank=512,
            nope_dim=128,
            rope_dim=64,
            value_dim=128,
        ),
    )
    dense, experts = deepseek.feeds
    assert (dense.layers, dense.width) == (3, 18432)
    assert isinstance(experts, Experts)
    assert (experts.layers, experts.shared_width) == (58, 2048)


def test_nemotron_nano_spells_its_blocks():
    nano = load_shape("nvidia/NVIDIA-Nemotron-Nano-9B-v2")
    layers = {type(block): block.layers for block in (*nano.mixers, *nano.feeds)}
    assert layers == {Mamba: 27, Attention: 4, FeedForward: 25}
    assert nano.feeds[0].matrices == 2


def test_decilm_counts_layers_by_kv_heads():
    deci = load_shape("Deci/DeciLM-7B")
    assert sum(m.layers * m.kv_heads for m in attentions(deci)) == 67
    assert sum(m.layers for m in attentions(deci)) == 32


def test_qwen_2_ignores_a_window_that_is_switched_off():
    config = {**LLAMA, "model_type": "qwen2", "sliding_window": 4096}
    off = shape_from_config({**config, "use_sliding_window": False})
    (one,) = attentions(off)
    assert one.window is None and one.bias and not one.output_bias
    on = shape_from_config(
        {**config, "use_sliding_window": True, "max_window_layers": 1}
    )
    assert [(m.window, m.layers) for m in attentions(on)] == [(None, 1), (4096, 1)]


LOW = {"attention": "fp8", "feed_forward": "fp8", "experts": "fp8"}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel"}


def compressed(**weights):
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    }


def formats(low, **changes):
    kinds = dict.fromkeys(LOW, low)
    return WeightFormats(**{**kinds, **changes})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (BLOCKS, formats("fp8", block_scaled=True)),
        ({"quant_method": "fp8"}, formats("fp8")),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, formats("fp8")),
        ({"quantization": {"quant_algo": "NVFP4"}}, formats("nvfp4")),
        (compressed(**CHANNEL), formats("fp8")),
        (compressed(num_bits=4, type="int", group_size=128), formats("int4")),
        (compressed(num_bits=4, type="float", group_size=16), formats("nvfp4")),
        ({"quant_method": "gptq", "bits": 4}, formats("int4")),
        ({"quant_method": "gptq", "bits": 8}, formats("int8")),
        ({"quant_method": "awq", "w_bit": 4}, formats("int4")),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, formats("int8")),
        ({"quant_method": "mxfp4"}, formats("bf16", experts="mxfp4")),
        (
            {**BLOCKS, "modules_to_not_convert": ["model.layers.*.self_attn"]},
            formats("fp8", attention="bf16", block_scaled=True),
        ),
        (  # one layer of two does not make a majority
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp"]},
            formats("fp8", feed_forward="bf16", experts="bf16"),
        ),
        (  # the router `mlp.gate` is not the projection `mlp.gate_proj`
            {"quant_method": "fp8", "modules_to_not_convert": ["mlp.gate", "lm_head"]},
            formats("fp8"),
        ),
        (
            {"quant_method": "fp8", "ignore": ["re:.*self_attn.*", "re:.*experts"]},
            formats("fp8", attention="bf16", experts="bf16"),
        ),
    ],
)
def test_quantization_settings_decide_formats(settings, expected):
    assert shape(quantization_config=settings).formats == expected


def test_cache_format_follows_the_checkpoint():
    assert shape().kv_format == "bf16"
    assert shape(torch_dtype="float16").kv_format == "fp16"
    scheme = {"num_bits": 8, "type": "float"}
    quantized = {**compressed(**CHANNEL), "kv_cache_scheme": scheme}
    assert shape(quantization_config=quantized).kv_format == "fp8"


def test_recast_changes_formats_and_keeps_published_mixes():
    assert recast(shape(), "fp16").formats == formats("fp16", head="fp16")
    assert recast(shape(), "fp16").kv_format == "fp16"
    assert recast(shape(), "fp8", kv="fp8").formats == formats("fp8")
    oss = load_shape("openai/gpt-oss-20b")
    assert recast(oss, "mxfp4") == oss
    experts = recast(load_shape("Qwen/Qwen3-30B-A3B"), "mxfp4").formats
    assert experts == formats("bf16", experts="mxfp4")
    with pytest.raises(ValueError, match=r"expected one of fp32, .*, got 'fp7'"):
        recast(shape(), "fp7")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "expected `hidden_size` or `n_embd`.* without it"),
        ({"vocab_size": None}, "expected `vocab_size`"),
        ({"model_type": None}, "expected `model_type`.* set it to one of .*llama"),
        ({"model_type": "mamba9"}, "one of .*qwen3_moe.*, got 'mamba9'"),
        ({"hidden_size": 0}, "`hidden_size` to be a whole number from 1 .* got 0"),
        ({"intermediate_size": -4}, "`intermediate_size` .* got -4"),
        ({"hidden_size": float("nan")}, "`hidden_size` .* got nan"),
        ({"hidden_size": 64.0}, "`hidden_size` .* got 64.0"),
        ({"hidden_size": True}, "`hidden_size` .* got True"),
        ({"num_hidden_layers": 10**30}, "`num_hidden_layers` .* got 1000"),
        ({"num_attention_heads": "four"}, "`num_attention_heads` .* got 'four'"),
        ({"num_key_value_heads": 3}, "multiple of `num_key_value_heads`, got 4 and 3"),
        ({"num_attention_heads": 6}, "`hidden_size` to be a multiple .* `head_dim`"),
        ({"tie_word_embeddings": "yes"}, "true or false, got 'yes'"),
        ({"layer_types": ["full_attention"]}, "`layer_types` to list 2 layers"),
        ({"layer_types": ["linear"] * 2}, "among full_attention, .* got 'linear'"),
        ({"torch_dtype": "int7"}, "`torch_dtype` to be one of bfloat16"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "up to `num_experts` = 8"),
        ({"num_experts": 8}, "expected `num_experts_per_tok`"),
        ({"quantization_config": "fp8"}, "`quantization_config` to be a table"),
        ({"quantization_config": {"quant_method": "x"}}, "`quant_method` .* got 'x'"),
        ({"text_config": 3}, "`text_config` to be a table"),
        ({"num_kv_shared_layers": 10}, "`num_kv_shared_layers` 0"),
        ({"model_type": "opt", "word_embed_proj_dim": 32}, "`word_embed_proj_dim`"),
        ({"model_type": "nemotron_h"}, "`hybrid_override_pattern`"),
        ({"num_key_value_heads_per_layer": [1]}, "one size for each of 2 layers"),
    ],
)
def test_bad_configurations_say_where_what_and_how_to_cure(changes, message):
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        shape(**changes)


JUNK = st.sampled_from(
    [
        *(None, 0, -1, 1.5, float("nan"), 1e30, 10**30, "", "x", True),
        *([], [1], ["x"], {}, {"a": 1}, [[1]], [None]),
        {"quant_method": "gptq", "bits": [4]},
        {"quant_method": "compressed-tensors", "config_groups": {"a": []}},
    ]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_junk_value_is_a_value_error_or_harmless(data):
    models = known_models()
    entry = models[data.draw(st.sampled_from(sorted(models)))]
    keys = [*sorted(entry.config), "quantization_config", "layer_types", "moe_layers"]
    junk = data.draw(st.dictionaries(st.sampled_from(keys), JUNK, min_size=1))
    try:
        parsed = shape_from_config({**entry.config, **junk})
    except ValueError as error:
        assert "config: expected" in str(error)
    else:
        assert parameters(parsed).total > 0


def test_configurations_of_vision_models_read_the_text_tower(data_folder):
    for path in sorted((data_folder / "model_configs").glob("*.json")):
        config = json.loads(path.read_text())
        tower = config.get("text_config", config)
        assert load_shape(path).width == tower["hidden_size"], path.name
