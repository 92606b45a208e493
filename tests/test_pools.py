import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlens.cli
from jaxlens import Deployment, Workload, load_model, load_profile, predict
from jaxlens.cli import main
from jaxlens.limits import Limits
from jaxlens.memory import sequence_bytes
from jaxlens.pools import (
    Pool,
    balanced_replicas,
    decode_load,
    predict_pools,
    prefill_load,
)
from jaxlens.pools.search import best_pools
from jaxlens.queueing import Arrivals

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
PROFILE = load_profile("h100-sxm")
WORKLOAD = Workload(prompt_tokens=1024.0, output_tokens=256.0)


@pytest.fixture(scope="module")
def llama():
    return load_model("meta-llama/Llama-3.1-8B")


def pool(batch=64.0, replicas=1.0, profile=PROFILE, **knobs):
    deployment = Deployment(batch=batch, **knobs)
    return Pool(profile=profile, deployment=deployment, replicas=replicas)


@pytest.fixture(scope="module")
def priced(llama):
    """Both pools of a model at a rate, compiled once."""

    def estimate(prefill, decode, workload, rate, burstiness):
        arrivals = Arrivals(requests_per_second=rate, burstiness=burstiness)
        return predict_pools(llama, prefill, decode, workload, arrivals)

    compiled = jax.jit(estimate, compiler_options=QUICK)

    def call(prefill=None, decode=None, workload=WORKLOAD, rate=5.0, burstiness=1.0):
        first, second = prefill or pool(16.0), decode or pool(128.0)
        return compiled(first, second, workload, rate, burstiness)

    return call


def test_the_kv_cache_of_llama_3_70b_takes_327680_bytes_a_token():
    # 2 (K and V) x 80 layers x 8 KV heads x 128 dimensions x 2 bytes
    model = load_model("meta-llama/Llama-3.1-70B-Instruct")
    assert sequence_bytes(model, Deployment(), 1.0) == pytest.approx(327_680.0)


def test_a_transfer_takes_the_bytes_of_a_prompt_over_the_network(priced):
    # 2 x 32 layers x 8 KV heads x 128 x 2 bytes x 1024 tokens over 50 GB/s
    found = priced(rate=1e-3)
    kv_bytes = 2 * 32 * 8 * 128 * 2 * 1024
    assert float(found.kv_bytes_per_request) == pytest.approx(kv_bytes)
    chip = PROFILE.chip
    seconds = kv_bytes / float(chip.network_bytes_per_s) + float(chip.network_seconds)
    # Sender and receiver tie: the smooth maximum adds at most 10 %.
    assert seconds <= float(found.seconds_transfer) < 1.11 * seconds
    # Four GPUs send and four receive: a quarter of the time.
    wide = pool(64.0, tensor_parallel=4.0)
    quarter = float(priced(wide, wide, rate=1e-3).seconds_transfer)
    assert quarter == pytest.approx(0.25 * float(found.seconds_transfer), rel=0.01)
    # The slower side decides.
    one_sided = float(priced(wide, pool(128.0), rate=1e-3).seconds_transfer)
    assert one_sided == pytest.approx(seconds, rel=0.02)


def test_a_busy_network_makes_transfers_wait(priced):
    slow = replace(PROFILE, chip=replace(PROFILE.chip, network_bytes_per_s=1e9))
    ends = pool(16.0, profile=slow), pool(128.0, profile=slow)
    calm, busy = (priced(*ends, rate=rate) for rate in (0.1, 6.0))
    assert float(busy.seconds_transfer) > 1.5 * float(calm.seconds_transfer)
    assert float(busy.network_slack) == pytest.approx(1.0 - 6.0 * 0.1342, rel=0.01)
    assert float(priced(*ends, rate=20.0).network_slack) < 0.0


def test_energy_is_conserved(priced):
    found = priced()
    parts = [
        float(getattr(found, f"joules_{part}_per_output_token"))
        for part in ("prefill", "decode", "transfer")
    ]
    assert sum(parts) == pytest.approx(float(found.joules_per_output_token))
    tokens_per_second = 5.0 * 256.0
    assert float(found.watts) == pytest.approx(
        tokens_per_second * float(found.joules_per_output_token), rel=1e-3
    )
    assert float(found.gpus) == 2.0


def test_full_pools_of_one_chip_take_the_parts_of_an_aggregated_deployment(
    llama, priced
):
    free = replace(
        PROFILE.chip, network_bytes_per_s=1e18, network_seconds=0.0, link_watts=0.0
    )
    profile = replace(PROFILE, chip=free)
    prefill, decode = pool(16.0, profile=profile), pool(64.0, profile=profile)
    capacity = priced(prefill, decode)
    # The decode pool is full: 64 sequences decode, as without pools.
    rate = 0.99 * float(capacity.decode.capacity_requests_per_second)
    full = priced(prefill, decode, rate=rate)
    together = predict(llama, profile, decode.deployment, WORKLOAD)
    assert float(full.joules_transfer_per_output_token) == 0.0
    assert float(full.seconds_transfer) < 1e-9
    assert float(full.joules_decode_per_output_token) == pytest.approx(
        float(together.joules_decode_per_output_token), rel=0.05
    )
    assert float(full.seconds_per_output_token) == pytest.approx(
        float(together.seconds_decode_step), rel=0.05
    )
    # A full prefill pool takes what prefills take alone, or less where they share steps.
    rate = 0.99 * float(capacity.prefill.capacity_requests_per_second)
    packed = float(priced(prefill, decode, rate=rate).prefill.joules_per_request)
    alone = float(together.joules_to_first_token)
    assert 0.6 * alone < packed < 1.05 * alone


def test_a_first_token_takes_prefill_transfer_and_a_decode_step(llama, priced):
    found = priced(rate=1e-4)
    alone = predict(llama, PROFILE, Deployment(batch=1.0), WORKLOAD)
    parts = float(alone.seconds_prefill) + float(found.seconds_transfer)
    parts += float(alone.seconds_decode_step)
    assert float(found.seconds_to_first_token) == pytest.approx(parts, rel=0.02)


def test_decoding_alone_is_not_held_up_by_prompts(llama, priced):
    short, long = (
        priced(workload=replace(WORKLOAD, prompt_tokens=tokens), rate=2.0)
        for tokens in (64.0, 4096.0)
    )
    rise = float(long.seconds_per_output_token / short.seconds_per_output_token)
    assert 1.0 < rise < 1.2  # longer KV caches, no prefills in between
    assert float(long.prefill.seconds) > 10.0 * float(short.prefill.seconds)


@pytest.mark.parametrize(
    ("prompt", "output"), [(1.0, 256.0), (1024.0, 1.0), (1.0, 1.0)]
)
def test_single_tokens_are_limits(priced, prompt, output):
    found = priced(workload=Workload(prompt_tokens=prompt, output_tokens=output))
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf)
    if prompt == 1.0:
        assert float(found.kv_bytes_per_request) == pytest.approx(131_072.0)
        assert float(found.prefill.seconds) < 0.03
    if output == 1.0:
        # One step of the decode pool for each request.
        assert float(found.decode.running_sequences) < 0.01
        assert float(found.seconds_per_output_token) < 0.03


def test_as_many_more_replicas_serve_as_many_more_requests(priced):
    one = priced(rate=4.0)
    three = priced(pool(16.0, 3.0), pool(128.0, 3.0), rate=12.0)
    for name in ("seconds_to_first_token_p99", "joules_per_output_token", "load_slack"):
        assert float(getattr(three, name)) == pytest.approx(float(getattr(one, name)))
    assert float(three.gpus) == 6.0


def test_balanced_pools_are_equally_busy(llama):
    arrivals = Arrivals(requests_per_second=50.0)
    for load, batch in ((prefill_load, 16.0), (decode_load, 128.0)):
        start = pool(batch, 1.0)
        first = load(llama, start, WORKLOAD, arrivals)
        count = balanced_replicas(first, start, arrivals, 0.7)
        balanced = load(llama, replace(start, replicas=count), WORKLOAD, arrivals)
        assert float(balanced.utilisation) == pytest.approx(0.7, rel=1e-3)


def test_too_much_load_and_too_little_memory_are_negative_slacks(priced):
    assert float(priced(rate=500.0).load_slack) < 0.0
    assert float(priced().load_slack) > 0.0
    crowded = priced(decode=pool(4096.0))
    assert float(crowded.memory_slack_decode_bytes) < 0.0
    assert float(crowded.memory_slack_prefill_bytes) > 0.0


def test_gradients_are_finite_and_right(llama):
    def objective(knobs):
        first = pool(16.0, knobs["prefills"], clock_hz=knobs["clock"])
        second = pool(knobs["batch"], knobs["decodes"])
        workload = replace(WORKLOAD, prompt_tokens=knobs["prompt"])
        arrivals = Arrivals(requests_per_second=knobs["rate"])
        found = predict_pools(llama, first, second, workload, arrivals)
        joules = found.joules_per_output_token * knobs["rate"]
        return found.seconds_to_first_token_p99 + joules + found.load_slack

    knobs = {
        "prefills": 1.5,
        "decodes": 2.0,
        "batch": 64.0,
        "clock": 1.5e9,
        "prompt": 1000.0,
        "rate": 6.0,
    }
    gradient = jax.value_and_grad(objective)
    for rate in (0.0, 1e3):
        _, slopes = gradient({**knobs, "rate": rate})
        assert all(bool(jnp.isfinite(slope)) for slope in slopes.values())
    _, slopes = gradient(knobs)
    for name in ("decodes", "clock", "prompt"):
        step = 1e-4 * knobs[name]
        high, low = (
            objective({**knobs, name: knobs[name] + side * step})
            for side in (1.0, -1.0)
        )
        slope = float(high - low) / (2.0 * step)
        assert float(slopes[name]) == pytest.approx(slope, rel=1e-2)


@pytest.fixture(scope="module")
def found():
    return best_pools(
        "meta-llama/Llama-3.1-8B",
        ["h100-sxm"],
        ["h100-sxm"],
        Arrivals(requests_per_second=10.0),
        WORKLOAD,
        Limits(ttft_seconds=0.5, tpot_seconds=0.02),
        max_gpus=4,
        count=3,
    )


def test_the_best_pools_meet_their_limits(found):
    assert 1 <= len(found.pairs) <= 3
    energies = [pair.estimate.joules_per_output_token for pair in found.pairs]
    assert energies == sorted(energies)
    for pair in found.pairs:
        estimate = pair.estimate
        assert estimate.gpus <= 4
        assert estimate.seconds_to_first_token <= 0.5 * 1.001
        assert estimate.seconds_per_output_token <= 0.02 * 1.001
        assert estimate.load_slack > 0.0
        assert estimate.memory_slack_decode_bytes > 0.0
    assert found.aggregated_best is not None


def test_no_neighbour_of_the_best_pools_is_better(llama, found):
    top = found.pairs[0]
    arrivals = Arrivals(requests_per_second=10.0)
    for batch in (0.5, 2.0):
        deployment = top.decode.deployment
        other = replace(
            top.decode, deployment=replace(deployment, batch=batch * deployment.batch)
        )
        rival = predict_pools(llama, top.prefill, other, WORKLOAD, arrivals)
        if (
            rival.seconds_per_output_token <= 0.02
            and rival.load_slack > 0.0
            and rival.memory_slack_decode_bytes >= 0.0
        ):
            assert float(rival.joules_per_output_token) > (
                0.999 * top.estimate.joules_per_output_token
            )


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(jaxlens.cli, "keep_compilations", lambda: None)
    code = main(["pools", "meta-llama/Llama-3.1-8B", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_line_prints_pairs(found, monkeypatch, capsys):
    ends = ("--prefill-gpu", "h100-sxm", "--decode-gpu", "h100-sxm")
    limits = ("--ttft", "500ms", "--tpot", "20ms", "--max-gpus", "4", "--top", "3")
    asked = (*ends, *limits, "--arrivals", "10", "--no-compare")
    code, out, _ = run(monkeypatch, capsys, *asked, "--json")
    numbers = json.loads(out)
    assert code == 0
    assert numbers["aggregated"] is None
    assert numbers["pairs"][0]["joules_per_output_token"] == pytest.approx(
        found.pairs[0].estimate.joules_per_output_token
    )
    assert numbers["pairs"][0]["decode"]["gpu"] == "h100-sxm"
    code, out, _ = run(monkeypatch, capsys, *asked, "--tpot", "1ms")
    assert code == 2
    assert "the fastest pools reach" in out


def test_user_errors_are_one_line_with_a_cure(monkeypatch, capsys):
    both = ("--prefill-gpu", "l40s", "--decode-gpu", "h100-sxm", "--arrivals", "1")
    code, _, err = run(monkeypatch, capsys, *both)
    assert code == 2
    assert "prefill gpu: expected a GPU with a known network" in err
    assert "--network" in err
    fine = ("--prefill-gpu", "h100-sxm", "--decode-gpu", "h100-sxm")
    for wrong, words in (
        (("--arrivals", "-1"), "arrivals: expected a number from 0"),
        (("--arrivals", "1", "--max-gpus", "1"), "max GPUs: expected a number from 2"),
        (("--arrivals", "1", "--objective", "speed"), "objective: expected one of"),
        (("--arrivals", "1", "--objective", "cost"), "give --prefill-price"),
        (("--arrivals", "1", "--tpot", "0"), "tpot: expected seconds above 0"),
    ):
        code, _, err = run(monkeypatch, capsys, *fine, *wrong)
        assert code == 2
        assert words in err
