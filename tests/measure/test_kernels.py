import pytest
import torch

from jaxlens.kernel_works import works
from jaxlens.measure.cases import case
from jaxlens.measure.devices import Cpu
from jaxlens.measure.kernels import MOST_SETS, prepare, set_count
from jaxlens.measure.operations import kernel
from jaxlens.measure.refusals import Unavailable
from jaxlens.measure.suites import full


@pytest.fixture(scope="module")
def device():
    return Cpu()


HEADS = {"heads": 4, "kv_heads": 2, "head_dim": 16, "window": 0}
FLOAT = {"dtype": "float32", "kv_dtype": "float32"}


def test_the_product_is_the_product(device):
    one = kernel(case("gemm", {"m": 3, "n": 5, "k": 7, "dtype": "float32"}), device)
    inputs = one.make()
    expected = torch.einsum("mk,nk->mn", inputs["rows"], inputs["weight"])
    torch.testing.assert_close(one.run(inputs), expected)
    assert one.flop == 2 * 3 * 5 * 7
    assert one.moved_bytes == 4 * (3 * 7 + 7 * 5 + 3 * 5)


@pytest.mark.parametrize("cached", [0, 5])
def test_prefill_attends_to_the_cache_and_to_earlier_tokens(device, cached):
    sizes = {"batch": 2, "prompt_tokens": 6, "cached_tokens": cached, **HEADS, **FLOAT}
    one = kernel(case("attention_prefill", sizes), device)
    inputs = one.make()
    keys = inputs["key"].repeat_interleave(2, dim=1)
    values = inputs["value"].repeat_interleave(2, dim=1)
    scores = inputs["query"] @ keys.transpose(-1, -2) / 16**0.5
    hidden = torch.ones(6, 6 + cached).triu(cached + 1).bool()
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    torch.testing.assert_close(one.run(inputs), weights @ values)
    seen = sum(cached + i + 1 for i in range(6))
    assert one.flop == pytest.approx(4 * 2 * 4 * seen * 16)


def test_decode_attends_to_the_whole_cache(device):
    sizes = {"batch": 2, "context_tokens": 9, **HEADS, **FLOAT}
    one = kernel(case("attention_decode", sizes), device)
    inputs = one.make()
    keys = inputs["key"].repeat_interleave(2, dim=1)
    values = inputs["value"].repeat_interleave(2, dim=1)
    weights = (inputs["query"] @ keys.transpose(-1, -2) / 16**0.5).softmax(-1)
    torch.testing.assert_close(one.run(inputs), weights @ values)
    # q and result: 2 x 4 x 16; keys and values: 2 x 2 x 9 x 16; four bytes each.
    assert one.moved_bytes == 4 * 2 * (2 * 4 * 16 + 2 * 2 * 9 * 16)


def test_experts_are_a_weighted_sum_of_gated_layers(device):
    sizes = {
        "tokens": 5,
        "width": 8,
        "expert_width": 6,
        "top_k": 2,
        "experts": 4,
        "dtype": "float32",
        "distribution": "balanced",
    }
    one = kernel(case("moe", sizes), device)
    t = one.make()
    expected = torch.zeros(5, 8)
    ends = t["ends"].tolist()
    for token in range(5):
        for choice in range(2):
            row = int(t["row_of_token"][2 * token + choice])
            expert = next(x for x, end in enumerate(ends) if row < end)
            gate, up = (t["tokens"][token] @ t["up"][expert]).chunk(2)
            result = (torch.nn.functional.silu(gate) * up) @ t["down"][expert]
            expected[token] += t["share"][token, choice] * result
    torch.testing.assert_close(one.run(t), expected)
    assert one.flop == 6 * 10 * 8 * 6


def test_copies_count_what_is_read_and_written(device):
    one = kernel(case("copy", {"bytes": 4096}), device)
    inputs = one.make()
    assert inputs["from"].nbytes + inputs["to"].nbytes == 4096
    torch.testing.assert_close(one.run(inputs), inputs["from"])


def test_predictions_and_kernels_count_the_same_work(device):
    for one in full(device):
        counted, asked = kernel(one, device), works(one.kind, dict(one.sizes))
        if one.kind not in {"elementwise", "copy"}:
            flop = sum(float(part.flop) for part in asked.values())
            assert flop == pytest.approx(counted.flop)


def test_input_sets_exceed_the_cache_and_fit_into_memory(device):
    assert set_count(1.0, device) == MOST_SETS
    assert set_count(device.cache_bytes, device) == 2
    assert set_count(0.4 * device.memory_bytes, device) == 1
    with pytest.raises(Unavailable, match="to fit"):
        set_count(device.memory_bytes, device)
    prepared = prepare(kernel(case("copy", {"bytes": 2**24}), device), device)
    assert prepared.sets * 2**24 > device.cache_bytes
    assert prepared.fills_cache
    assert not prepared.replayed  # a processor has no graphs


def test_what_a_processor_lacks_is_said(device):
    with pytest.raises(Unavailable, match="fp8 unit"):
        kernel(case("gemm", {"m": 16, "n": 16, "k": 16, "dtype": "fp8"}), device)
    with pytest.raises(ValueError, match="expected an operation"):
        sizes = {"operation": "x", "tokens": 1, "width": 1, "dtype": "float32"}
        kernel(case("elementwise", sizes), device)
