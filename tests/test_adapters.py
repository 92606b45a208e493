"""Result files of other tools, written small by hand."""

import json
import math
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxlens.calibration.adapters import (
    aiconfigurator,
    mlenergy,
    nccl_tests,
    vllm_bench,
)
from jaxlens.calibration.adapters.power_logs import read_power_log
from jaxlens.calibration.tables import read_table

CHECKS = {
    "known_model": lambda name: True,
    "known_gpu": lambda name: True,
    "chip_watts": lambda name: None,
}

MLENERGY = {
    "task": "gpqa",
    "configurations": [
        {
            "model_id": "Qwen/Qwen3-235B-A22B",
            "gpu_model": "B200",
            "num_gpus": 8,
            "tensor_parallel": 1,
            "expert_parallel": 8,
            "data_parallel": 2,
            "weight_precision": "bfloat16",
            "max_num_seqs": 64,
            "avg_batch_size": 60.5,
            "avg_output_len": 900.0,
            "output_throughput_tokens_per_sec": 2000.0,
            "avg_power_watts": 4000.0,
            "energy_per_token_joules": 2.0,
            "median_itl_ms": 25.0,
            "p99_itl_ms": 40.0,
        },
        {"model_id": "Qwen/Qwen3-8B", "gpu_model": "H100", "num_gpus": 1},
    ],
}


def test_mlenergy_splits_gpus_into_tensor_and_data_parallel(tmp_path):
    path = tmp_path / "gpqa.json"
    path.write_text(json.dumps(MLENERGY))
    table = read_table(path, stack="vllm-0.11.1", **CHECKS)
    expected = {
        "gpu": "b200-sxm",
        "workload": "gpqa",
        "weight_dtype": "bf16",
        "tensor_parallel": 4.0,
        "data_parallel": 2.0,
        "expert_parallel": 8.0,
        "itl_p50_seconds": 0.025,
        "itl_p99_seconds": 0.04,
        "concurrency": 60.5,
        "latency_seconds": 60.5 / 2000.0,
    }
    assert {name: table[name][0] for name in expected} == pytest.approx(expected)
    assert [bad.row for bad in table.skipped] == [2]
    with pytest.raises(ValueError, match="--stack"):
        mlenergy.read(path, **CHECKS)


@pytest.mark.parametrize("content", ["[]", "{}", '{"configurations": [1]}'])
def test_mlenergy_rejects_other_json(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="configurations"):
        mlenergy.read(path, stack="vllm", **CHECKS)


END = datetime(2025, 3, 4, 12, 0, 40)
VLLM = {
    "date": END.strftime("%Y%m%d-%H%M%S"),
    "backend": "vllm",
    "label": "chat",
    "model_id": "meta-llama/Llama-3.1-8B-Instruct",
    "num_prompts": 100,
    "max_concurrency": 16,
    "tensor_parallel": "2",
    "duration": 20.0,
    "completed": 100,
    "total_input_tokens": 50_000,
    "total_output_tokens": 20_000,
    "request_throughput": 5.0,
    "output_throughput": 1000.0,
    "mean_ttft_ms": 10.0,
    "median_ttft_ms": 9.0,
    "mean_tpot_ms": 15.0,
    "mean_itl_ms": 15.1,
    "median_itl_ms": 15.0,
    "p99_itl_ms": 30.0,
}


def smi_log(path, gpus=2, seconds=60):
    """100 W a GPU before and after the run, 300 W within it (from 20 s to 40 s)."""
    lines = ["timestamp, index, power.draw [W]"]
    for tenth in range(seconds * 10):
        time = datetime.fromtimestamp(END.timestamp() - 40.0 + tenth / 10.0)
        watts = 300.0 if 200 <= tenth <= 400 else 100.0
        stamp = time.strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]
        lines += [f"{stamp}, {index}, {watts:.2f} W" for index in range(gpus)]
    path.write_text("\n".join(lines))
    return path


def test_vllm_bench_with_a_log_of_nvidia_smi(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(VLLM))
    power = smi_log(tmp_path / "power.csv")
    table = vllm_bench.read(
        path, power=power, gpu="NVIDIA H100 80GB HBM3", stack="vllm-0.11", **CHECKS
    )
    expected = {
        "gpu": "h100-sxm",
        "gpus": 2.0,
        "prompt_tokens": 500.0,
        "output_tokens": 200.0,
        # 5 requests a second, each 10 ms + 199 x 15 ms.
        "concurrency": 5.0 * (0.010 + 199 * 0.015),
        "watts": 600.0,
        "joules_per_output_token": 0.6,
        "itl_p50_seconds": 0.015,
        "ttft_p50_seconds": 0.009,
    }
    assert {name: table[name][0] for name in expected} == pytest.approx(expected)


def test_any_reader_takes_the_power_log_and_the_gpus_of_a_benchmark(tmp_path):
    path = tmp_path / "result.json"
    silent = {name: value for name, value in VLLM.items() if name != "tensor_parallel"}
    path.write_text(json.dumps(silent))
    power = smi_log(tmp_path / "power.csv")
    given = {"gpu": "h100-sxm", "stack": "vllm-0.11", **CHECKS}
    table = read_table(path, power=power, tensor_parallel=2, **given)
    assert table["watts"][0] == pytest.approx(600.0)
    assert table["tensor_parallel"][0] == 2.0
    plain = tmp_path / "runs.csv"
    plain.write_text("model,gpu\nm,h100-sxm\n")
    with pytest.raises(ValueError, match="vllm bench serve"):
        read_table(plain, power=power, **given)


def test_vllm_bench_without_power_and_with_one_result_per_line(tmp_path):
    path = tmp_path / "results.json"
    second = {**VLLM, "mean_e2el_ms": 2000.0, "output_lens": [100, 300]}
    path.write_text(json.dumps(VLLM) + "\n" + json.dumps(second))
    table = read_table(path, gpu="h100-sxm", stack="vllm-0.11", **CHECKS)
    assert table.rows == 2
    assert not table.has("watts")
    assert table["concurrency"][1] == pytest.approx(10.0)
    assert table["output_tokens_cv"][1] == pytest.approx(0.5)


def test_vllm_bench_says_when_the_log_does_not_cover_the_run(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**VLLM, "date": "20250304-180000"}))
    power = smi_log(tmp_path / "power.csv", seconds=10)
    given = {"gpu": "h100-sxm", "stack": "vllm-0.11", **CHECKS}
    with pytest.raises(ValueError, match="time zone"):
        vllm_bench.read(path, power=power, **given)
    with pytest.raises(ValueError, match="layout"):
        vllm_bench.read(path, layout={"tp": 2}, **given)
    path.write_text(json.dumps({**VLLM, "date": "yesterday"}))
    with pytest.raises(ValueError, match="YYYYMMDD"):
        vllm_bench.read(path, power=power, **given)


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ("timestamp_s,watts\n0,100\n1,200\n2,300\n", 200.0),
        ("Time,gpu0,gpu1\n0,100,50\n1,200,50\n2,300,50\n", 250.0),
        (
            "timestamp,gpu_index,power_mw\n0,0,1e5\n2,0,3e5\n0,1,1e3\n2,1,1e3\n",
            201,
        ),
        (
            "time,power.draw [W],power.limit [W]\n0,100 W,7 W\n2,300 W,7 W\n",
            200.0,
        ),
    ],
)
def test_power_logs_of_several_tools(tmp_path, text, watts):
    path = tmp_path / "power.csv"
    path.write_text(text)
    log = read_power_log(path)
    assert log.mean_watts(*log.span) == pytest.approx(watts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header and samples"),
        ("a,b\n1,2\n", "time column"),
        ("time,watts\n0,1\n", "two samples"),
        ("time,watts\nnoon,1\n1,1\n", "date and time"),
        ("time,watts\n0,[N/A]\n1,1\n", "in W or mW"),
        ("time,watts\n0,1\n0,2\n1,1\n", "index"),
    ],
)
def test_power_logs_that_make_no_sense(tmp_path, text, message):
    path = tmp_path / "power.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_power_log(path)


NCCL = """\
# nccl-tests version 2.18.2 nccl-headers=23007 nccl-library=23007
# Collective test starting: {program}_perf
# nThread 1 nGpus 2 minBytes 8 maxBytes 128 step: 2(factor) warmup iters: 5 iters: 20
#
# Using devices
#  Rank  0 Group  0 Pid  92 on host device  0 [0000:01:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid  92 on host device  1 [0000:02:00] NVIDIA H100 80GB HBM3
#
#                                        out-of-place                in-place
#   size  count  type redop root  time algbw busbw #wrong time algbw busbw #wrong
#    (B) (elem)                   (us) (GB/s) (GB/s)      (us) (GB/s) (GB/s)
       0      0 float   sum   -1  5.00  0.00  0.00      0  5.00  0.00  0.00      0
 1048576 262144 float   sum   -1  20.0  52.4  52.4      0  25.0  41.9  41.9    N/A
[1,0]<stdout>: 2097152 524288 float sum -1 30.0 69.9 69.9 0 31.0 67.6 67.6 0
 4194304 1048576 float  sum   -1  50.0  83.9  83.9      7  50.0  83.9  83.9      7
# Out of bounds values : 1 FAILED
# Avg bus bandwidth    : 60.0
"""


def test_nccl_tests_log(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(NCCL.format(program="all_reduce"))
    table = read_table(path, **CHECKS)
    assert table.kind == "collectives"
    assert table["bytes"].tolist() == [1048576.0, 2097152.0]
    assert table["seconds"].tolist() == pytest.approx([20e-6, 30e-6])
    assert table["bus_bytes_per_s"].tolist() == pytest.approx([52.4e9, 69.9e9])
    assert table["operation"].tolist() == ["all_reduce"] * 2
    assert table["gpus"].tolist() == [2.0, 2.0]
    assert table["gpu"].tolist() == ["h100-sxm"] * 2
    assert table["stack"].tolist() == ["nccl-2.30.7"] * 2
    assert table.skipped[0].column == "#wrong"
    in_place = nccl_tests.read(path, in_place=True, **CHECKS)
    assert in_place["seconds"].tolist() == pytest.approx([25e-6, 31e-6])


def test_nccl_tests_log_without_a_program_asks_for_the_operation(tmp_path):
    path = tmp_path / "log.txt"
    text = NCCL.format(program="all_reduce").split("\n", 2)[2]
    path.write_text(text)
    with pytest.raises(ValueError, match="give the operation"):
        read_table(path, **CHECKS)
    table = nccl_tests.read(path, operation="all_gather", gpus=16, gpu="b200", **CHECKS)
    assert table["gpus"].tolist() == [16.0, 16.0]
    assert table["gpu"].tolist() == ["b200-sxm"] * 2
    path.write_text("# algbw busbw\n")
    with pytest.raises(ValueError, match="expected rows"):
        read_table(path, **CHECKS)


def test_aiconfigurator_counts_elements_in_messages(tmp_path):
    path = tmp_path / "nccl_perf.txt"
    path.write_text(
        "nccl_dtype,num_gpus,message_size,op_name,latency,power\n"
        "half,2,1024,all_gather,0.01,300\n"
        "int8,2,1024,all_gather,0.01,\n"
        "half,2,many,all_gather,0.01,\n"
    )
    table = read_table(path, gpu="h100_sxm", **CHECKS)
    assert table.kind == "collectives"
    assert table["bytes"].tolist() == [2048.0, 1024.0]
    assert table["seconds"].tolist() == [1e-5, 1e-5]
    assert table["watts"][0] == 300.0
    assert math.isnan(table["watts"][1])
    assert table["gpu"].tolist() == ["h100-sxm"] * 2
    assert [(bad.row, bad.column) for bad in table.skipped] == [(4, "bytes")]
    path.write_text("nccl_dtype,num_gpus,message_size,latency\nint3,2,1,0.1\n")
    with pytest.raises(ValueError, match="int3"):
        aiconfigurator.read(path, gpu="h100", **CHECKS)


def test_aiconfigurator_custom_all_reduce(tmp_path):
    path = tmp_path / "custom_allreduce_perf.txt"
    path.write_text(
        "framework,version,device,op_name,kernel_source,allreduce_dtype,num_gpus,"
        "message_size,latency,backend\n"
        "vLLM,0.20.0,NVIDIA B200,all_reduce,vLLM_custom_graph,bfloat16,2,128,0.007,g\n"
    )
    table = read_table(path, **CHECKS)
    assert table["bytes"].tolist() == [256.0]
    assert table["implementation"].tolist() == ["vLLM_custom_graph"]
    assert table["stack"].tolist() == ["vllm-0.20.0"]
    assert table["gpu"].tolist() == ["b200-sxm"]


def test_aiconfigurator_attention_and_moe(tmp_path):
    head = "framework,version,device,op_name,kernel_source,"
    attention = (
        "batch_size,isl,num_heads,num_key_value_heads,head_dim,beam_width,attn_dtype,"
        "kv_cache_dtype,step,latency\n"
    )
    path = tmp_path / "perf.txt"
    start = "VLLM,0.20.0,NVIDIA B200,"
    cells = "16,1,24,2,128,1,bfloat16,bfloat16,31,0.007\n"
    path.write_text(head + attention + start + "generation_attention,fi," + cells)
    decode = read_table(path, **CHECKS)
    assert decode.kind == "attention_decode"
    assert decode["context_tokens"].tolist() == [32.0]
    assert decode["window"].tolist() == [0.0]
    path.write_text(head + attention + start + "context_attention,fi," + cells)
    prefill = read_table(path, **CHECKS)
    assert prefill.kind == "attention_prefill"
    assert prefill["cached_tokens"].tolist() == [31.0]
    path.write_text(
        head + "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,"
        "moe_tp_size,moe_ep_size,distribution,latency\n"
        + start
        + "moe,marlin,int4_wo,1,7168,2048,8,384,16,1,balanced,0.06\n"
    )
    moe = read_table(path, **CHECKS)
    assert moe.kind == "moe"
    assert moe["tensor_parallel"].tolist() == [16.0]


def test_aiconfigurator_parquet(tmp_path):
    path = tmp_path / "gemm_perf.parquet"
    row = {
        "framework": ["TRTLLM"],
        "version": ["1.0"],
        "device": ["NVIDIA H200"],
        "op_name": ["gemm"],
        "kernel_source": ["torch_flow"],
        "gemm_dtype": ["fp8"],
        "m": [128],
        "n": [256],
        "k": [512],
        "latency": [0.002],
    }
    pq.write_table(pa.table(row), path)
    table = aiconfigurator.read(path, **CHECKS)
    assert table.kind == "gemm"
    assert table["seconds"].tolist() == [2e-6]
    assert table["dtype"].tolist() == ["fp8"]
    assert table["gpu"].tolist() == ["h200-sxm"]
