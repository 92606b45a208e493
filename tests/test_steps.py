from dataclasses import replace

import jax
import pytest

from jaxlens import Deployment, Workload, load_model, load_profile, predict
from jaxlens.loads import Load
from jaxlens.rooflines import Machine
from jaxlens.steps import Routing, draw, items, lines, total
from jaxlens.works import Message, Work

PROFILE = load_profile("h100-sxm", "vllm-0.11")
MACHINE = Machine(chip=PROFILE.chip, stack=PROFILE.stack, clock_share=1.0, sm_share=1.0)
DECODE = Load(decode_sequences=32.0, decode_context=1000.0, emitting=32.0)
MIXED = replace(DECODE, prefill_sequences=1.0, prefill_tokens=512.0)


@pytest.fixture(scope="module")
def llama():
    return load_model("meta-llama/Llama-3.1-8B")


@pytest.fixture(scope="module")
def mixture():
    return load_model("Qwen/Qwen3-30B-A3B")


def priced(model, load, *phases, machine=MACHINE, **layout):
    asked = items(model, Deployment(**layout), load, phases)
    return lines(asked, machine, 20.0)


def seconds(*arguments, **keywords):
    return float(total(priced(*arguments, **keywords).values()).seconds)


def test_a_line_counts_all_layers(llama):
    one = replace(llama, blocks=tuple(replace(b, layers=1.0) for b in llama.blocks))
    whole, single = (priced(m, DECODE, "decode") for m in (llama, one))
    for name in ("attention: attention out", "feed-forward: up"):
        assert float(whole[name].seconds) == pytest.approx(
            32 * float(single[name].seconds)
        )


def test_the_total_is_the_sum_of_the_lines(llama):
    parts = priced(llama, MIXED, "decode", "prefill", tensor_parallel=2.0)
    summed = total(parts.values())
    for field in ("seconds", "flop_joules", "hbm_joules", "kv_joules", "link_joules"):
        expected = sum(float(getattr(line, field)) for line in parts.values())
        assert float(getattr(summed, field)) == pytest.approx(expected)
        assert expected > 0.0


def test_decode_reads_every_weight_once(llama):
    # 8.03e9 parameters of 2 bytes, less the table of 128256 x 4096 that is looked up in,
    # and the cache of 32 x 1000 tokens x 131072 bytes
    parts = total(priced(llama, DECODE, "decode").values())
    weights = 2 * (8.03e9 - 128256 * 4096)
    per_byte = PROFILE.chip.hbm_j_per_byte
    cache = 32 * 1000 * 131072 + 32 * 131072  # read, and one token written
    assert float(parts.kv_joules) / per_byte == pytest.approx(cache)
    # activations and element-wise passes come on top
    assert weights < float(parts.hbm_joules) / per_byte < 1.15 * weights


def test_work_has_no_coefficient_in_it(llama):
    # A description is made of sizes alone: no chip and no stack is asked for.
    for item in items(llama, Deployment(), MIXED, ("decode", "prefill")):
        assert isinstance(item.asks, Work | Message)
        assert all(
            isinstance(leaf, float) or leaf.ndim == 0 for leaf in jax.tree.leaves(item)
        )


def test_tensor_parallel_is_faster_than_one_gpu_and_slower_than_ideal(llama):
    one = seconds(llama, DECODE, "decode")
    four = seconds(llama, DECODE, "decode", tensor_parallel=4.0)
    assert one / 4 < four < one


def test_a_pipeline_without_sends_takes_as_long_per_layer(llama):
    one = priced(llama, DECODE, "decode")
    two = priced(llama, DECODE, "decode", pipeline_parallel=2.0)
    sent = two.pop("pipeline: send")
    assert float(sent.seconds) > 0.0
    assert float(one.pop("pipeline: send").seconds) == 0.0
    assert float(total(two.values()).seconds) == pytest.approx(
        float(total(one.values()).seconds)
    )


def test_waiting_for_the_busiest_rank_goes_with_the_skew(mixture):
    layout = {"tensor_parallel": 4.0, "expert_parallel": 4.0}
    stack = replace(PROFILE.stack, experts_wait=1.0)
    machine = replace(MACHINE, stack=stack)

    def routing(skew):
        knobs = {**layout, "routing_skew": skew}
        return priced(mixture, DECODE, "decode", machine=machine, **knobs)[
            "experts: routing"
        ].seconds

    assert float(routing(0.8)) > float(routing(0.0)) > 0.0


def test_each_block_of_experts_waits_for_its_own(mixture):
    stack = replace(PROFILE.stack, experts_wait=1.0)
    machine = replace(MACHINE, stack=stack)
    layout = {"tensor_parallel": 4.0, "expert_parallel": 4.0}
    halves = tuple(
        replace(block, layers=block.layers / 2.0) for block in mixture.blocks
    )
    doubled = replace(mixture, blocks=halves + halves)
    one = seconds(mixture, DECODE, "decode", machine=machine, **layout)
    two = seconds(doubled, DECODE, "decode", machine=machine, **layout)
    assert two == pytest.approx(one)


def test_routing_counts_the_tokens_of_all_replicas(mixture):
    def excess(**layout):
        asked = items(mixture, Deployment(**layout), DECODE, ("decode",))
        (routing,) = [i.asks for i in asked if isinstance(i.asks, Routing)]
        return float(routing.excess_load)

    alone = excess(tensor_parallel=4.0, expert_parallel=4.0)
    joined = excess(tensor_parallel=2.0, data_parallel=2.0, expert_parallel=4.0)
    assert excess(tensor_parallel=4.0) == 0.0
    assert 0.0 < joined < alone  # twice as many tokens over as many ranks


def test_launch_gaps_draw_part_of_the_busy_floor(llama):
    line = total(priced(llama, DECODE, "decode").values())
    full, none = draw(line, 1.0), draw(line, 0.0)
    assert full.active_seconds == line.seconds
    gaps = float(full.active_seconds - none.active_seconds)
    assert gaps == pytest.approx(float(line.launch_seconds))


def test_a_program_is_traced_once_whatever_the_sizes():
    traces = []

    def counted(*arguments):
        traces.append(1)
        return predict(*arguments)

    compiled = jax.jit(counted)
    names = (
        "meta-llama/Llama-3.1-8B",
        "meta-llama/Llama-3.1-70B",
        "meta-llama/Llama-2-7b-hf",
        "Qwen/Qwen3-14B",
    )
    for name in names:
        for layout in ({}, {"batch": 256.0, "tensor_parallel": 8.0, "clock_hz": 1e9}):
            for gpu in ("h100-sxm", "a100-sxm-80gb"):
                jax.eval_shape(
                    compiled,
                    load_model(name),
                    load_profile(gpu, "vllm-0.11"),
                    Deployment(**layout),
                    Workload(prompt_tokens=2000.0),
                )
    assert len(traces) == 1
