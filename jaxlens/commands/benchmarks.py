"""The benchmark that checks a prediction: each engine's own load generator.

Prompts and outputs have fixed lengths, for no generator draws outputs with a given spread and
prompts without one: compare with a prediction for a spread of 0.

Source: vLLM documentation v0.11, "vllm bench serve", 2025,
https://docs.vllm.ai/en/v0.11.2/cli/bench/serve; SGLang documentation v0.5, "Bench Serving
Guide", 2025, https://docs.sglang.io/developer_guide/bench_serving.html; TensorRT-LLM
documentation v1.2, "Run benchmarking with trtllm-serve", 2025,
https://nvidia.github.io/TensorRT-LLM/commands/trtllm-serve.
"""

import math
import shlex

from jaxlens.commands.settings import Checkpoint, command_text
from jaxlens.deployments import Deployment, Workload

ROUNDS = 8  # requests per sequence in flight: the steady state outweighs start and end
LEAST_REQUESTS = 64
METRICS = "ttft,tpot,itl,e2el"


def benchmark_command(
    server: str,
    checkpoint: Checkpoint,
    deployment: Deployment,
    workload: Workload,
    *,
    requests_per_second: float | None = None,
) -> str:
    """Returns the command that loads a server as the prediction has it.

    Args:
        server: One of `SERVERS`.
        checkpoint: What the server has loaded.
        deployment: Its batch is kept in flight, over all replicas.
        workload: Mean lengths.
        requests_per_second: Arrivals at this rate instead, at random (Poisson).
    """
    batch = round(float(deployment.batch))
    requests = max(LEAST_REQUESTS, ROUNDS * batch)
    sizes = [
        f"--random-input-len {round(float(workload.prompt_tokens))}",
        f"--random-output-len {round(float(workload.output_tokens))}",
    ]
    load = [f"--num-prompts {requests}", _load(batch, requests_per_second)]
    model = f"--model {shlex.quote(checkpoint.name)}"
    if server == "vllm":
        words = ["vllm", "bench", "serve"]
        options = [model, "--dataset-name random", *sizes, *load, *_measured()]
    elif server == "sglang":
        # Lengths are drawn from ratio x length to length: 1 fixes them.
        words = ["python", "-m", "sglang.bench_serving", "--backend sglang"]
        fixed = ["--dataset-name random-ids", *sizes, "--random-range-ratio 1.0"]
        options = [model, *fixed, *load]
    elif server == "tensorrt_llm":
        words = ["python", "-m", "tensorrt_llm.serve.scripts.benchmark_serving"]
        fixed = ["--dataset-name random", "--random-ids", *sizes]
        options = [model, "--backend openai", *fixed, *load, *_measured()]
    else:
        raise ValueError(
            f"server: expected vllm, sglang or tensorrt_llm, got {server!r}."
        )
    return command_text(words, options)


def _load(batch: int, requests_per_second: float | None) -> str:
    if requests_per_second is None:
        return f"--max-concurrency {batch}"
    if not (requests_per_second > 0.0 and math.isfinite(requests_per_second)):
        raise ValueError(
            f"request rate: expected requests per second above 0, got "
            f"{requests_per_second}."
        )
    return f"--request-rate {requests_per_second:g}"


def _measured() -> list[str]:
    return [
        "--ignore-eos",
        f"--percentile-metrics {METRICS}",
        "--metric-percentiles 50,99",
        "--save-result",
    ]
