from dataclasses import replace

import numpy as np
import pytest

from jaxlens import Deployment, Workload, load_model, load_profile
from jaxlens.serving import decode_context, requested_clock, serve

PROFILE = load_profile("h100-sxm", "vllm-0.11")


@pytest.fixture(scope="module")
def llama():
    return load_model("meta-llama/Llama-3.1-8B")


def served(model, prompt=1024.0, output=256.0, profile=PROFILE, **knobs):
    deployment = Deployment(**{"batch": 64.0, **knobs})
    workload = Workload(prompt_tokens=prompt, output_tokens=output)
    return serve(model, profile.chip, profile.stack, deployment, workload)


def test_the_mean_context_is_biased_to_long_outputs():
    fixed = Workload(prompt_tokens=100.0, output_tokens=50.0, output_tokens_cv=0.0)
    assert decode_context(fixed) == 125.0
    # E[o^2] / (2 E[o]) = 50 x (1 + 1) / 2
    spread = replace(fixed, output_tokens_cv=1.0)
    assert decode_context(spread) == 150.0
    outputs = np.random.default_rng(0).exponential(50.0, 200_000)
    mean = 100.0 + np.sum(outputs**2) / 2.0 / np.sum(outputs)
    assert decode_context(spread) == pytest.approx(mean, rel=0.02)


def test_a_step_is_the_mean_of_its_mixture(llama):
    serving = served(llama)
    share = float(serving.traffic.mixed_share)
    mean = (1 - share) * serving.decode.seconds + share * serving.mixed.seconds
    assert float(serving.seconds_per_step) == pytest.approx(float(mean))
    assert float(serving.mixed.seconds) > float(serving.decode.seconds)


def test_long_outputs_leave_decode_alone(llama):
    serving = served(llama, prompt=64.0, output=1e6)
    assert float(serving.traffic.mixed_share) < 1e-3
    assert float(serving.seconds_per_step) == pytest.approx(
        float(serving.decode.seconds), rel=1e-2
    )


def test_few_requests_are_as_many_mixed_steps(llama):
    # 64 / 6400 requests a step; two in one step are rare
    serving = served(llama, prompt=64.0, output=6400.0)
    assert float(serving.traffic.mixed_share) == pytest.approx(0.01, rel=0.1)


def test_prompts_beyond_the_budget_take_their_share_of_steps(llama):
    # 64 / 1000 requests x 2048 tokens / 512 a step = 0.256
    serving = served(llama, prompt=2048.0, output=1000.0, chunk_tokens=512.0)
    assert float(serving.traffic.mixed_share) == pytest.approx(0.256, rel=0.1)
    assert float(serving.traffic.prefill_chunks) == 4.0
    assert 0.0 < float(served(llama, output=2.0).traffic.mixed_share) <= 1.0


def test_the_clock_stays_within_what_the_chip_supports():
    chip = PROFILE.chip
    clocks = [(1.0, chip.min_hz), (1e9, 1e9), (1e15, chip.max_hz)]
    for asked, expected in clocks:
        assert float(requested_clock(chip, Deployment(clock_hz=asked))) == expected


def test_no_step_draws_more_than_its_cap(llama):
    for cap in (300.0, 500.0, 700.0):
        serving = served(llama, batch=256.0, power_cap_watts=cap)
        for step in (serving.prefill, serving.decode, serving.mixed):
            assert float(step.joules / step.seconds) <= cap * 1.001


def test_a_lower_cap_slows_a_prefill_more_than_a_decode_step(llama):
    free, capped = served(llama), served(llama, power_cap_watts=350.0)
    prefill = float(capped.prefill.seconds / free.prefill.seconds)
    decode = float(capped.decode.seconds / free.decode.seconds)
    assert prefill > decode >= 1.0
    assert float(capped.prefill.clock_hz) < float(free.prefill.clock_hz)


def test_a_slow_host_sets_the_pace(llama):
    stack = replace(PROFILE.stack, host_step_seconds=1.0, host_exposed=0.0)
    serving = served(llama, profile=replace(PROFILE, stack=stack))
    host = 1.0 + 64 * float(stack.host_sequence_seconds)
    assert float(serving.decode.seconds) == pytest.approx(host, rel=1e-3)
    free = replace(
        PROFILE.stack,
        host_step_seconds=0.0,
        host_sequence_seconds=0.0,
        host_gpu_seconds=0.0,
    )
    none = served(llama, profile=replace(PROFILE, stack=free))
    assert float(none.decode.host_seconds) == pytest.approx(0.0, abs=1e-9)


def test_a_pipeline_keeps_its_stages_busy_with_parts_of_the_batch(llama):
    half = served(llama, batch=32.0)
    piped = served(llama, batch=64.0, pipeline_parallel=2.0)
    sends = piped.decode.lines["pipeline: send"].seconds
    stack = PROFILE.stack
    # The host drives another GPU and as many sequences again.
    host = float(stack.host_gpu_seconds + 32 * stack.host_sequence_seconds)
    gap = float(piped.decode.seconds - half.decode.seconds)
    assert -1e-9 <= gap <= float(sends) + host


def test_replicas_do_not_know_each_other(llama):
    one, four = served(llama), served(llama, batch=256.0, data_parallel=4.0)
    assert float(four.seconds_per_step) == pytest.approx(float(one.seconds_per_step))
    assert float(four.joules_per_step) == pytest.approx(float(one.joules_per_step))
