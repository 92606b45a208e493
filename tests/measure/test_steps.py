import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jaxlens import load_model
from jaxlens.deployments import Deployment
from jaxlens.measure.benches import Bench
from jaxlens.measure.devices import Cpu
from jaxlens.measure.gauges import CpuGauge
from jaxlens.measure.refusals import Unavailable
from jaxlens.measure.step_rounds import measure_in_rounds
from jaxlens.measure.steps import (
    build,
    kernels_alone,
    launches_alone,
    load,
    ordered,
    step_loop,
    traced,
    with_layers,
)
from jaxlens.measure.windows import Rules, measured
from jaxlens.steps import items
from jaxlens.works import Work

DENSE, EXPERTS = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-30B-A3B"


@pytest.fixture(scope="module")
def device():
    return Cpu()


def small(name):
    """Returns the model with two layers and a small vocabulary; experts with 8 of them."""
    description = with_layers(load_model(name), 2)
    for block in description.blocks:
        if "top_k" in block.sizes:
            block.sizes.update(z=8.0, top_k=2.0)
    return type(description)(**{**vars(description), "vocabulary": 1000.0})


@pytest.mark.parametrize("name", [DENSE, EXPERTS])
@pytest.mark.parametrize(
    ("phase", "batch", "tokens"), [("decode", 3, 40), ("prefill", 2, 24)]
)
def test_a_step_does_the_flops_that_are_predicted(device, name, phase, batch, tokens):
    description, carried = small(name), load(phase, batch, tokens)
    step = build(description, carried, device, "float32")
    with FlopCounterMode(display=False) as counted:
        sampled = step()
    assert sampled.shape == (batch,)
    predicted = products = 0.0
    for item in items(description, Deployment(), carried, (phase,)):
        if isinstance(item.asks, Work):
            if item.asks.role == "attention":
                continue  # torch does not count the processor's; see the kernel tests
            predicted += float(item.layers) * float(item.asks.flop)
            products += 1
    assert products > 0
    assert counted.get_total_flops() == pytest.approx(predicted, rel=1e-6)


def test_layers_alternate_between_mixers_and_feeds():
    labels = [block.label for block in ordered(small(DENSE))]
    assert labels == [
        "embedding",
        *["attention", "feed-forward"] * 2,
        "head",
    ]


def test_the_residual_stream_runs_through_the_whole_step(device):
    step = build(small(DENSE), load("decode", 2, 8), device, "float32")
    tensors = {}
    for part in step.parts:
        part.run(tensors)
    assert torch.isfinite(tensors[frozenset({"o", "v"})]).all()
    assert tensors["stream"].shape == (2, 1024)


def test_a_step_of_every_mode_gives_the_same_tokens(device):
    with torch.inference_mode():
        step = build(small(DENSE), load("prefill", 1, 8), device, "float32")
        expected = step()
        for mode in ("eager", "graphed"):
            (call,) = step_loop(step, device, mode).calls
            assert torch.equal(call(), expected)
        with pytest.raises(ValueError, match="eager, compiled or graphed"):
            step_loop(step, device, "fast")


def test_kernels_alone_add_up_to_about_the_step(device):
    rules = Rules(
        window_seconds=0.05,
        warmup_seconds=0.02,
        longest_warmup_seconds=0.1,
        most_windows=3,
    )
    bench = Bench(device=device, gauge=CpuGauge(), rules=rules)
    with torch.inference_mode():
        step = build(small(DENSE), load("decode", 4, 64), device, "float32")
        whole = measured(device, bench.gauge, step_loop(step, device, "eager"), rules)
        alone = kernels_alone(step, bench, whole)
    assert alone["kernels_count"] == len(step.parts)
    assert alone["kernels_joules"] is None
    # Loose: other work on the machine disturbs one more than the other.
    assert 0.2 < alone["kernels_ratio"] < 5.0
    assert alone["kernels_ratio_spread"] > 0.0


def test_a_step_and_its_kernels_are_measured_in_the_same_rounds(device):
    rules = Rules(
        window_seconds=0.002, warmup_seconds=0.001, fewest_windows=3, most_windows=3
    )
    bench = Bench(device=device, gauge=CpuGauge(), rules=rules)
    with torch.inference_mode():
        step = build(small(DENSE), load("decode", 4, 64), device, "float32")
        expected, parts = step(), traced(step)
        for _ in range(2):  # the second starts from nothing again
            for _, launch in parts:
                launch()
        alone = launches_alone(step)
        found = measure_in_rounds(parts, alone, bench)
    tensors = parts[-1][1].args[0]
    assert torch.equal(tensors[frozenset({"o"})], expected)
    assert found["windows"] == 3
    assert found["kernels_count"] == len(step.parts) == len(parts)
    assert sum(map(len, alone.values())) == len(parts)
    assert 0.0 < found["seconds"] <= found["whole_seconds"] * 1.05
    assert 0.2 < found["kernels_ratio"] < 5.0
    assert found["kernels_seconds"] == pytest.approx(
        found["kernels_ratio"] * found["seconds"]
    )
    assert found["joules"] is None and found["kernels_joules"] is None


@pytest.mark.parametrize(
    "name", ["deepseek-ai/DeepSeek-V3", "nvidia/NVIDIA-Nemotron-Nano-9B-v2"]
)
def test_what_has_no_torch_counterpart_is_said(device, name):
    description = load_model(name)
    block = next(
        b for b in description.blocks if b.label in {"latent attention", "state space"}
    )
    alone = type(description)(**{**vars(description), "blocks": (block,)})
    with pytest.raises(Unavailable, match="choose a model without it"):
        build(with_layers(alone, 1), load("decode", 1, 8), device, "float32")
