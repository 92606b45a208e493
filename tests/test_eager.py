"""Eager execution in `predict`: launches, unfused traffic and whole squares of scores."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxlens import load_profile
from jaxlens.deployments import Deployment, Workload
from jaxlens.eager import launches_per_pass, unfused
from jaxlens.loading import load_model
from jaxlens.loads import Load
from jaxlens.models import load_shape
from jaxlens.predictions import predict
from jaxlens.serving import host_seconds, machine, step
from jaxlens.steps import items
from jaxlens.works import Work

PROFILE = load_profile("a100-pcie-40gb", "hf-eager")
EAGER = Deployment(fused=False)
GPT2 = load_model("openai-community/gpt2")


def prefill(tokens, batch=1.0):
    return Load(prefill_sequences=batch, prefill_tokens=tokens, emitting=batch)


def step_seconds(stack, tokens=64.0, model=GPT2):
    cost = step(model, PROFILE.chip, stack, EAGER, prefill(tokens), ("prefill",))
    return float(cost.seconds)


def test_a_short_pass_takes_as_long_as_its_launches():
    stack = replace(PROFILE.stack, host_exposed=0.0)
    launched = float(stack.host_launch_seconds) * launches_per_pass(load_shape("gpt2"))
    host = float(host_seconds(stack, EAGER, prefill(64.0), GPT2.launches))
    assert host - launched == pytest.approx(float(stack.host_step_seconds), rel=0.01)
    assert step_seconds(stack) == pytest.approx(host, rel=1e-4)
    halved = replace(stack, host_launch_seconds=0.5 * stack.host_launch_seconds)
    assert step_seconds(stack) - step_seconds(halved) == pytest.approx(
        0.5 * launched, rel=1e-3
    )


def test_launches_of_gpt2_are_counted_by_hand():
    # A layer: 6 of norm, residual and copies; 3 of scores; 2 products; 2 for each of four
    # matrices; then 2 of norm and residual, 8 of the activation, 2 for each of two matrices.
    assert launches_per_pass(load_shape("gpt2")) == 12.0 + 12.0 * (19.0 + 14.0)


def test_a_loop_over_experts_launches_for_each_of_them():
    few, many = (
        launches_per_pass(load_shape(name))
        for name in ("mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen3-30B-A3B")
    )
    assert many > 10.0 * few


def test_kernels_that_are_captured_in_graphs_cost_the_host_nothing():
    stack = load_profile("h100-sxm").stack
    assert float(stack.host_launch_seconds) == 0.0
    alone = host_seconds(stack, Deployment(), Load(), 1e4)
    assert float(alone) == float(host_seconds(stack, Deployment(), Load()))


def test_unfused_attention_multiplies_the_whole_square():
    def scores(deployment):
        asked = items(GPT2, deployment, prefill(512.0), ("prefill",))
        works = [i for i in asked if isinstance(i.asks, Work)]
        return sum(float(i.asks.flop) for i in works if i.asks.role == "attention")

    # causal: (512 + 1) / 2 of 512 keys for each query on average
    assert scores(EAGER) / scores(Deployment()) == pytest.approx(2.0 * 512.0 / 513.0)


def test_small_tensors_stay_in_l2_and_large_ones_do_not():
    stack = replace(PROFILE.stack, l2_saving=0.6, l2_share=0.5, elementwise_traffic=1.0)
    moved = []
    for size in (1e-3, 1.0, 1e3):
        tensor = size * 0.5 * float(PROFILE.chip.l2_bytes)
        asked = Work(
            role="elementwise", mix=None, hbm_bytes=tensor, activation_bytes=tensor
        )
        seen = unfused(asked, PROFILE.chip, stack, 1.0, 0.0)
        moved.append(float(seen.hbm_bytes) / tensor)
    assert moved == pytest.approx([0.4, 0.7, 1.0], abs=1e-4)


def test_a_locked_clock_stretches_the_clocked_share_of_a_launch():
    low = replace(EAGER, clock_hz=0.5 * float(PROFILE.chip.boost_hz))
    stack = replace(PROFILE.stack, launch_clocked=0.4)
    slow, fast = (
        machine(PROFILE.chip, stack, d).stack.kernel_seconds for d in (low, EAGER)
    )
    assert float(slow / fast) == pytest.approx(1.4)


def test_gradients_of_an_eager_step_are_finite():
    def seconds(scale):
        deployment = replace(EAGER, batch=4.0 * scale, clock_hz=1.1e9 * scale)
        workload = Workload(prompt_tokens=256.0 * scale, output_tokens=32.0)
        said = predict(GPT2, PROFILE, deployment, workload)
        return said.seconds_per_output_token + said.joules_per_output_token

    slope = float(jax.grad(seconds)(1.0))
    numeric = float(seconds(1.0 + 1e-5) - seconds(1.0 - 1e-5)) / 2e-5
    assert np.isfinite(slope)
    assert slope == pytest.approx(numeric, rel=1e-3)


def test_prompts_of_a_step_cost_the_host_their_own_time():
    stack = load_profile("h100-sxm").stack
    plain = Load(decode_sequences=8.0)
    more = replace(plain, prefill_sequences=2.0)
    extra = host_seconds(stack, Deployment(), more) - host_seconds(
        stack, Deployment(), plain
    )
    each = float(stack.host_prompt_seconds) + float(stack.host_sequence_seconds)
    assert float(extra) == pytest.approx(2.0 * each)
