import csv
import dataclasses
import math
import os
from pathlib import Path

import pytest

from jaxlens.caveats import notes
from jaxlens.deployments import Deployment, Workload
from jaxlens.fitted_profiles import FittedProfile, FittedValue, save_profile
from jaxlens.layouts import check_layout, expert_degrees, tensor_degrees
from jaxlens.models import load_shape
from jaxlens.predictions import predict
from jaxlens.profiles import load_chip
from jaxlens.requests import (
    check_memory,
    largest_batch,
    memory_slack_bytes,
    prepare,
)
from jaxlens.wall_plug import wall_plug

LLAMA = "meta-llama/Llama-3.1-8B"
MIXTURE = "openai/gpt-oss-120b"


def problems(name, **layout):
    deployment = Deployment(batch=4096.0, **layout)
    return check_layout(load_shape(name), load_chip("h100-sxm"), deployment)


def test_a_layout_that_engines_accept_has_no_problems():
    assert problems(LLAMA, tensor_parallel=4.0, data_parallel=2.0) == []
    assert problems(MIXTURE, tensor_parallel=4.0, expert_parallel=4.0) == []


@pytest.mark.parametrize(
    ("name", "layout", "words"),
    [
        (LLAMA, {"tensor_parallel": 3.0}, "32 attention heads, got 3"),
        (LLAMA, {"expert_parallel": 2.0}, "without experts, got 2"),
        (MIXTURE, {"tensor_parallel": 4.0, "expert_parallel": 3.0}, "128 experts"),
        (MIXTURE, {"tensor_parallel": 4.0, "expert_parallel": 8.0}, "4 ranks, got 8"),
        (LLAMA, {"pipeline_parallel": 33.0}, "32 layers, got 33"),
    ],
)
def test_what_engines_refuse_is_named_with_a_cure(name, layout, words):
    found = problems(name, **layout)
    assert any(words in problem for problem in found)
    assert all(": expected " in problem and "; " in problem for problem in found)


def test_heads_are_divided_or_replicated():
    # 8 KV heads: 16 ranks hold half of a group each, 3 ranks cannot share them.
    assert tensor_degrees(load_shape(LLAMA), 32) == (1, 2, 4, 8, 16, 32)
    # 40 query heads on 8 KV heads: 5 divides 40 but neither divides nor holds 8.
    assert 5 not in tensor_degrees(load_shape("Qwen/Qwen3-14B"), 64)


def test_experts_spread_over_tensor_and_data_parallel_ranks():
    shape = load_shape(MIXTURE)
    assert expert_degrees(shape, 4, 2) == (1, 2, 4, 8)
    assert expert_degrees(load_shape(LLAMA), 4, 2) == (1,)


def test_every_group_needs_a_sequence():
    deployment = Deployment(batch=3.0, data_parallel=2.0, pipeline_parallel=2.0)
    found = check_layout(load_shape(LLAMA), load_chip("h100-sxm"), deployment)
    assert "dp x pp = 4" in found[0]


def test_measured_layouts_are_accepted(data_folder):
    degrees = (
        "tensor_parallel",
        "expert_parallel",
        "pipeline_parallel",
        "data_parallel",
    )
    seen = set()
    for path in (data_folder / "serving").glob("*.csv"):
        with path.open() as file:
            for row in csv.DictReader(file):
                seen.add((row["model"], *(float(row[name] or 1.0) for name in degrees)))
    assert seen
    for model, *layout in sorted(seen):
        found = problems(model, **dict(zip(degrees, layout, strict=True)))
        assert found == [], model


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field in ("batch", "tensor_parallel", "pipeline_parallel", "data_parallel")
        for value in (0.0, -1.0, math.nan, math.inf, 1e30, "8", None, True)
    ],
)
def test_sizes_that_are_no_sizes_are_refused(field, value):
    with pytest.raises(ValueError, match="expected a number from 1 to"):
        prepare(LLAMA, "h100", deployment=Deployment(**{field: value}))


@pytest.mark.parametrize("field", ["prompt_tokens", "output_tokens"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, 1e30])
def test_lengths_that_are_no_lengths_are_refused(field, value):
    with pytest.raises(ValueError, match="expected a number from 1 to"):
        prepare(LLAMA, "h100", workload=Workload(**{field: value}))


def test_limits_beyond_the_chip_name_its_range():
    with pytest.raises(ValueError, match=r"clock: expected 345 to 1980 MHz.*5000 MHz"):
        prepare(LLAMA, "h100", deployment=Deployment(clock_hz=5e9))
    with pytest.raises(ValueError, match=r"power cap: expected \d+ to 700 W"):
        prepare(LLAMA, "h100", deployment=Deployment(power_cap_watts=10.0))


def test_a_replica_beyond_a_node_needs_a_network():
    wide = Deployment(batch=16.0, tensor_parallel=16.0)
    with pytest.raises(ValueError, match="at most the 8 of a node"):
        prepare(LLAMA, "rtx-4090", deployment=wide)
    asked = prepare(LLAMA, "rtx-4090", deployment=wide, network_bytes_per_s=5e10)
    assert asked.profile.chip.network_bytes_per_s == 5e10
    assert prepare(LLAMA, "h100-sxm", deployment=wide).gpus == 16
    apart = Deployment(batch=16.0, data_parallel=16.0)
    assert prepare(LLAMA, "rtx-4090", deployment=apart).gpus == 16


def test_memory_slack_decides_the_largest_batch():
    asked = prepare(LLAMA, "h100", deployment=Deployment(batch=10_000.0))
    with pytest.raises(ValueError, match="largest batch that fits is") as caught:
        check_memory(asked)
    most = largest_batch(asked)
    assert f"fits is {most};" in str(caught.value)
    assert memory_slack_bytes(asked, most) >= 0.0
    assert memory_slack_bytes(asked, most + 1) < 0.0


def test_weights_that_do_not_fit_have_no_batch():
    asked = prepare("meta-llama/Llama-3.1-70B", "h100")
    assert largest_batch(asked) == 0
    with pytest.raises(ValueError, match="no batch fits"):
        check_memory(asked)


def test_formats_are_chosen_and_checked():
    asked = prepare(LLAMA, "h100", weights="fp8", kv="fp8")
    assert (asked.shape.formats.feed_forward, asked.shape.kv_format) == ("fp8", "fp8")
    with pytest.raises(ValueError, match="kv: expected one of"):
        prepare(LLAMA, "h100", kv="fp9")


def test_an_eager_stack_does_not_fuse():
    assert not prepare(LLAMA, "a100", stack="hf-eager").deployment.fused
    assert prepare(LLAMA, "a100").deployment.fused


def fit(**changes):
    values = {
        "chip": "l40s",
        "stack": "sglang",
        "created": "2025-01-01",
        "fitted_on": ("runs.csv",),
        "rows": 3,
        "chip_values": {"busy_watts": FittedValue(77.0, 0.1)},
        "stack_values": {"kernel_seconds": FittedValue(3e-6, 0.1)},
        "provenance": {"ranges": {"batch": [1.0, 8.0]}},
    }
    return FittedProfile(**{**values, **changes})


def test_a_profile_brings_its_chip_and_stack(tmp_path):
    path = tmp_path / "mine.toml"
    save_profile(path, fit())
    asked = prepare(LLAMA, profile=path, deployment=Deployment(batch=16.0))
    assert (asked.card.chip, asked.card.stack) == ("l40s", "sglang")
    assert asked.profile.chip.busy_watts == 77.0
    assert any("batch = 16, fitted from 1 to 8" in note for note in notes(asked))


def test_a_profile_of_another_pair_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    save_profile(path, fit())
    with pytest.raises(ValueError, match="expected a fit of h100-sxm with sglang"):
        prepare(LLAMA, "h100-sxm", profile=path)
    with pytest.raises(ValueError, match=r"expected a fit of l40s with vllm-0\.5"):
        prepare(LLAMA, stack="vllm-0.5", profile=path)


def test_notes_name_what_an_answer_leans_on():
    asked = prepare(
        LLAMA,
        "a100",
        weights="fp8",
        deployment=Deployment(tensor_parallel=2.0, clock_hz=1.001e9, overlap=True),
        workload=Workload(prompt_tokens=200_000.0),
    )
    found = " / ".join(notes(asked))
    for words in (
        "no fp8 unit",
        "extrapolated: prompt + output",
        "1001 MHz lies between",
        "staged overlap",
        "communication power is a prior",
    ):
        assert words in found
    assert "communication" not in " ".join(notes(prepare(LLAMA, "a100")))


def test_energy_at_the_wall_adds_the_host_and_the_building():
    asked = prepare(LLAMA, "h100", deployment=Deployment(batch=8.0))
    estimate = predict(asked.model, asked.profile, asked.deployment, asked.workload)
    bare = wall_plug(estimate)
    assert math.isclose(
        bare.joules_per_output_token, estimate.joules_per_output_token, rel_tol=1e-12
    )
    full = wall_plug(estimate, host_watts=100.0, pue=1.2)
    host = 100.0 / float(estimate.output_tokens_per_second)
    expected = 1.2 * (float(estimate.joules_per_output_token) + host)
    assert math.isclose(full.joules_per_output_token, expected, rel_tol=1e-9)
    assert math.isclose(full.joules_per_request, 256.0 * expected, rel_tol=1e-9)


def test_a_request_is_ready_to_predict():
    asked = prepare(LLAMA, "h100", deployment=Deployment(batch=8, tensor_parallel=2))
    leaves = {
        **dataclasses.asdict(asked.deployment),
        **dataclasses.asdict(asked.workload),
    }
    assert all(isinstance(value, float | bool) for value in leaves.values())
    assert asked.gpus == 2


def test_models_come_from_files_too(data_folder):
    path = next(Path(os.fspath(data_folder)).glob("model_configs/*Llama*8B*.json"))
    assert prepare(path, "h100").shape.width == 4096
