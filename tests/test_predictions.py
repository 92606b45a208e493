from dataclasses import asdict, replace

import jax
import numpy as np
import pytest

from jaxlens import Deployment, Workload, load_model, load_profile, predict
from jaxlens.predictions import exact

PROFILE = load_profile("h100-sxm", "vllm-0.11")
WORKLOAD = Workload(prompt_tokens=1024.0, output_tokens=256.0)
LAYOUT = {"batch": 64.0, "tensor_parallel": 4.0}


@pytest.fixture(scope="module")
def llama():
    return load_model("meta-llama/Llama-3.1-70B-Instruct")


def estimate(model, profile=PROFILE, workload=WORKLOAD, **knobs):
    return predict(model, profile, Deployment(**{**LAYOUT, **knobs}), workload)


@pytest.fixture(scope="module")
def usual(llama):
    return estimate(llama)


def test_every_number_is_a_positive_scalar(usual):
    for path, value in jax.tree.leaves_with_path(usual):
        assert np.ndim(value) == 0
        assert np.isfinite(value), path
        if "slack" not in str(path):
            assert value >= 0.0, path


def test_rates_times_and_energies_agree(usual):
    step = float(usual.seconds_per_output_token)
    assert float(usual.output_tokens_per_second) == pytest.approx(64.0 / step)
    assert float(usual.requests_per_second) == pytest.approx(64.0 / step / 256.0)
    assert float(usual.gpus) == 4.0
    # watts x GPUs / tokens per second
    joules = float(usual.watts_per_gpu * 4.0 / usual.output_tokens_per_second)
    assert float(usual.joules_per_output_token) == pytest.approx(joules)
    assert float(usual.joules_per_request) == pytest.approx(256.0 * joules)
    parts = usual.joules_prefill_per_output_token + usual.joules_decode_per_output_token
    assert float(parts) == pytest.approx(joules)


def test_causes_add_up(usual):
    causes = sum(float(value) for value in asdict(usual.causes).values())
    assert causes == pytest.approx(float(usual.joules_per_output_token))


def test_operations_add_up(usual):
    seconds = sum(map(float, usual.decode_seconds_by_operation.values()))
    assert seconds == pytest.approx(float(usual.seconds_decode_step))
    seconds = sum(map(float, usual.prefill_seconds_by_operation.values()))
    assert seconds == pytest.approx(float(usual.seconds_prefill))  # one chunk
    joules = sum(map(float, usual.prefill_joules_by_operation.values()))
    assert joules == pytest.approx(float(usual.joules_to_first_token))
    joules = sum(map(float, usual.decode_joules_by_operation.values())) / 64.0
    assert joules == pytest.approx(float(usual.joules_decode_per_output_token))


def test_operations_add_up_under_a_cap(llama):
    capped = estimate(llama, power_cap_watts=300.0)
    seconds = sum(map(float, capped.prefill_seconds_by_operation.values()))
    assert seconds == pytest.approx(float(capped.seconds_prefill))


def test_decode_of_one_sequence_is_bound_by_the_weights(llama):
    # 141 GB over 4 x 3.35 TB/s are 10.5 ms: not faster, and not twice as slow
    one = estimate(llama, batch=1.0)
    floor = 141.1e9 / (4 * float(PROFILE.chip.hbm_bytes_per_s))
    assert floor < float(one.seconds_decode_step) < 2.0 * floor


def test_a_prefill_is_bound_by_its_flop(llama):
    # 2 x 70.6e9 FLOPs a token, 1024 tokens, 4 GPUs
    floor = 2 * 70.6e9 * 1024 / (4 * float(PROFILE.chip.peak_bf16_flop_per_s))
    assert floor < float(estimate(llama).seconds_prefill) < 3.0 * floor


def test_twice_the_replicas_serve_twice_the_requests(llama, usual):
    twice = estimate(llama, batch=128.0, data_parallel=2.0)
    rate = float(usual.output_tokens_per_second)
    assert float(twice.output_tokens_per_second) == pytest.approx(2.0 * rate)
    assert float(twice.joules_per_output_token) == pytest.approx(
        float(usual.joules_per_output_token)
    )


@pytest.mark.parametrize(
    ("knobs", "faster", "cheaper"),
    [
        ({"batch": 128.0}, False, True),
        ({"tensor_parallel": 8.0}, True, False),
        ({"clock_hz": 1.0e9}, False, None),
        ({"fused": False}, False, False),
    ],
)
def test_knobs_push_where_they_should(llama, usual, knobs, faster, cheaper):
    other = estimate(llama, **knobs)
    assert (other.seconds_decode_step < usual.seconds_decode_step) == faster
    if cheaper is not None:
        saved = other.joules_per_output_token < usual.joules_per_output_token
        assert saved == cheaper


@pytest.mark.parametrize(
    "field",
    ["hbm_bytes_per_s", "peak_bf16_flop_per_s", "link_bytes_per_s", "tdp_watts"],
)
def test_a_better_chip_is_never_slower(llama, usual, field):
    chip = replace(PROFILE.chip, **{field: 1.1 * getattr(PROFILE.chip, field)})
    better = estimate(llama, replace(PROFILE, chip=chip))
    assert better.seconds_per_output_token <= usual.seconds_per_output_token
    assert better.seconds_prefill <= usual.seconds_prefill


def test_a_thriftier_chip_takes_less(llama, usual):
    for field in ("idle_watts", "busy_watts", "hbm_j_per_byte", "bf16_j_per_flop"):
        chip = replace(PROFILE.chip, **{field: 0.9 * getattr(PROFILE.chip, field)})
        better = estimate(llama, replace(PROFILE, chip=chip))
        assert better.joules_per_output_token < usual.joules_per_output_token


def test_longer_prompts_take_longer(llama, usual):
    long = estimate(llama, workload=replace(WORKLOAD, prompt_tokens=4096.0))
    assert long.seconds_prefill > 3.5 * usual.seconds_prefill
    assert long.seconds_per_output_token > usual.seconds_per_output_token
    assert long.joules_to_first_token > 3.5 * usual.joules_to_first_token


def test_whole_numbers_do_as_well_as_floats(llama, usual):
    whole = predict(
        llama,
        PROFILE,
        Deployment(batch=64, tensor_parallel=4),
        Workload(prompt_tokens=1024, output_tokens=256),
    )
    assert float(whole.joules_per_output_token) == pytest.approx(
        float(usual.joules_per_output_token), rel=1e-12
    )


def test_a_deployment_that_does_not_fit_still_has_an_answer(llama):
    tight = estimate(llama, batch=64.0, tensor_parallel=1.0)
    assert tight.memory_slack_bytes < 0.0
    assert np.isfinite(tight.joules_per_output_token)


def test_sequence_parallelism_moves_as_many_bytes(llama, usual):
    other = estimate(llama, sequence_parallel=True)
    ratio = float(other.seconds_prefill / usual.seconds_prefill)
    assert ratio == pytest.approx(1.0, abs=0.05)


def test_compiled_and_batched_answers_are_the_same():
    small = load_model("openai-community/gpt2")
    batches = np.array([1.0, 7.0, 64.0])

    def joules(batch):
        deployment = Deployment(batch=batch)
        return predict(small, PROFILE, deployment, WORKLOAD).joules_per_output_token

    one_by_one = [float(joules(batch)) for batch in batches]
    together = jax.jit(jax.vmap(joules))(batches)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-9)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-30B-A3B", "nvidia/Nemotron-H-8B-Base-8K"])
def test_answers_without_jax_are_the_same(name):
    model = load_model(name)
    deployment = Deployment(**LAYOUT, expert_parallel=4.0, power_cap_watts=400.0)
    found = exact(model, PROFILE, deployment, WORKLOAD)
    expected = predict(model, PROFILE, deployment, WORKLOAD)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for own, other in pairs:
        assert not isinstance(own, jax.Array)
        assert float(own) == pytest.approx(float(other), rel=1e-9)


def test_answers_without_jax_take_many_at_once(llama):
    batches = np.array([1.0, 64.0, 512.0])
    layout = Deployment(**{**LAYOUT, "batch": batches})
    many = exact(llama, PROFILE, layout, WORKLOAD).joules_per_output_token
    one = estimate(llama).joules_per_output_token
    assert many.shape == (3,)
    assert float(many[1]) == pytest.approx(float(one), rel=1e-9)
