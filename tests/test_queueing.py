import json
from dataclasses import fields, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from discrete_event_server import arrival_times, output_lengths, simulate

import jaxlens.cli
from jaxlens import Deployment, Workload, load_model, load_profile, predict
from jaxlens.cli import main
from jaxlens.queueing import Arrivals, LoadEstimate, at_load, server_load
from jaxlens.queueing.occupancy import Server, occupancy
from jaxlens.queueing.step_laws import StepLaw, step_laws
from jaxlens.serving import serve

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
LATENCIES = [
    field.name for field in fields(LoadEstimate) if field.name.startswith("seconds")
]
ESTIMATE = jax.jit(server_load, compiler_options=QUICK)
BY_RATE = jax.jit(jax.vmap(server_load, (None, 0, None)), compiler_options=QUICK)


def server(fixed, per_sequence, per_token, slots, budget, prompt, output=128.0, cv=0.5):
    law = StepLaw(
        fixed=fixed,
        per_sequence=per_sequence,
        per_prompt_token=per_token,
        per_prompt_token_full=per_token,
        slots=slots,
    )
    return Server(
        law=law,
        slots=slots,
        budget_tokens=budget,
        prompt_tokens=prompt,
        output_tokens=output,
        output_tokens_cv=cv,
    )


# An 8B model on one GPU, a 70B on four, and a small batch limit.
SERVERS = {
    "short prompts": server(0.008, 1e-4, 2.2e-5, 256.0, 8192.0, 256.0),
    "long prompts": server(0.008, 1e-4, 2.2e-5, 256.0, 8192.0, 1024.0),
    "many chunks": server(0.018, 1.2e-4, 6.4e-5, 256.0, 2048.0, 4096.0),
    "few slots": server(0.018, 1.2e-4, 1e-5, 16.0, 8192.0, 512.0, output=256.0),
}


def capacity(of):
    return float(occupancy(of, 1.0).capacity)


@cache
def observed(name, load, burstiness, count=20_000):
    of = SERVERS[name]
    if burstiness > 1.0 and of.slots < 32.0:
        count *= 3  # clusters are rare, and all of the tail of a short line
    law, random = of.law, np.random.default_rng(1)
    return simulate(
        lambda sequences, tokens: (
            law.fixed + law.per_sequence * sequences + law.per_prompt_token * tokens
        ),
        arrival_times(random, load * capacity(of), burstiness, count),
        output_lengths(random, of.output_tokens, of.output_tokens_cv, count),
        int(of.prompt_tokens),
        int(of.slots),
        int(of.budget_tokens),
    )


def errors(name, load, burstiness):
    """Relative errors of the mean, p50 and p99 of TTFT, and of mean TPOT."""
    of, seen = SERVERS[name], observed(name, load, burstiness)
    found = ESTIMATE(of, load * capacity(of), burstiness)
    pairs = (
        (found.seconds_to_first_token, seen.ttft_seconds.mean()),
        (found.seconds_to_first_token_p50, np.quantile(seen.ttft_seconds, 0.5)),
        (found.seconds_to_first_token_p99, np.quantile(seen.ttft_seconds, 0.99)),
        (found.seconds_per_output_token, seen.tpot_seconds.mean()),
    )
    return np.array([float(model) / simulated - 1.0 for model, simulated in pairs])


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
def test_poisson_arrivals_wait_as_in_the_simulation(name, load):
    mean, median, tail, token = np.abs(errors(name, load, 1.0))
    assert mean < 0.15
    assert median < 0.16
    assert tail < 0.27
    assert token < 0.06


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("load", [0.3, 0.6])
def test_clustered_arrivals_wait_as_in_the_simulation(name, load):
    mean, median, tail, token = np.abs(errors(name, load, 4.0))
    assert mean < 0.25
    assert median < 0.25
    assert tail < 0.35
    assert token < 0.15


@pytest.mark.parametrize("name", SERVERS)
def test_clusters_near_capacity_are_known_to_a_factor(name):
    mean, median, tail, token = errors(name, 0.85, 4.0)
    assert abs(mean) < 0.35
    assert abs(median) < 0.55
    assert -0.75 < tail < 0.5
    assert abs(token) < 0.15


def test_tails_of_tokens_are_those_of_the_simulation():
    for name in SERVERS:
        of, seen = SERVERS[name], observed(name, 0.6, 1.0)
        found = ESTIMATE(of, 0.6 * capacity(of), 1.0)
        between = np.quantile(seen.token_seconds, 0.99)
        request = np.quantile(seen.tpot_seconds, 0.99)
        assert float(found.seconds_between_tokens_p99) == pytest.approx(
            between, rel=0.3
        )
        assert float(found.seconds_per_output_token_p99) == pytest.approx(
            request, rel=0.25
        )


def test_the_simulated_server_runs_dry_at_the_modelled_capacity():
    for name in ("short prompts", "few slots"):
        below, above = observed(name, 0.85, 1.0), observed(name, 1.15, 1.0, 5000)
        assert above.ttft_seconds.mean() > 4.0 * below.ttft_seconds.mean()


def test_sequences_that_run_obey_littles_law():
    of = SERVERS["long prompts"]
    rate = 0.6 * capacity(of)
    found = ESTIMATE(of, rate, 1.0)
    by_hand = rate * 127.0 * float(found.seconds_per_output_token)
    assert float(found.running_sequences) == pytest.approx(by_hand, rel=1e-2)
    seen = observed("long prompts", 0.6, 1.0)
    assert float(found.running_sequences) == pytest.approx(seen.running, rel=0.05)


def test_the_mean_step_has_a_closed_form():
    # t = a / (1 - rate ((O - 1) b + L c)) = 0.008 / (1 - 10 (0.0127 + 0.005632))
    found = occupancy(SERVERS["short prompts"], 10.0)
    assert float(found.step_seconds) == pytest.approx(0.008 / (1 - 0.18332), rel=1e-4)


def test_capacity_is_what_slots_or_the_budget_allow():
    # 16 slots / 256 steps = 1/16 request a step of 0.018 + (0.0306 + 0.00512) / 16 s
    slots = capacity(SERVERS["few slots"])
    assert slots == pytest.approx(1 / 16 / (0.018 + 0.03572 / 16), rel=0.02)
    # 2048 / (4096 + 127) requests a step of 0.018 + x (0.01524 + 0.262144) s
    share = 2048 / 4223
    budget = capacity(SERVERS["many chunks"])
    assert budget == pytest.approx(share / (0.018 + share * 0.277384), rel=0.02)


def test_without_load_a_request_meets_an_idle_server():
    for of in SERVERS.values():
        found = ESTIMATE(of, 0.0, 1.0)
        law = of.law
        chunks = max(1.0, of.prompt_tokens / of.budget_tokens)
        bare = chunks * law.fixed + of.prompt_tokens * law.per_prompt_token
        assert float(found.seconds_to_first_token) == pytest.approx(bare, rel=1e-3)
        assert float(found.utilisation) < 1e-5


def test_a_lightly_loaded_server_adds_half_a_step():
    # Ten sequences decode, so that a step is nearly always in progress.
    of = server(0.01, 1e-6, 1e-9, 1e4, 1e6, 16.0, output=1001.0, cv=0.0)
    found = ESTIMATE(of, 1.0, 1.0)
    assert float(found.running_sequences) == pytest.approx(10.0, rel=0.01)
    assert float(found.seconds_to_first_token) == pytest.approx(0.015, rel=0.01)


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("burstiness", [0.0, 1.0, 4.0])
def test_latency_grows_with_load(name, burstiness):
    of = SERVERS[name]
    loads = np.concatenate([[0.0, 1e-3], np.linspace(0.02, 1.3, 65), [3.0]])
    found = BY_RATE(of, loads * capacity(of), burstiness)
    for quantity in ("", "_p50", "_p99"):
        values = np.asarray(getattr(found, f"seconds_to_first_token{quantity}"))
        assert np.all(np.isfinite(values))
        assert np.all(np.diff(values) > -1e-2 * values[1:]), quantity
    assert np.all(np.diff(np.asarray(found.utilisation)) > 0.0)
    overloaded = loads > 1.0
    assert np.all(np.asarray(found.load_slack)[overloaded] < 1e-4)
    median = np.asarray(found.seconds_to_first_token_p50)
    assert np.all(median <= np.asarray(found.seconds_to_first_token_p99))


def test_clusters_and_uneven_prompts_wait_longer():
    of = SERVERS["long prompts"]
    rate = 0.7 * capacity(of)
    plain = ESTIMATE(of, rate, 1.0).seconds_to_first_token_p99
    assert ESTIMATE(of, rate, 4.0).seconds_to_first_token_p99 > 1.1 * plain
    uneven = replace(of, prompt_tokens_cv=1.0)
    assert ESTIMATE(uneven, rate, 1.0).seconds_to_first_token_p99 > 1.1 * plain


def test_gradients_are_finite_everywhere():
    def latencies(of, rate, burstiness):
        found = server_load(of, rate, burstiness)
        return sum(getattr(found, name) for name in LATENCIES) + found.load_slack

    gradient = jax.jit(jax.grad(latencies, (0, 1, 2)), compiler_options=QUICK)
    cases = [
        *SERVERS.values(),
        server(0.01, 1e-4, 1e-5, 1.0, 8192.0, 512.0),
        server(0.01, 1e-4, 1e-5, 1.0, 8192.0, 1.0, output=1.0),
        server(0.01, 1e-4, 1e-5, 64.0, 8192.0, 512.0, output=1.0),
    ]
    # In float32, as sweeps run: what underflows there is safe in float64 too.
    for of in cases:
        single = jax.tree.map(np.float32, of)
        for load in (0.0, 0.5, 0.99, 1.0, 1.5):
            for burstiness in (0.0, 1.0, 4.0):
                rate = np.float32(load * capacity(of))
                found = gradient(single, rate, np.float32(burstiness))
                assert np.all(np.isfinite(jax.tree.leaves(found)))


def test_gradients_match_finite_differences():
    of = SERVERS["long prompts"]
    rate = 0.7 * capacity(of)
    for name in ("seconds_to_first_token_p99", "seconds_per_output_token"):

        def latency(rate, name=name):
            return getattr(server_load(of, rate, 2.0), name)

        step = 1e-4 * rate
        slope = (latency(rate + step) - latency(rate - step)) / (2.0 * step)
        assert float(jax.grad(latency)(rate)) == pytest.approx(float(slope), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "degree", "limit"),
    [("meta-llama/Llama-3.1-8B", 1.0, 0.03), ("openai/gpt-oss-120b", 2.0, 0.08)],
)
def test_a_step_law_follows_the_priced_steps(name, degree, limit):
    model, profile = load_model(name), load_profile("h100-sxm")
    workload = Workload(prompt_tokens=1024.0, output_tokens=256.0)
    most = Deployment(batch=256.0, tensor_parallel=degree)
    seconds, joules = step_laws(
        model, profile, most, workload, predict(model, profile, most, workload)
    )

    def priced(batch):
        found = serve(
            model, profile.chip, profile.stack, replace(most, batch=batch), workload
        )
        mixed = found.traffic.mixed
        tokens = mixed.prefill_sequences * mixed.prefill_tokens
        return found.decode.seconds, found.decode.joules, found.mixed.seconds, tokens

    batches = jnp.array([1.0, 4.0, 16.0, 64.0, 128.0, 256.0])
    several = jax.jit(jax.vmap(priced), compiler_options=QUICK)(batches)
    for batch, decode, energy, mixed, tokens in zip(batches, *several, strict=True):
        assert float(seconds.at(batch)) == pytest.approx(float(decode), rel=limit)
        assert float(joules.at(batch)) == pytest.approx(float(energy), rel=0.1)
        assert float(seconds.at(batch, tokens)) == pytest.approx(float(mixed), rel=0.1)


@pytest.fixture(scope="module")
def llama():
    return load_model("meta-llama/Llama-3.1-8B")


def loaded(model, rate, burstiness=1.0, **knobs):
    return at_load(
        model,
        load_profile("h100-sxm"),
        Deployment(**{"batch": 64.0, **knobs}),
        Workload(prompt_tokens=1024.0, output_tokens=256.0),
        Arrivals(requests_per_second=rate, burstiness=burstiness),
    )


def test_a_deployment_at_load_lies_between_a_lone_request_and_a_full_batch(llama):
    profile, workload = load_profile("h100-sxm"), Workload(output_tokens=256.0)
    alone = predict(llama, profile, Deployment(batch=1.0), workload)
    full = predict(llama, profile, Deployment(batch=64.0), workload)
    found = loaded(llama, 0.5 * float(full.requests_per_second))
    assert 0.4 < float(found.utilisation) < 0.6
    assert 1.0 < float(found.running_sequences) < 64.0
    token = float(found.seconds_per_output_token)
    assert float(alone.seconds_decode_step) < token
    assert token < float(full.seconds_per_output_token)
    assert float(found.seconds_to_first_token) > float(alone.seconds_prefill)
    assert float(found.joules_per_output_token) > float(full.joules_per_output_token)


def test_at_capacity_a_deployment_is_the_full_batch(llama):
    full = predict(llama, load_profile("h100-sxm"), Deployment(batch=64.0), Workload())
    found = loaded(llama, float(full.requests_per_second))
    ratio = float(found.capacity_requests_per_second / full.requests_per_second)
    assert ratio == pytest.approx(1.0, abs=0.03)
    token = float(found.seconds_per_output_token)
    assert token == pytest.approx(float(full.seconds_per_output_token), rel=0.05)
    joules = float(found.joules_per_output_token)
    assert joules == pytest.approx(float(full.joules_per_output_token), rel=0.05)


def test_an_idle_deployment_draws_idle_power(llama):
    found = loaded(llama, 0.0)
    chip = load_profile("h100-sxm").chip
    assert float(found.watts_per_gpu) == pytest.approx(float(chip.idle_watts), rel=1.0)
    assert float(found.watts_per_gpu) < 0.3 * float(chip.tdp_watts)


def test_replicas_share_what_arrives(llama):
    one, four = loaded(llama, 2.0), loaded(llama, 8.0, batch=256.0, data_parallel=4.0)
    for name in ("utilisation", "seconds_to_first_token_p99", "watts_per_gpu"):
        assert float(getattr(one, name)) == pytest.approx(float(getattr(four, name)))
    # A random quarter of clustered arrivals is less clustered.
    bursts = loaded(llama, 8.0, 4.0, batch=256.0, data_parallel=4.0)
    assert (
        bursts.seconds_to_first_token_p99
        < loaded(llama, 2.0, 4.0).seconds_to_first_token_p99
    )


def test_the_command_line_prints_latency_at_load(monkeypatch, capsys):
    monkeypatch.setattr(jaxlens.cli, "keep_compilations", lambda: None)
    monkeypatch.setattr(jaxlens.cli.predict, "stay_on_cpu", lambda: None)
    asked = ["predict", "meta-llama/Llama-3.1-8B", "--gpu", "h100-sxm", "-b", "64"]
    assert main([*asked, "--arrivals", "5", "--burstiness", "2", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)["at_load"]
    assert numbers["requests_per_second"] == 5.0
    assert numbers["burstiness"] == 2.0
    p50, p99 = (numbers[f"seconds_to_first_token_{name}"] for name in ("p50", "p99"))
    assert 0.0 < p50 < p99
    assert numbers["utilisation"] + numbers["load_slack"] == pytest.approx(1.0)
    assert main([*asked, "--arrivals", "500"]) == 0
    out = capsys.readouterr().out
    assert "TTFT at load, p99" in out
    assert "overload" in out
    assert main([*asked, "--arrivals", "-1"]) == 2
    assert "arrivals: expected a number from 0" in capsys.readouterr().err
