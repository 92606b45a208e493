"""Serving runs that jaxlens itself predicts, as tables of the schema that fits read."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.serving_rows import predict_rows, serving_rows
from jaxlens.calibration.tables import read_table
from jaxlens.profiles import Profile, load_profile, load_stack

GPU, STACK = "h100-sxm", "vllm-0.11"
MODELS = ("Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-8B")
BATCHES = (4, 8, 16, 32, 64, 128, 256, 512)
NOISE = 0.01

Rows = list[dict[str, Any]]


def settings() -> Rows:
    """Returns sixteen runs, without what is measured on them."""
    return [
        {
            "stack": STACK,
            "gpu": GPU,
            "model": model,
            "weight_dtype": "bf16",
            "kv_dtype": "bf16",
            "tensor_parallel": 1,
            "gpus": 1,
            "prompt_tokens": 256 + 128 * (batch % 3),
            "output_tokens": 512,
            "output_tokens_cv": 0.5,
            "concurrency": batch,
            "clean": "True",
        }
        for model in MODELS
        for batch in BATCHES
    ]


def shifted(factors: Mapping[str, float]) -> Profile:
    """Returns the priors with coefficients, such as "chip.busy_watts", multiplied."""
    profile = load_profile(GPU, STACK, shipped=False)
    layers: dict[str, Any] = {"chip": profile.chip, "stack": profile.stack}
    for name, factor in factors.items():
        layer, _, field = name.partition(".")
        value = getattr(layers[layer], field) * factor
        layers[layer] = dataclasses.replace(layers[layer], **{field: value})
    return Profile(**layers)


def measured(folder: Path, factors: Mapping[str, float], seed: int = 0) -> Rows:
    """Returns the runs with noisy measurements of a machine that is off its priors."""
    rows = [{**row, "output_tokens_per_second": 1.0} for row in settings()]
    table = read_table(write(folder / "settings.csv", rows))
    seconds, joules = truth(table, shifted(factors))
    noise = np.exp(NOISE * np.random.default_rng(seed).normal(size=(2, len(rows))))
    return [
        {
            **row,
            "output_tokens_per_second": row["concurrency"] / s,
            "joules_per_output_token": j,
        }
        for row, s, j in zip(
            settings(), seconds * noise[0], joules * noise[1], strict=True
        )
    ]


def truth(table: Table, profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Returns seconds per step and joules per token of every row under `profile`."""
    rows = serving_rows(table, {STACK: load_stack(STACK)})
    every = jax.tree.map(lambda leaf: jnp.full(len(table), float(leaf)), profile)
    said = jax.jit(predict_rows)(rows, every.chip, every.stack)
    return np.asarray(said.seconds_per_step), np.asarray(said.joules_per_output_token)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as CSV; returns the path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
