import shlex
import subprocess
from dataclasses import replace

import pytest
import yaml

from jaxlens import Deployment, Workload, load_profile
from jaxlens.commands import (
    SERVERS,
    Checkpoint,
    benchmark_command,
    checkpoint,
    gpu_commands,
    serve_command,
    serve_commands,
)
from jaxlens.commands.gpus import reset_commands
from jaxlens.memory import memory
from jaxlens.profiles import load_chip
from jaxlens.requests import prepare

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


def asked(model, gpu="h100-sxm", *, weights=None, kv=None, **knobs):
    request = prepare(
        model,
        gpu,
        weights=weights,
        kv=kv,
        deployment=Deployment(**knobs),
        workload=WORKLOAD,
    )
    return checkpoint(model, request.shape, weights, kv), request


def lines(command):
    return [line.removesuffix(" \\").strip() for line in command.splitlines()]


LLAMA, ROUTED = "meta-llama/Llama-3.1-70B-Instruct", "Qwen/Qwen3-235B-A22B"
FOUR = {"batch": 64.0, "tensor_parallel": 4.0}


def test_every_server_for_a_dense_model():
    commands = serve_commands(*asked(LLAMA, chunk_tokens=4096.0, **FOUR))
    assert set(commands) == set(SERVERS)
    for server, words in {
        "vllm": [
            "--tensor-parallel-size 4",
            "--max-num-seqs 64",
            "--max-num-batched-tokens 4096",
            "--max-model-len 1280",
        ],
        "sglang": [
            "--tp-size 4",
            "--max-running-requests 64",
            "--chunked-prefill-size 4096",
            "--context-length 1280",
        ],
        "tensorrt_llm": [
            "--tp_size 4",
            "--max_batch_size 64",
            "--max_num_tokens 4096",
            "--max_seq_len 1280",
            "enable_attention_dp: false",
            "max_batch_size: 64",
        ],
    }.items():
        assert set(words) <= set(lines(commands[server])), server
        assert "#" not in commands[server]
        assert LLAMA in commands[server]


def share(command, option):
    (line,) = [line for line in lines(command) if line.startswith(option)]
    return float(line.split()[-1])


def test_memory_shares_mean_the_same_bytes():
    loaded, request = asked(LLAMA, **FOUR)
    chip, stack = request.profile.chip, request.profile.stack
    held = memory(request.model, chip, stack, request.deployment, request.workload)
    total, weights = float(chip.hbm_bytes), float(held.weights_bytes)
    rest = float(held.activation_bytes) + float(held.overhead_bytes)
    budget = float(stack.memory_share) * total
    commands = serve_commands(loaded, request)
    assert share(commands["vllm"], "--gpu-memory-utilization") * total == budget
    static = share(commands["sglang"], "--mem-fraction-static") * total
    assert static + rest == pytest.approx(budget, rel=2e-3)
    option = "--kv_cache_free_gpu_memory_fraction"
    cache = share(commands["tensorrt_llm"], option) * (total - weights - rest)
    assert cache + weights + rest == pytest.approx(budget, rel=2e-3)


def test_experts_over_replicas_in_each_engine():
    layout = {"batch": 64.0, "tensor_parallel": 2.0, "data_parallel": 4.0}
    commands = serve_commands(*asked(ROUTED, expert_parallel=8.0, **layout))
    assert {"--tensor-parallel-size 2", "--data-parallel-size 4"} <= set(
        lines(commands["vllm"])
    )
    # One group of eight ranks; attention in four groups of two.
    assert {
        "--tp-size 8",
        "--dp-size 4",
        "--enable-dp-attention",
        "--ep-size 8",
        "--max-running-requests 64",
        "--chunked-prefill-size 32768",
    } <= set(lines(commands["sglang"]))
    # Not possible there: said, and no option invented.
    assert commands["tensorrt_llm"].startswith("# 4 servers behind a load balancer")
    assert "# TensorRT-LLM cannot share experts" in commands["tensorrt_llm"]
    assert "--ep_size 2" in commands["tensorrt_llm"]


def test_experts_over_single_gpu_replicas_are_attention_data_parallel():
    layout = {"batch": 64.0, "data_parallel": 8.0, "expert_parallel": 8.0}
    commands = serve_commands(*asked(ROUTED, **layout))
    found = set(lines(commands["tensorrt_llm"]))
    assert {"--tp_size 8", "--ep_size 8", "enable_attention_dp: true"} <= found
    assert "--max_batch_size 8" in found  # of one rank
    assert "#" not in commands["tensorrt_llm"]


def test_experts_over_some_of_the_ranks():
    commands = serve_commands(*asked(ROUTED, expert_parallel=2.0, **FOUR))
    assert "# vLLM spreads experts over all 4" in commands["vllm"]
    assert "--ep-size 2" in commands["sglang"]
    assert "--ep_size 2" in commands["tensorrt_llm"]


def test_groups_of_replicas_that_share_experts_are_servers():
    layout = {"batch": 64.0, "data_parallel": 8.0, "expert_parallel": 4.0}
    commands = serve_commands(*asked(ROUTED, **layout))
    for server in SERVERS:
        assert commands[server].startswith("# 2 servers behind a load balancer"), server
    assert "--data-parallel-size 4" in commands["vllm"]


def test_replicas_that_share_nothing_share_a_node_at_most():
    layout = {"batch": 64.0, "tensor_parallel": 4.0, "data_parallel": 4.0}
    commands = serve_commands(*asked(LLAMA, **layout))
    assert "--dp-size 2" in commands["sglang"]
    assert "--max-running-requests 32" in commands["sglang"]
    assert commands["sglang"].startswith("# 2 servers")
    assert commands["tensorrt_llm"].startswith("# 4 servers")


def test_several_nodes():
    wide = {"batch": 8.0, "tensor_parallel": 8.0, "pipeline_parallel": 2.0}
    commands = serve_commands(*asked(LLAMA, **wide))
    assert "--distributed-executor-backend ray" in commands["vllm"]
    assert '--nnodes 2 --node-rank "$NODE_RANK"' in commands["sglang"]
    assert "--pp-size 2" in commands["sglang"]
    assert "srun --mpi=pmix -N 2 -n 16 trtllm-llmapi-launch" in commands["tensorrt_llm"]


def test_formats_in_the_words_of_each_engine():
    commands = serve_commands(*asked(LLAMA, weights="fp8", kv="fp8", **FOUR))
    assert "--quantization fp8" in commands["vllm"]
    assert {"--quantization fp8", "--kv-cache-dtype fp8_e4m3"} <= set(
        lines(commands["sglang"])
    )
    assert commands["tensorrt_llm"].startswith("# needs a checkpoint with fp8 weights")
    assert "dtype: fp8" in lines(commands["tensorrt_llm"])
    other = serve_commands(*asked(LLAMA, weights="int4", kv="int8", **FOUR))
    for server in SERVERS:
        assert "# needs a checkpoint with int4 weights" in other[server]
        assert "has no KV cache in int8" in other[server]
        assert "kv-cache-dtype" not in other[server]


def test_what_no_option_does_is_said():
    flags = {"sequence_parallel": True, "overlap": True, "stages": 4.0}
    commands = serve_commands(*asked(LLAMA, **FOUR, **flags))
    assert '"enable_async_tp": true' in commands["vllm"]
    assert "# SGLang has no option for overlap" in commands["sglang"]
    assert "# TensorRT-LLM has no option for" in commands["tensorrt_llm"]
    eager = serve_commands(*asked(LLAMA, **FOUR, fused=False))
    assert "--enforce-eager" in eager["vllm"]
    assert "--disable-cuda-graph" in eager["sglang"]
    assert "cuda_graph_config: null" in eager["tensorrt_llm"]


def test_amd_has_no_tensorrt():
    commands = serve_commands(*asked(LLAMA, "mi300x", **FOUR))
    assert commands["tensorrt_llm"] == "# TensorRT-LLM runs on NVIDIA GPUs only"
    assert commands["sglang"].startswith("python -m sglang.launch_server")


@pytest.mark.parametrize("kv", [None, "fp8"])
def test_shells_and_yaml_can_read_the_commands(kv):
    loaded, request = asked(ROUTED, kv=kv, expert_parallel=4.0, **FOUR)
    for server, command in serve_commands(loaded, request).items():
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
        load = benchmark_command(server, loaded, request.deployment, request.workload)
        words = shlex.split(load.replace("\\\n", " "))
        assert "--random-output-len" in words
    body = command.split("END'\n")[1].split("\nEND\n")[0]
    options = yaml.safe_load(body)
    assert options["kv_cache_config"].get("dtype") == kv
    assert 0.0 < options["kv_cache_config"]["free_gpu_memory_fraction"] < 1.0


def test_a_benchmark_keeps_the_batch_in_flight_at_fixed_lengths():
    layout = Deployment(batch=64.0)
    for server in SERVERS:
        words = shlex.split(
            benchmark_command(server, DENSE, layout, WORKLOAD).replace("\\\n", " ")
        )
        assert words[words.index("--max-concurrency") + 1] == "64"
        assert words[words.index("--num-prompts") + 1] == "512"
        assert words[words.index("--random-input-len") + 1] == "1000"
        assert words[words.index("--random-output-len") + 1] == "200"
    # SGLang draws lengths from ratio x length up: 1 fixes them. The others stay fixed.
    assert "--random-range-ratio 1.0" in benchmark_command(
        "sglang", DENSE, layout, WORKLOAD
    )


def test_a_benchmark_at_a_rate():
    load = benchmark_command(
        "vllm", DENSE, Deployment(batch=4.0), WORKLOAD, requests_per_second=2.5
    )
    assert "--request-rate 2.5" in load and "--max-concurrency" not in load
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="request rate: expected"):
            benchmark_command(
                "vllm", DENSE, Deployment(), WORKLOAD, requests_per_second=rate
            )
    with pytest.raises(ValueError, match="server: expected vllm, sglang"):
        benchmark_command("tgi", DENSE, Deployment(), WORKLOAD)


def test_what_was_set_can_be_undone():
    layout = Deployment(tensor_parallel=2.0, clock_hz=1.41e9, power_cap_watts=500.0)
    chip = load_chip("h100-sxm")
    assert reset_commands("NVIDIA", chip, layout) == [
        "sudo nvidia-smi -i 0,1 -rgc",
        "sudo nvidia-smi -i 0,1 -pl 700",
    ]
    assert reset_commands("AMD", chip, layout) == [
        "sudo rocm-smi -d 0 1 --resetperfdeterminism",
        "sudo rocm-smi -d 0 1 --resetpoweroverdrive",
    ]
    assert reset_commands("NVIDIA", chip, Deployment()) == []
