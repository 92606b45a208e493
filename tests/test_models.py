import csv
import json

import pytest

from jaxlens.models import known_models, load_shape
from jaxlens.parameters import parameters

HUB = "https://huggingface.co/"
PUBLISHED = [  # id, parameters, relative rounding of the published figure, source
    # exact: the parameter count that the Hub reads from the safetensors files
    ("meta-llama/Llama-2-7b-hf", 6_738_415_616, 0, HUB),
    ("meta-llama/Llama-2-13b-hf", 13_015_864_320, 0, HUB),
    ("meta-llama/Llama-2-70b-hf", 68_976_648_192, 0, HUB),
    ("meta-llama/Meta-Llama-3-8B", 8_030_261_248, 0, HUB),
    ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, 0, HUB),
    ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496, 0, HUB),
    ("meta-llama/Llama-3.1-405B-Instruct", 405_853_388_800, 0, HUB),
    ("meta-llama/Llama-3.2-1B", 1_235_814_400, 0, HUB),
    ("meta-llama/Llama-3.2-3B", 3_212_749_824, 0, HUB),
    ("codellama/CodeLlama-7b-hf", 6_738_546_688, 0, HUB),
    ("codellama/CodeLlama-13b-hf", 13_016_028_160, 0, HUB),
    ("codellama/CodeLlama-34b-hf", 33_743_970_304, 0, HUB),
    ("Qwen/Qwen1.5-7B", 7_721_324_544, 0, HUB),
    ("Qwen/Qwen2-1.5B", 1_543_714_304, 0, HUB),
    ("Qwen/Qwen2-7B", 7_615_616_512, 0, HUB),
    ("Qwen/Qwen2-72B", 72_706_203_648, 0, HUB),
    ("Qwen/Qwen2.5-14B", 14_770_033_664, 0, HUB),
    ("Qwen/Qwen3-4B", 4_022_468_096, 0, HUB),
    ("Qwen/Qwen3-8B", 8_190_735_360, 0, HUB),
    ("Qwen/Qwen3-14B", 14_768_307_200, 0, HUB),
    ("Qwen/Qwen3-32B", 32_762_123_264, 0, HUB),
    ("Qwen/Qwen3-30B-A3B", 30_532_122_624, 0, HUB),
    ("Qwen/Qwen3-235B-A22B", 235_093_634_560, 0, HUB),
    ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 480_154_875_392, 0, HUB),
    ("google/gemma-2b", 2_506_172_416, 0, HUB),
    ("google/gemma-7b", 8_537_680_896, 0, HUB),
    ("google/gemma-2-2b-it", 2_614_341_888, 0, HUB),
    ("google/gemma-2-9b-it", 9_241_705_984, 0, HUB),
    ("google/gemma-2-27b-it", 27_227_128_320, 0, HUB),
    ("google/gemma-3-1b-it", 999_885_952, 0, HUB),
    ("mistralai/Mistral-7B-v0.1", 7_241_732_096, 0, HUB),
    ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552, 0, HUB),
    ("mistralai/Mistral-Nemo-Instruct-2407", 12_247_782_400, 0, HUB),
    ("mistralai/Mistral-Large-Instruct-2407", 122_610_069_504, 0, HUB),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704, 0, HUB),
    ("mistralai/Mixtral-8x22B-v0.1", 140_620_634_112, 0, HUB),
    ("mistralai/Mixtral-8x22B-Instruct-v0.1", 140_630_071_296, 0, HUB),
    ("bigcode/starcoder2-3b", 3_030_371_328, 0, HUB),
    ("bigcode/starcoder2-7b", 7_173_923_840, 0, HUB),
    ("bigcode/starcoder2-15b", 15_957_889_024, 0, HUB),
    ("microsoft/Phi-3-mini-4k-instruct", 3_821_079_552, 0, HUB),
    ("microsoft/Phi-3-medium-4k-instruct", 13_960_238_080, 0, HUB),
    ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", 8_888_227_328, 0, HUB),
    ("Deci/DeciLM-7B", 7_043_551_232, 0, HUB),
    ("openai-community/gpt2", 124_439_808, 0, "transformers GPT2LMHeadModel"),
    # within the terms that `parameters` leaves out (sinks, head biases, poolers)
    ("EleutherAI/gpt-j-6b", 6_050_882_784, 1e-4, HUB),
    ("bigscience/bloom-7b1", 7_069_016_064, 1e-4, HUB),
    ("bigscience/bloom", 176_247_271_424, 1e-4, HUB),
    ("google-bert/bert-large-uncased", 335_141_888, 5e-3, "transformers BertModel"),
    ("openai/gpt-oss-120b", 116.83e9, 5e-3, "https://arxiv.org/abs/2508.10925"),
    ("openai/gpt-oss-20b", 20.91e9, 5e-3, "https://arxiv.org/abs/2508.10925"),
    # rounded by the publisher
    ("facebook/opt-1.3b", 1.3e9, 0.04, "https://arxiv.org/abs/2205.01068"),
    ("facebook/opt-6.7b", 6.7e9, 0.01, "https://arxiv.org/abs/2205.01068"),
    ("facebook/opt-30b", 30e9, 5e-3, "https://arxiv.org/abs/2205.01068"),
    ("google/gemma-3-12b-it", 11.771e9, 5e-3, "https://arxiv.org/abs/2503.19786"),
    ("google/gemma-3-27b-it", 27.016e9, 5e-3, "https://arxiv.org/abs/2503.19786"),
    ("google/gemma-4-26B-A4B-it", 25.2e9, 5e-3, HUB),
    ("deepseek-ai/DeepSeek-V3", 671e9, 1e-3, "https://arxiv.org/abs/2412.19437"),
    ("moonshotai/Kimi-K2-Instruct", 1.03e12, 5e-3, "https://arxiv.org/abs/2507.20534"),
    ("nvidia/NVIDIA-Nemotron-Nano-12B-v2", 12.31e9, 1e-3, HUB),
    ("nvidia/Nemotron-H-8B-Base-8K", 8.1e9, 5e-3, "https://arxiv.org/abs/2504.03624"),
    ("nvidia/Nemotron-H-56B-Base-8K", 56e9, 0.01, "https://arxiv.org/abs/2504.03624"),
    # 109 B and 400 B with a vision tower of about 0.9 B, which the shape leaves out
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 109e9 - 0.9e9, 5e-3, HUB),
    ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 400e9, 5e-3, HUB),
]

CATALOGUE = [
    "meta-llama/Llama-2-7b",
    "meta-llama/Llama-2-13b-chat-hf",
    "meta-llama/Llama-2-70b-chat-hf",
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-405B-Instruct-FP8",
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-8B-FP8",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B-FP8",
    "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8",
    "Qwen/Qwen3-Coder-30B-A3B-Instruct",
    "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8",
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",
    "google/gemma-3-12b-it",
    "google/gemma-3-27b-it",
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V3.1",
    "deepseek-ai/DeepSeek-R1",
    "deepseek-ai/DeepSeek-R1-0528",
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2",
    "facebook/opt-1.3b",
    "facebook/opt-2.7b",
    "facebook/opt-6.7b",
    "facebook/opt-13b",
    "facebook/opt-30b",
    "Deci/DeciLM-7B",
    "bigscience/bloom-7b1",
    "bigscience/bloom",
    "EleutherAI/gpt-j-6b",
    "gpt2",
    "google-bert/bert-large-uncased",
    "Qwen/Qwen1.5-7B",
    "Qwen/Qwen2-1.5B",
    "Qwen/Qwen2-7B-Instruct",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "mistralai/Mistral-Nemo-Instruct-2407",
    "mistralai/Mistral-Large-Instruct-2407",
    "codellama/CodeLlama-7b-Instruct-hf",
    "codellama/CodeLlama-13b-hf",
    "codellama/CodeLlama-34b-hf",
    "codellama/CodeLlama-70b-hf",
    "google/gemma-7b",
    "google/gemma-2-2b",
    "google/gemma-2-9b",
    "google/gemma-2-27b-it",
    "google/codegemma-7b",
    "google/codegemma-1.1-2b",
    "bigcode/starcoder2-3b",
    "bigcode/starcoder2-7b",
    "bigcode/starcoder2-15b",
    "microsoft/Phi-3-mini-4k-instruct",
    "microsoft/Phi-3-medium-4k-instruct",
    "BAAI/Aquila-7B",
    "mistralai/Mixtral-8x22B-Instruct-v0.1",
]


@pytest.mark.parametrize(("name", "published", "rounding", "source"), PUBLISHED)
def test_parameter_counts_match_published_ones(name, published, rounding, source):
    total = parameters(load_shape(name)).total
    assert total == pytest.approx(published, rel=rounding, abs=0), source


@pytest.mark.parametrize(
    ("name", "published", "with_embedding", "source"),
    [
        ("openai/gpt-oss-120b", 5.13e9, False, "https://arxiv.org/abs/2508.10925"),
        ("openai/gpt-oss-20b", 3.61e9, False, "https://arxiv.org/abs/2508.10925"),
        ("mistralai/Mixtral-8x7B-v0.1", 12.9e9, True, "arxiv.org/abs/2401.04088"),
        ("Qwen/Qwen3-235B-A22B", 22.2e9, True, "https://arxiv.org/abs/2505.09388"),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 35.5e9, True, HUB),
        ("moonshotai/Kimi-K2-Instruct", 32.6e9, True, "arxiv.org/abs/2507.20534"),
    ],
)
def test_active_parameters_match_published_ones(
    name, published, with_embedding, source
):
    count = parameters(load_shape(name))
    active = count.active - (0 if with_embedding else count.embedding)
    assert active == pytest.approx(published, rel=0.01), source


@pytest.mark.parametrize("name", CATALOGUE)
def test_catalogue_resolves(name):
    assert load_shape(name).name == name


def test_every_entry_loads_and_names_its_source():
    for name, entry in known_models().items():
        assert entry.source.startswith("https://"), name
        for known in (name, *entry.aliases):
            assert parameters(load_shape(known)).total > 0


def test_every_measured_model_resolves(data_folder):
    tables = [*data_folder.glob("serving/*.csv"), *data_folder.glob("prefill/*.csv")]
    assert tables
    for table in tables:
        with table.open() as rows:
            models = {row["model"] for row in csv.DictReader(rows)}
        for model in models:
            assert load_shape(model).name == model


def test_catalogue_agrees_with_published_configurations(data_folder):
    for path in (data_folder / "model_configs").glob("*.json"):
        name = path.stem.replace("--", "/")
        from_file, from_catalogue = load_shape(path), load_shape(name)
        assert from_file.mixers == from_catalogue.mixers, name
        assert from_file.feeds == from_catalogue.feeds, name
        assert from_file.vocabulary == from_catalogue.vocabulary, name
        assert from_file.max_context == from_catalogue.max_context, name
        if not name.startswith("nvidia/Llama"):  # keeps formats in another file
            assert from_file.formats == from_catalogue.formats, name


@pytest.mark.parametrize(
    ("variant", "base"),
    [
        ("Qwen/Qwen3-32B-FP8", "Qwen/Qwen3-32B"),
        ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b"),
        ("qwen/qwen3-8b", "Qwen/Qwen3-8B"),
        ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "meta-llama/Llama-3.1-70B"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "meta-llama/Llama-3.1-8B"),
        ("google/gemma-1.1-7b-it", "google/gemma-7b"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2-7B"),
    ],
)
def test_suffixes_and_publishers_leave_the_shape_alone(variant, base):
    one, other = load_shape(variant), load_shape(base)
    assert (one.mixers, one.feeds, one.width) == (
        other.mixers,
        other.feeds,
        other.width,
    )


@pytest.mark.parametrize(
    ("name", "attention", "feed_forward", "experts", "block_scaled"),
    [
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "fp8", "fp8", "fp8", True),
        ("deepseek-ai/DeepSeek-R1-0528", "fp8", "fp8", "fp8", True),
        ("moonshotai/Kimi-K2-Instruct", "fp8", "fp8", "fp8", True),
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", "bf16", "fp8", "fp8", False),
        ("nvidia/Llama-3.1-405B-Instruct-FP8", "fp8", "fp8", "fp8", False),
        (
            "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
            *("bf16", "bf16", "fp8", False),
        ),
        ("openai/gpt-oss-20b", "bf16", "bf16", "mxfp4", False),
        ("nvidia/Llama-3.1-405B-Instruct-FP4", "nvfp4", "nvfp4", "nvfp4", False),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "int4", "int4", "int4", False),
    ],
)
def test_variants_get_their_own_formats(
    name, attention, feed_forward, experts, block_scaled
):
    formats = load_shape(name).formats
    assert formats.attention == attention
    assert formats.feed_forward == feed_forward
    assert formats.experts == experts
    assert formats.block_scaled is block_scaled
    assert formats.head == "bf16"


def test_longer_context_variants_keep_their_own_limit():
    assert load_shape("Qwen/Qwen3-235B-A22B").max_context == 40_960
    longer = load_shape("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8")
    assert longer.max_context == 262_144


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("meta-llama/Llama-3.1-80B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("Qwen/Qwen3-8", "Qwen/Qwen3-8B"),
        ("opt-6.8b", "facebook/opt-6.7b"),
        ("zzz", "none is near"),
    ],
)
def test_unknown_ids_name_near_ones(name, near):
    with pytest.raises(ValueError, match=f"got '{name}'; .*{near}.* config.json"):
        load_shape(name)


def test_files_folders_and_mappings_give_the_same_shape(tmp_path):
    config = dict(known_models()["Qwen/Qwen3-8B"].config)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = [load_shape(folder), load_shape(str(folder / "config.json"))]
    assert shapes[0] == shapes[1]
    assert shapes[0].name == "checkpoint"
    assert load_shape(config).mixers == shapes[0].mixers


def test_quantisation_settings_beside_the_configuration_are_read(tmp_path):
    config = dict(known_models()["Qwen/Qwen3-8B"].config)
    beside = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    shape = load_shape(tmp_path)
    assert shape.formats.attention == shape.kv_format == "fp8"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected a readable JSON file"),
        (b"", "expected a readable JSON file"),
        (b"[1]", "expected a JSON object, got list"),
        (b"\xff\xfe\x00", "expected a readable JSON file"),
        (b"[" * 100_000, "expected a readable JSON file"),
        (b'{"model_type": "llama"}', "expected `num_hidden_layers` or `n_layer`"),
        (
            b'{"model_type": "llama", "num_hidden_layers": NaN}',
            "expected `num_hidden_layers` to be .* got nan",
        ),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_shape(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_wrong_types_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got no such file"):
        load_shape("./absent/config.json")
    with pytest.raises(ValueError, match="got a folder without it"):
        load_shape(tmp_path)
    with pytest.raises(ValueError, match="got int"):
        load_shape(8)  # pyright: ignore[reportArgumentType]
