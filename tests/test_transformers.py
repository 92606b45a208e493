"""Counts by hand for one dense, one mixture-of-experts and one latent-attention layer."""

import pytest

from jaxlens import Deployment, load_model
from jaxlens.loads import Load
from jaxlens.steps import items
from jaxlens.works import Message

DECODE = Load(decode_sequences=64.0, decode_context=1000.0, emitting=64.0)
PREFILL = Load(prefill_sequences=1.0, prefill_tokens=512.0, emitting=1.0)


def asked(model, load, *phases, **layout):
    deployment = Deployment(**layout)
    return {i.name: i.asks for i in items(model, deployment, load, phases)}


def layers(model):
    load, deployment = DECODE, Deployment()
    return {i.name: i.layers for i in items(model, deployment, load, ("decode",))}


# Llama-3.1-8B: d 4096, f 14336, 32 query and 8 KV heads of 128, bf16, 32 layers.


@pytest.fixture(scope="module")
def dense():
    return load_model("meta-llama/Llama-3.1-8B")


def test_dense_decode(dense):
    step = asked(dense, DECODE, "decode")
    projections = step["attention: query key value"]
    # 64 tokens x 4096 x (32 + 2 x 8) heads x 128, two FLOPs for each
    assert projections.flop == 2 * 64 * 4096 * 48 * 128
    # weights, tokens in, queries out; keys and values go to the cache
    assert projections.hbm_bytes == 2 * (4096 * 48 * 128 + 64 * 4096 + 64 * 4096)
    assert projections.kv_bytes == 64 * 2 * 8 * 128 * 2
    attention = step["attention: attention (decode)"]
    # scores and values: 64 queries x 32 heads x 128 x 1000 cached tokens
    assert attention.flop == 2 * (2 * 64 * 32 * 128 * 1000)
    assert attention.kv_bytes == 64 * 1000 * 2 * 8 * 128 * 2
    assert attention.hbm_bytes == 2 * (64 * 4096 + 64 * 4096)
    out = step["attention: attention out"]
    assert out.flop == 2 * 64 * 4096 * 4096
    assert out.hbm_bytes == 2 * (4096 * 4096 + 2 * 64 * 4096)
    up, down = step["feed-forward: up"], step["feed-forward: down"]
    assert up.flop == 2 * 64 * 4096 * 2 * 14336
    assert up.hbm_bytes == 2 * (4096 * 2 * 14336 + 64 * 4096 + 64 * 2 * 14336)
    assert down.flop == 2 * 64 * 14336 * 4096
    assert down.hbm_bytes == 2 * (14336 * 4096 + 64 * 14336 + 64 * 4096)
    assert layers(dense)["feed-forward: down"] == 32.0


def test_dense_prefill(dense):
    step = asked(dense, PREFILL, "prefill")
    assert step["feed-forward: down"].flop == 2 * 512 * 14336 * 4096
    attention = step["attention: attention (prefill)"]
    # query i sees i tokens: 512 x 513 / 2 pairs of 32 heads x 128, twice
    assert attention.flop == pytest.approx(2 * (2 * 32 * 128 * 512 * 513 / 2))
    assert attention.kv_bytes == 512 * 2 * 8 * 128 * 2
    head = step["head: language head"]
    assert head.flop == 2 * 1 * 4096 * 128256  # the last token alone
    assert step["head: sampling"].visits == 128256


def test_dense_chunk_after_a_cached_part(dense):
    late = Load(prefill_sequences=1.0, prefill_tokens=256.0, prefill_past=768.0)
    attention = asked(dense, late, "prefill")["attention: attention (prefill)"]
    pairs = sum(768 + i for i in range(1, 257))
    assert attention.flop == pytest.approx(2 * (2 * 32 * 128 * pairs))
    assert attention.kv_bytes == (768 + 256) * 2 * 8 * 128 * 2


def test_tensor_parallel_divides_work_and_adds_two_all_reduces_a_layer(dense):
    step = asked(dense, DECODE, "decode", tensor_parallel=4.0)
    assert step["feed-forward: up"].flop == 2 * 64 * 4096 * 2 * 14336 / 4
    assert step["attention: attention (decode)"].kv_bytes == 64 * 1000 * 2 * 2 * 128 * 2
    sent = {n: m for n, m in step.items() if isinstance(m, Message)}
    whole = 64 * 4096 * 2  # tokens x width in bf16
    payloads = {
        "attention: attention out all-reduce": whole,
        "feed-forward: down all-reduce": whole,
        "embedding: embedding all-reduce": whole,
        "head: language head all-gather": 64 * 128256 * 2,
        "pipeline: send": whole / 4,
    }
    assert {n: m.payload_bytes for n, m in sent.items()} == payloads
    assert {m.ranks for n, m in sent.items() if n != "pipeline: send"} == {4.0}
    counted = layers(dense)
    assert counted["attention: attention out all-reduce"] == 32.0
    assert counted["pipeline: send"] == 0.0


@pytest.mark.parametrize(
    ("degree", "heads"), [(1.0, 8), (8.0, 1), (16.0, 1), (32.0, 1)]
)
def test_kv_heads_are_replicated_beyond_one_a_rank(dense, degree, heads):
    step = asked(dense, DECODE, "decode", tensor_parallel=degree)
    attention = step["attention: attention (decode)"]
    assert attention.kv_bytes == 64 * 1000 * 2 * heads * 128 * 2
    assert attention.flop == 2 * (2 * 64 * 32 * 128 * 1000) / degree


def test_a_pipeline_hands_over_between_its_stages(dense):
    deployment = Deployment(pipeline_parallel=4.0, tensor_parallel=2.0)
    (send,) = [
        item
        for item in items(dense, deployment, DECODE, ("decode",))
        if item.name == "pipeline: send"
    ]
    assert send.layers == 3.0
    assert send.asks.payload_bytes == 64 * 4096 * 2 / 2


# Qwen3-30B-A3B: d 2048, 128 experts of width 768, 8 for each token, bf16, 48 layers.


@pytest.fixture(scope="module")
def mixture():
    return load_model("Qwen/Qwen3-30B-A3B")


def test_experts_prefill(mixture):
    many = Load(prefill_sequences=1.0, prefill_tokens=4096.0, emitting=1.0)
    step = asked(mixture, many, "prefill")
    up, down = step["experts: experts up"], step["experts: experts down"]
    assert up.flop == 2 * 4096 * 8 * 2048 * 2 * 768
    assert down.flop == 2 * 4096 * 8 * 768 * 2048
    # every expert has work: 128 x 2048 x 2 x 768 weights; copies in, products out
    traffic = 128 * 2048 * 2 * 768 + 4096 * 8 * (2048 + 2 * 768)
    assert up.hbm_bytes == pytest.approx(2 * traffic)
    assert up.rows == pytest.approx(4096 * 8 / 128)
    router = step["experts: router"]
    assert router.flop == 2 * 4096 * 2048 * 128
    assert router.hbm_bytes == 2 * (2048 * 128 + 4096 * 2048 + 4096 * 128)


def test_experts_decode_of_one_token_reads_eight(mixture):
    one = Load(decode_sequences=1.0, decode_context=100.0, emitting=1.0)
    up = asked(mixture, one, "decode")["experts: experts up"]
    weights = 8 * 2048 * 2 * 768
    assert up.hbm_bytes == pytest.approx(2 * (weights + 8 * (2048 + 2 * 768)))
    assert up.rows == pytest.approx(1.0)


def test_experts_in_parallel_without_replicas_send_nothing(mixture):
    layout = {"tensor_parallel": 4.0, "expert_parallel": 4.0}
    step = asked(mixture, DECODE, "decode", **layout)
    assert step["experts: dispatch all-to-all"].ranks == 1.0
    assert step["experts: combine all-to-all"].ranks == 1.0
    reduced = step["experts: experts out all-reduce"]
    assert (reduced.ranks, reduced.payload_bytes) == (4.0, 64 * 2048 * 2)
    # a quarter of the experts and of the copies on each rank
    assert step["experts: experts up"].flop == 2 * 64 * 8 * 2048 * 2 * 768 / 4


def test_experts_split_over_tensor_ranks_read_a_slice_of_each(mixture):
    split = asked(mixture, DECODE, "decode", tensor_parallel=4.0)
    spread = asked(mixture, DECODE, "decode", tensor_parallel=4.0, expert_parallel=4.0)
    name = "experts: experts up"
    assert split[name].flop == spread[name].flop
    assert split[name].columns == spread[name].columns / 4
    mixed = {"tensor_parallel": 4.0, "expert_parallel": 2.0}
    half = asked(mixture, DECODE, "decode", **mixed)[name]
    assert half.flop == split[name].flop
    assert half.columns == split[name].columns * 2


def test_experts_over_replicas_dispatch_and_combine(mixture):
    layout = {"tensor_parallel": 2.0, "data_parallel": 4.0, "expert_parallel": 8.0}
    step = asked(mixture, DECODE, "decode", **layout)
    for name in ("experts: dispatch all-to-all", "experts: combine all-to-all"):
        # 8 copies of each of 64 tokens, shared by the 2 ranks that hold them, to 4 replicas
        assert step[name].payload_bytes == 64 * 8 * 2048 * 2 / 2
        assert (step[name].ranks, step[name].stride) == (4.0, 2.0)
    # the copies of all 4 replicas land on 8 ranks
    assert step["experts: experts up"].flop == 2 * (4 * 64) * 8 * 2048 * 2 * 768 / 8
    assert step["experts: routing"].local_experts == 16.0


# DeepSeek-V3: d 7168, 128 heads, latents of 1536 (queries) and 512 + 64 (keys and values),
# heads of 128 + 64 (keys) and 128 (values), fp8 weights, bf16 cache, 61 layers.


@pytest.fixture(scope="module")
def latent():
    return load_model("deepseek-ai/DeepSeek-V3")


def test_latent_attention_decode(latent):
    step = asked(latent, DECODE, "decode")
    down = step["latent attention: latents"]
    assert down.flop == 2 * 64 * 7168 * (1536 + 576)
    assert down.kv_bytes == 64 * 576 * 2
    assert step["latent attention: query up"].flop == 2 * 64 * 1536 * 128 * 192
    absorb = step["latent attention: absorb keys (decode)"]
    assert absorb.flop == 2 * 64 * 128 * 128 * 512
    assert absorb.hbm_bytes == 128 * 128 * 512 + 2 * 64 * 128 * (128 + 512)
    attention = step["latent attention: latent attention (decode)"]
    # scores over 576, values over 512 of every cached token, for 128 heads
    assert attention.flop == 2 * 64 * 128 * 1000 * (576 + 512)
    assert attention.kv_bytes == 64 * 1000 * 576 * 2  # read once for both
    out = step["latent attention: attention out"]
    assert out.flop == 2 * 64 * 128 * 128 * 7168
    assert layers(latent)["latent attention: attention out"] == 61.0


def test_latent_attention_prefill_expands_what_is_cached(latent):
    late = Load(prefill_sequences=1.0, prefill_tokens=512.0, prefill_past=1024.0)
    step = asked(latent, late, "prefill")
    expand = step["latent attention: expand keys and values (prefill)"]
    assert expand.flop == 2 * 1536 * 512 * 128 * (128 + 128)
    assert expand.kv_bytes == 1536 * 512 * 2
    attention = step["latent attention: attention (prefill)"]
    pairs = sum(1024 + i for i in range(1, 513))
    assert attention.flop == pytest.approx(2 * 128 * (192 + 128) * pairs)
    assert not any("(decode)" in name for name in step)


def test_the_latent_cache_is_replicated_on_every_tensor_rank(latent):
    one = asked(latent, DECODE, "decode")
    eight = asked(latent, DECODE, "decode", tensor_parallel=8.0)
    name = "latent attention: latent attention (decode)"
    assert eight[name].kv_bytes == one[name].kv_bytes
    assert eight[name].flop == one[name].flop / 8


def test_shared_experts_join_the_all_reduce_of_the_routed_ones(latent):
    step = asked(latent, DECODE, "decode", tensor_parallel=8.0)
    assert step["experts: shared up"].flop == 2 * 64 * 7168 * 2 * 2048 / 8
    reduced = [n for n in step if n.startswith("experts") and "all-reduce" in n]
    assert reduced == ["experts: experts out all-reduce"]


def test_mamba_reads_and_writes_its_state_every_step():
    model = load_model("nvidia/NVIDIA-Nemotron-Nano-9B-v2")
    # 128 heads x 80 x 128 numbers of 4 bytes for each sequence, in and out
    scan = asked(model, DECODE, "decode")["state space: scan (decode)"]
    state = 64 * 128 * 80 * 128
    assert scan.hbm_bytes - scan.activation_bytes == 2 * state * 4
    assert scan.flop == 2 * (2 * state)
    # prefill: once for each of two chunks of 256 tokens
    scan = asked(model, PREFILL, "prefill")["state space: scan (prefill)"]
    assert scan.hbm_bytes - scan.activation_bytes == 2 * 2 * 128 * 80 * 128 * 4


@pytest.mark.parametrize("past", [0, 300, 1000, 5000])
@pytest.mark.parametrize("queries", [1, 200, 2048])
def test_a_window_hides_what_brute_force_hides(past, queries):
    model = load_model("google/gemma-3-12b-it")  # 16 heads of 256, window 1024
    load = Load(
        prefill_sequences=1.0,
        prefill_tokens=float(queries),
        prefill_past=float(past),
    )
    step = asked(model, load, "prefill")
    for name, window in (("windowed attention", 1024), ("attention", 10**9)):
        pairs = sum(min(past + i, window) for i in range(1, queries + 1))
        work = step[f"{name}: attention (prefill)"]
        assert work.flop == pytest.approx(2 * (2 * 16 * 256 * pairs))


@pytest.mark.parametrize("context", [100.0, 1024.0, 5000.0])
def test_a_window_bounds_what_decode_reads(context):
    model = load_model("google/gemma-3-12b-it")
    step = asked(
        model,
        Load(decode_sequences=2.0, decode_context=context, emitting=2.0),
        "decode",
    )
    local = step["windowed attention: attention (decode)"]
    assert local.kv_bytes == 2 * min(context, 1024.0) * 2 * 8 * 256 * 2


def test_an_encoder_without_a_mask_sees_everything():
    model = load_model("google-bert/bert-large-uncased")  # 16 heads of 64
    work = asked(model, PREFILL, "prefill")["attention: attention (prefill)"]
    assert work.flop == 2 * (2 * 16 * 64 * 512 * 512)
