import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic_runs

from jaxlens.calibration.serving_rows import (
    deployment_of,
    predict_rows,
    serving_rows,
    workload_of,
)
from jaxlens.calibration.tables import read_table
from jaxlens.loading import load_model
from jaxlens.predictions import predict
from jaxlens.profiles import load_profile, load_stack

DENSE = {"model": "meta-llama/Llama-3.1-8B", "tensor_parallel": 2, "gpus": 2}
EXPERTS = {
    "model": "Qwen/Qwen3-30B-A3B",
    "tensor_parallel": 4,
    "expert_parallel": 4,
    "gpus": 4,
}
LATENT = {
    "model": "deepseek-ai/DeepSeek-V3",
    "weight_dtype": "fp8",
    "tensor_parallel": 8,
    "expert_parallel": 8,
    "gpus": 8,
}
HYBRID = {"model": "nvidia/NVIDIA-Nemotron-Nano-9B-v2"}
CAPPED = {"model": "meta-llama/Llama-3.1-8B", "power_cap_watts": 400.0}

# In another order than by model: rows must come back where they were.
KINDS = (DENSE, EXPERTS, HYBRID, LATENT, CAPPED, {**DENSE, "concurrency": 200})


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    usual = {
        **synthetic_runs.settings()[0],
        "expert_parallel": 1,
        "power_cap_watts": "",
        "concurrency": 24,
        "output_tokens_per_second": 1.0,
    }
    rows = [{**usual, **kind} for kind in KINDS]
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    return read_table(synthetic_runs.write(path, rows))


def test_stacked_prices_are_those_of_predict(table):
    profile = load_profile(synthetic_runs.GPU, synthetic_runs.STACK)
    name = synthetic_runs.STACK
    rows = serving_rows(table, {name: load_stack(name)})
    every = jax.tree.map(lambda leaf: jnp.full(len(table), float(leaf)), profile)
    said = jax.jit(predict_rows)(rows, every.chip, every.stack)
    deployments, workloads = deployment_of(table), workload_of(table)
    for row in range(len(table)):

        def own(leaf, row=row):
            return float(leaf[row])

        model = load_model(
            str(table["model"][row]),
            weights=str(table["weight_dtype"][row]),
            kv=str(table["kv_dtype"][row]),
        )
        alone = predict(
            model,
            profile,
            jax.tree.map(own, deployments),
            jax.tree.map(own, workloads),
        )
        np.testing.assert_allclose(
            [
                said.seconds_per_step[row],
                said.joules_per_output_token[row],
                said.seconds_decode_step[row],
                said.watts[row],
            ],
            [
                float(alone.seconds_per_output_token),
                float(alone.joules_per_output_token),
                float(alone.seconds_decode_step),
                float(alone.watts_per_gpu * alone.gpus),
            ],
            rtol=1e-9,
            err_msg=str(table["model"][row]),
        )
