"""Golden predictions: a few answers of the shipped profiles, kept in the repository.

`make golden` writes them anew. Do so on purpose only: after a change of a coefficient or of
an equation that is meant to move predictions.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlens import Deployment, Workload, load_model, load_profile, predict

FILE = Path(__file__).with_name("golden") / "predictions.json"
NUMBERS = (
    "seconds_prefill",
    "seconds_per_output_token",
    "seconds_decode_step",
    "output_tokens_per_second",
    "joules_to_first_token",
    "joules_per_output_token",
    "watts_per_gpu",
    "memory_slack_bytes",
)

# Model, GPU, stack, deployment and workload: every family, most chips and all engines.
CASES: dict[str, tuple[str, str, str, dict[str, Any], tuple[float, float]]] = {
    "llama 8b, one gpu": (
        "meta-llama/Llama-3.1-8B-Instruct",
        "h100-sxm",
        "vllm-0.11",
        {"batch": 64.0},
        (512.0, 512.0),
    ),
    "llama 70b, tensor parallel": (
        "meta-llama/Llama-3.1-70B-Instruct",
        "h100-sxm",
        "vllm-0.11",
        {"batch": 64.0, "tensor_parallel": 4.0},
        (1024.0, 256.0),
    ),
    "llama 70b fp8, capped": (
        "RedHatAI/Llama-3.1-70B-Instruct-FP8",
        "b200-sxm",
        "vllm-0.11",
        {"batch": 128.0, "tensor_parallel": 2.0, "power_cap_watts": 600.0},
        (1024.0, 256.0),
    ),
    "llama 405b, two nodes": (
        "meta-llama/Llama-3.1-405B-Instruct",
        "h200-sxm",
        "vllm-0.11",
        {"batch": 64.0, "tensor_parallel": 8.0, "pipeline_parallel": 2.0},
        (2048.0, 512.0),
    ),
    "qwen3 30b, experts": (
        "Qwen/Qwen3-30B-A3B",
        "h100-sxm",
        "vllm-0.11",
        {
            "batch": 256.0,
            "tensor_parallel": 2.0,
            "expert_parallel": 2.0,
            "routing_skew": 0.4,
        },
        (700.0, 700.0),
    ),
    "deepseek v3, experts over replicas": (
        "deepseek-ai/DeepSeek-V3",
        "b200-sxm",
        "vllm-0.11",
        {"batch": 512.0, "data_parallel": 8.0, "expert_parallel": 8.0},
        (4000.0, 1000.0),
    ),
    "gpt-oss 120b, long prompts": (
        "openai/gpt-oss-120b",
        "h100-sxm",
        "vllm-0.11",
        {"batch": 32.0, "tensor_parallel": 2.0},
        (30000.0, 500.0),
    ),
    "gemma 27b, eager": (
        "google/gemma-3-27b-it",
        "a100-sxm-80gb",
        "hf-eager",
        {"batch": 8.0, "fused": False},
        (512.0, 128.0),
    ),
    "nemotron hybrid": (
        "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
        "h100-sxm",
        "vllm-0.11",
        {"batch": 128.0},
        (300.0, 2000.0),
    ),
    "mixtral on an older engine": (
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "a100-sxm-80gb",
        "vllm-0.5",
        {"batch": 32.0, "tensor_parallel": 4.0},
        (1000.0, 200.0),
    ),
    "llama 13b, low clock": (
        "meta-llama/Llama-2-13b-hf",
        "a100-sxm-40gb",
        "vllm-0.5",
        {"batch": 4.0, "tensor_parallel": 2.0, "clock_hz": 9.0e8},
        (256.0, 64.0),
    ),
    "llama 70b, overlap": (
        "meta-llama/Llama-3.1-70B-Instruct",
        "l40s",
        "vllm-0.11",
        {
            "batch": 32.0,
            "tensor_parallel": 8.0,
            "overlap": True,
            "stages": 2.0,
            "sequence_parallel": True,
        },
        (4096.0, 256.0),
    ),
}


def predictions() -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the name and the numbers of every case."""
    for name, (model, gpu, stack, layout, (prompt, output)) in CASES.items():
        estimate = predict(
            load_model(model),
            load_profile(gpu, stack),
            Deployment(**layout),
            Workload(prompt_tokens=prompt, output_tokens=output),
        )
        yield name, {number: float(getattr(estimate, number)) for number in NUMBERS}


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    """Returns `numbers` with the digits that float32 has."""
    return {name: float(f"{value:.7g}") for name, value in numbers.items()}


def main() -> None:
    """Writes the golden predictions."""
    table = {name: rounded(numbers) for name, numbers in predictions()}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    print(f"Wrote {len(table)} predictions to {FILE}.")


if __name__ == "__main__":
    main()
