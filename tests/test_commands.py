from dataclasses import replace

import pytest

from jaxlens import Deployment, Workload, load_profile
from jaxlens.commands import Checkpoint, gpu_commands, serve_command
from jaxlens.profiles import load_chip

PROFILE = load_profile("h100-sxm")
WORKLOAD = Workload(prompt_tokens=1000.0, output_tokens=200.0, output_tokens_cv=0.0)
DENSE = Checkpoint(name="meta-llama/Llama-3.1-70B-Instruct", max_context=131072)


def served(checkpoint, workload=WORKLOAD, **knobs):
    chip, stack = PROFILE.chip, replace(PROFILE.stack, chunk_tokens=8192.0)
    return serve_command(checkpoint, chip, stack, Deployment(**knobs), workload)


def test_a_dense_model_on_four_gpus():
    assert served(DENSE, batch=64.0, tensor_parallel=4.0).split(" \\\n  ") == [
        "vllm serve meta-llama/Llama-3.1-70B-Instruct",
        "--tensor-parallel-size 4",
        "--max-num-seqs 64",
        "--max-num-batched-tokens 8192",
        "--max-model-len 1280",  # 1200 tokens, in steps of 256
        "--gpu-memory-utilization 0.9",
    ]


def test_sequences_are_counted_per_replica():
    command = served(DENSE, batch=64.0, data_parallel=4.0, pipeline_parallel=2.0)
    assert "--max-num-seqs 16" in command
    assert "--data-parallel-size 4" in command
    assert "--pipeline-parallel-size 2" in command


def test_long_outputs_have_room_up_to_the_context_of_the_model():
    spread = replace(WORKLOAD, output_tokens_cv=1.0)  # 1000 + 4 x 200
    assert "--max-model-len 2048" in served(replace(DENSE, max_context=None), spread)
    assert "--max-model-len 1024" in served(replace(DENSE, max_context=1024), spread)


def test_experts_over_all_ranks_and_replicas_that_share_none():
    routed = replace(DENSE, routed=True)
    layout = {"batch": 64.0, "tensor_parallel": 2.0, "data_parallel": 4.0}
    together = served(routed, expert_parallel=8.0, **layout)
    assert "--enable-expert-parallel" in together
    assert "--data-parallel-size 4" in together
    apart = served(routed, expert_parallel=1.0, **layout)
    assert "--enable-expert-parallel" not in apart
    assert "--data-parallel-size" not in apart
    assert apart.startswith("# 4 servers behind a load balancer")


def test_beyond_a_node_another_backend_starts_the_workers():
    assert "ray" not in served(DENSE, tensor_parallel=8.0)
    far = served(DENSE, tensor_parallel=8.0, pipeline_parallel=2.0)
    assert "--distributed-executor-backend ray" in far
    far = served(DENSE, batch=4.0, tensor_parallel=8.0, data_parallel=4.0)
    assert "--data-parallel-backend ray" in far


def test_formats():
    assert "--quantization fp8" in served(replace(DENSE, weights="fp8"))
    assert "--kv-cache-dtype fp8" in served(replace(DENSE, kv="fp8"))
    other = served(replace(DENSE, weights="int4"))
    assert other.startswith("# needs a checkpoint with int4 weights\nvllm serve")


def test_names_cannot_break_out_of_the_command():
    assert served(Checkpoint(name="a b; rm -rf /")).startswith(
        "vllm serve 'a b; rm -rf /'"
    )


@pytest.mark.parametrize(
    ("vendor", "expected"),
    [
        (
            "NVIDIA",
            ["sudo nvidia-smi -i 0,1 -lgc 1410,1410", "sudo nvidia-smi -i 0,1 -pl 500"],
        ),
        (
            "AMD",
            [
                "sudo rocm-smi -d 0 1 --setperfdeterminism 1410",
                "sudo rocm-smi -d 0 1 --setpoweroverdrive 500",
            ],
        ),
    ],
)
def test_clock_and_cap_of_the_gpus(vendor, expected):
    layout = Deployment(tensor_parallel=2.0, clock_hz=1.41e9, power_cap_watts=500.0)
    assert gpu_commands(vendor, load_chip("h100-sxm"), layout) == expected


def test_defaults_need_no_command():
    chip = load_chip("h100-sxm")
    assert gpu_commands("NVIDIA", chip, Deployment()) == []
    highest = Deployment(clock_hz=float(chip.max_hz))
    assert gpu_commands("NVIDIA", chip, highest) == []
