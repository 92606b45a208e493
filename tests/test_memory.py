import pytest

from jaxlens import Deployment, Workload, load_model, load_profile
from jaxlens.memory import memory, sequence_bytes, weights_bytes
from jaxlens.models import known_models, load_shape
from jaxlens.parameters import parameters
from jaxlens.precisions import FORMATS
from jaxlens.transformers import model


@pytest.mark.parametrize("name", sorted(known_models()))
def test_weights_agree_with_the_parameter_count(name):
    shape = load_shape(name)
    count, formats = parameters(shape), shape.formats
    expected = (
        count.attention * FORMATS[formats.attention]
        + count.feed_forward * FORMATS[formats.feed_forward]
        + count.experts_total * FORMATS[formats.experts]
        + (count.embedding + count.head) * FORMATS[formats.head]
        + (count.routers + count.norms) * 2.0
    )
    held = weights_bytes(model(shape), Deployment())
    assert float(held) == pytest.approx(expected, rel=0.005)


@pytest.fixture(scope="module")
def llama():
    return load_model("meta-llama/Llama-3.1-70B")


@pytest.mark.parametrize("degree", [1.0, 2.0, 4.0, 8.0])
def test_llama_70b_weights(llama, degree):
    # 70.55e9 parameters in bf16 (model card, Meta, 2024), less norms of 1.3e6
    layout = Deployment(tensor_parallel=degree)
    assert float(weights_bytes(llama, layout)) == pytest.approx(
        141.1e9 / degree, rel=1e-3
    )


def test_llama_70b_cache(llama):
    # 80 layers x 2 tensors x 8 heads x 128 x 2 bytes = 327,680 bytes for each token
    token = 80 * 2 * 8 * 128 * 2
    assert token == 327_680
    for degree, share in ((1.0, 1.0), (8.0, 1 / 8), (16.0, 1 / 8), (64.0, 1 / 8)):
        layout = Deployment(tensor_parallel=degree)
        assert sequence_bytes(llama, layout, 1000.0) == 1000 * token * share


def test_replicas_hold_all_and_stages_a_part(llama):
    whole = weights_bytes(llama, Deployment())
    assert weights_bytes(llama, Deployment(data_parallel=4.0)) == whole
    assert weights_bytes(llama, Deployment(pipeline_parallel=4.0)) == whole / 4


def test_more_ranks_than_kv_heads_hold_replicas_of_their_weights(llama):
    # Beyond 8 ranks each still holds one key and one value head: 2 x 8192 x 128 of 80 layers
    eight = weights_bytes(llama, Deployment(tensor_parallel=8.0))
    sixteen = weights_bytes(llama, Deployment(tensor_parallel=16.0))
    replicas = 80 * 2 * 8192 * 128 * 2
    assert sixteen - replicas == pytest.approx((eight - replicas) / 2)


def test_a_latent_cache_is_replicated_over_tensor_ranks():
    deepseek = load_model("deepseek-ai/DeepSeek-V3")
    for degree in (1.0, 8.0):
        layout = Deployment(tensor_parallel=degree)
        # 61 layers x (512 + 64) x 2 bytes for each token
        assert sequence_bytes(deepseek, layout, 100.0) == 100 * 61 * 576 * 2


def test_a_window_bounds_the_cache():
    gemma = load_model("google/gemma-3-12b-it")  # 8 of 48 layers see everything
    layer = 2 * 8 * 256 * 2
    held = sequence_bytes(gemma, Deployment(), 5000.0)
    assert held == (8 * 5000 + 40 * 1024) * layer


def test_a_state_does_not_grow_with_the_context():
    hybrid = load_model("nvidia/NVIDIA-Nemotron-Nano-9B-v2")
    states = 27 * 128 * 80 * 128 * 4
    layer = 2 * 8 * 128 * 2
    for tokens in (0.0, 1000.0):
        held = sequence_bytes(hybrid, Deployment(), tokens)
        assert held == states + 4 * tokens * layer


def test_experts_are_spread_over_all_ranks_that_share_them():
    mixture = load_model("Qwen/Qwen3-30B-A3B")
    experts = 48 * 128 * 3 * 2048 * 768 * 2
    one = weights_bytes(mixture, Deployment())
    eight = Deployment(data_parallel=8.0, expert_parallel=8.0)
    assert one - weights_bytes(mixture, eight) == pytest.approx(experts * 7 / 8)
    sliced = Deployment(tensor_parallel=4.0)
    spread = Deployment(tensor_parallel=4.0, expert_parallel=4.0)
    assert weights_bytes(mixture, sliced) == weights_bytes(mixture, spread)


def test_slack_is_signed_and_adds_up(llama):
    profile = load_profile("h100-sxm", "vllm-0.11")
    chip, stack = profile.chip, profile.stack
    workload = Workload(prompt_tokens=1024.0, output_tokens=256.0)

    def held(**layout):
        return memory(llama, chip, stack, Deployment(**layout), workload)

    assert held(batch=1.0).slack_bytes < 0.0  # 141 GB on one 80 GB GPU
    fits = held(batch=64.0, tensor_parallel=8.0)
    assert fits.slack_bytes > 0.0
    assert fits.kv_bytes == 64 * 1280 * 327_680 / 8
    parts = (
        fits.weights_bytes
        + fits.kv_bytes
        + fits.activation_bytes
        + fits.overhead_bytes
        + fits.slack_bytes
    )
    assert float(parts) == pytest.approx(chip.hbm_bytes * stack.memory_share)
    assert held(batch=65.0, tensor_parallel=8.0).slack_bytes < fits.slack_bytes
