from dataclasses import replace

import pytest

from jaxlens import Deployment, Workload, load_model, load_profile, predict
from jaxlens.overlap import CONTENTION, staged_seconds

PROFILE = load_profile("h100-sxm", "vllm-0.11")
WORKLOAD = Workload(prompt_tokens=2048.0, output_tokens=128.0)


@pytest.fixture(scope="module")
def llama():
    return load_model("meta-llama/Llama-3.1-8B")


def test_staged_seconds_by_hand():
    # Four chunks of 3 s (4 s beside the collective) and 2 s: 3 + 3 max(4, 2) + 2
    hard = 3.0 + 3 * 4.0 + 2.0
    smooth = float(staged_seconds(3.0, 4.0, 2.0, 4.0))
    assert hard < smooth < hard + 3 * 4.0 * CONTENTION**0.5


def test_one_stage_is_sequential():
    assert float(staged_seconds(3.0, 5.0, 2.0, 1.0)) == 5.0


def estimate(model, **layout):
    return predict(model, PROFILE, Deployment(batch=32.0, **layout), WORKLOAD)


def total(estimates):
    return [
        float(estimates.seconds_prefill),
        float(estimates.seconds_per_output_token),
        float(estimates.joules_per_output_token),
    ]


def test_overlap_in_one_stage_changes_nothing(llama):
    apart = estimate(llama, tensor_parallel=4.0)
    staged = estimate(llama, tensor_parallel=4.0, overlap=True, stages=1.0)
    assert total(staged) == pytest.approx(total(apart), rel=1e-9)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B"])
def test_one_rank_has_nothing_to_overlap(name):
    model = load_model(name)
    apart = estimate(model)
    staged = estimate(model, overlap=True, stages=4.0, communication_sms=64.0)
    assert total(staged) == pytest.approx(total(apart), rel=1e-9)


def test_two_stages_hide_communication_of_a_large_prefill(llama):
    # A link slow enough for communication to matter
    slow = replace(PROFILE.chip, link_bytes_per_s=PROFILE.chip.link_bytes_per_s / 8)
    profile = replace(PROFILE, chip=slow)
    workload = Workload(prompt_tokens=8192.0, output_tokens=128.0)

    def prefill(**knobs):
        layout = Deployment(tensor_parallel=8.0, **knobs)
        return predict(llama, profile, layout, workload).seconds_prefill

    assert prefill(overlap=True, stages=2.0) < prefill()


def test_chunks_that_are_too_small_do_not_pay(llama):
    few = estimate(llama, tensor_parallel=8.0, overlap=True, stages=2.0)
    many = estimate(llama, tensor_parallel=8.0, overlap=True, stages=64.0)
    # Every chunk reads all weights and is launched anew.
    assert many.seconds_decode_step > few.seconds_decode_step
    assert many.joules_per_output_token > few.joules_per_output_token


def test_both_halves_of_a_sequence_parallel_all_reduce_overlap(llama):
    staged = estimate(
        llama, tensor_parallel=4.0, overlap=True, stages=2.0, sequence_parallel=True
    )
    names = staged.decode_seconds_by_operation
    assert "feed-forward: down with reduce-scatter with all-gather" in names
