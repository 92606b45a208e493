from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxlens import Deployment, Workload, load_model, load_profile, predict
from jaxlens.overlap import hbm_bytes, staged_seconds
from jaxlens.precisions import precision
from jaxlens.rooflines import Machine
from jaxlens.steps import Staged, line
from jaxlens.works import Message, Work

PROFILE = load_profile("h100-sxm", "vllm-0.11")
WORKLOAD = Workload(prompt_tokens=2048.0, output_tokens=128.0)


@pytest.fixture(scope="module")
def llama():
    return load_model("meta-llama/Llama-3.1-8B")


def test_staged_seconds_by_hand():
    # Four chunks of 3 s (4 s beside the collective) and 2 s: 3 + 3 max(4, 2) + 2
    hard = 3.0 + 3 * 4.0 + 2.0
    assert float(staged_seconds(3.0, 4.0, 2.0, 4.0, 0.0)) == pytest.approx(hard)
    smooth = float(staged_seconds(3.0, 4.0, 2.0, 4.0, 0.05))
    assert hard < smooth < hard + 3 * 4.0 * 0.05**0.5


def test_contention_goes_from_the_longer_of_both_to_their_sum():
    # Four chunks as above: beside each other nothing overlaps, 3 + 3 (4 + 2) + 2.
    assert float(staged_seconds(3.0, 4.0, 2.0, 4.0, 1.0)) == pytest.approx(23.0)
    slope = jax.grad(lambda w: staged_seconds(3.0, 4.0, 2.0, 4.0, w))(0.05)
    assert slope > 0.0


def test_one_stage_is_sequential():
    assert float(staged_seconds(3.0, 5.0, 2.0, 1.0, 0.05)) == 5.0


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


def test_hbm_traffic_of_a_collective_by_hand():
    # 8 ranks pass 7/8 of 16 MB around, an all-reduce twice; each byte is read and written.
    sent = Message(kind="all-gather", payload_bytes=16e6, ranks=8.0)
    assert float(hbm_bytes(sent)) == pytest.approx(2 * 14e6)
    reduced = replace(sent, kind="all-reduce")
    assert float(hbm_bytes(reduced)) == pytest.approx(4 * 14e6)
    assert float(hbm_bytes(replace(sent, ranks=1.0))) == 0.0


# One chunk of a product that HBM limits: 100 MB of weights for 8 rows
WEIGHTS = Work(
    role="gemm",
    flop=2 * 8 * 5e7,
    rows=8.0,
    columns=7000.0,
    depth=7000.0,
    mix=precision("bf16"),
    hbm_bytes=1e8,
    activation_bytes=1e6,
)
# ... and of one that FLOPs limit
ROWS = replace(WEIGHTS, rows=8192.0, flop=2 * 8192 * 5e7)
SENT = Message(kind="all-reduce", payload_bytes=1e7, ranks=8.0)
MACHINE = Machine(chip=PROFILE.chip, stack=PROFILE.stack, clock_share=1.0, sm_share=1.0)


def staged_line(product=ROWS, sent=SENT, stages=4.0, sms=20.0, machine=MACHINE):
    return line(Staged(product=product, messages=(sent,), stages=stages), machine, sms)


def test_one_stage_takes_no_sms_away():
    apart = line(ROWS, MACHINE, 20.0).seconds + line(SENT, MACHINE, 20.0).seconds
    assert float(staged_line(stages=1.0).seconds) == pytest.approx(float(apart))
    # ... so more of them only shorten the collective.
    times = [float(staged_line(stages=1.0, sms=sms).seconds) for sms in (2, 20, 100)]
    assert times == sorted(times, reverse=True)


def test_staging_takes_sms_from_the_product():
    # The collective is nothing: what remains is a product on fewer SMs.
    nothing = replace(SENT, payload_bytes=0.0)
    few, many = (float(staged_line(sent=nothing, sms=sms).seconds) for sms in (1, 100))
    assert many > 2.0 * few


def test_both_share_hbm():
    # With few rows HBM limits both: a product beside a large collective waits for it.
    def both(per_byte):
        chip = replace(PROFILE.chip, link_bytes_per_s=1e15)
        stack = replace(PROFILE.stack, collective_sm_bytes_per_s=1e15)
        machine = replace(MACHINE, chip=chip, stack=stack)
        sent = replace(SENT, payload_bytes=per_byte * WEIGHTS.hbm_bytes)
        return float(staged_line(WEIGHTS, sent, machine=machine, sms=1.0).seconds)

    bandwidth = PROFILE.chip.hbm_bytes_per_s * PROFILE.stack.gemm_byte_efficiency
    traffic = float(hbm_bytes(replace(SENT, payload_bytes=WEIGHTS.hbm_bytes)))
    added = both(1.0) - both(0.0)
    assert added == pytest.approx(0.75 * traffic / bandwidth, rel=0.1)


def test_energy_does_not_overlap():
    staged, product = staged_line(stages=4.0), line(ROWS, MACHINE, 20.0)
    assert float(staged.flop_joules) > float(product.flop_joules)  # padded chunks
    quarter = line(replace(SENT, payload_bytes=SENT.payload_bytes / 4), MACHINE, 20.0)
    assert float(staged.link_joules) == pytest.approx(4 * float(quarter.link_joules))
    # Each chunk reads all of the weights, and its share of the activations.
    expected = 4 * WEIGHTS.hbm_bytes - 3 * WEIGHTS.activation_bytes
    per_byte = PROFILE.chip.hbm_j_per_byte
    assert float(staged.hbm_joules) == pytest.approx(expected * per_byte)


def test_every_chunk_is_launched():
    one, four = staged_line(stages=1.0), staged_line(stages=4.0)
    assert float(four.launch_seconds) == pytest.approx(4 * float(one.launch_seconds))


@pytest.mark.parametrize("ranks", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("payload", [0.0, 1e7])
@pytest.mark.parametrize("stages", [1.0, 4.0])
def test_gradients_are_finite_and_right(ranks, payload, stages):
    def seconds(knobs):
        count, sms, size = knobs
        sent = replace(SENT, payload_bytes=payload + 1e6 * size, ranks=ranks)
        return staged_line(sent=sent, stages=count, sms=sms).seconds

    at = jnp.array([stages, 20.0, 0.0])
    slope = jax.grad(seconds)(at)
    assert jnp.isfinite(slope).all()
    for knob, width in enumerate((1e-4, 1e-3, 1e-4)):
        step = width * jnp.eye(3)[knob]
        numeric = (seconds(at + step) - seconds(at - step)) / (2 * width)
        assert float(slope[knob]) == pytest.approx(float(numeric), rel=1e-3, abs=1e-10)
