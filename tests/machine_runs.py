"""Runs of `jaxlens measure` made up from the prices, with coefficients that are known."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet

from jaxlens.calibration.machines.fitting import COMPILER
from jaxlens.calibration.machines.prices import price
from jaxlens.calibration.machines.rows import asked, machine_rows
from jaxlens.measure.suites import collectives, full, sm_shares
from jaxlens.profiles import Profile, load_profile

GPU = SimpleNamespace(kind="cuda", memory_bytes=1.4e11, sms=132)
CLOCK_HZ = 1.755e9
PROVENANCE = {
    "gpu": "h200-sxm",
    "device_name": "NVIDIA H200",
    "stack": "torch-2.13.0",
    "version": "2.13.0",
    "driver": "580.0",
    "cuda": "13.0",
    "clock_setting": "free",
    "measured_at": "2026-11-20T11:23:00+00:00",
    "status": "ok",
    "run": 1.0,
    "weight": 1.0,
}


def truth() -> Profile:
    """Returns an H200 whose coefficients differ from their priors."""
    prior = load_profile("h200-sxm", "torch", shipped=False)
    chip = replace(
        prior.chip,
        idle_watts=82.0,
        busy_watts=105.0,
        hbm_j_per_byte=5.1e-11,
        bf16_j_per_flop=4.6e-13,
        hbm_saturation=0.41,
    )
    stack = replace(
        prior.stack,
        gemm_flop_efficiency=0.79,
        gemm_byte_efficiency=0.88,
        attention_flop_efficiency=0.47,
        attention_byte_efficiency=0.52,
        attention_seconds=6.5e-6,
        attention_half_columns=1000.0,
        collective_byte_efficiency=0.82,
        collective_seconds=1.4e-5,
        elementwise_byte_efficiency=0.9,
        kernel_seconds=2.6e-6,
        ramp_bytes=2.4e6,
        passes=2.2,
    )
    return Profile(chip=chip, stack=stack)


def cases(every: int = 5, start: int = 0) -> list[dict]:
    """Returns every so manieth case of the full suite."""
    return _rows(full(GPU)[start::every])


def limited_cases() -> list[dict]:
    """Returns kernels on parts of the SMs, and collectives of eight GPUs."""
    return _rows([*sm_shares(GPU), *collectives(8, GPU)])


def _rows(chosen: list) -> list[dict]:
    rows = [{"case": one.name, "kind": one.kind, **dict(one.sizes)} for one in chosen]
    for row in rows:
        if "sms" in row:
            row["sm_share"] = row["sms"] / GPU.sms
    return rows


def steps() -> list[dict]:
    """Returns whole steps of a small model."""
    return [
        {
            "case": f"forward/{phase},{batch},{tokens}",
            "kind": "forward",
            "model": "Qwen/Qwen3-0.6B",
            "phase": phase,
            "batch": float(batch),
            "prompt_tokens": float(tokens),
            "mode": "graphed",
            "weight_dtype": "bf16",
        }
        for phase, batch, tokens in (("prefill", 1, 2048), ("decode", 64, 2048))
    ]


def idle(profile: Profile) -> list[dict]:
    """Returns the idle rows of that machine: at its lowest clock, and at full clock."""
    chip = profile.chip
    loaded = float(chip.idle_watts) * (1.0 + float(chip.voltage_rise)) ** 1.5
    return [
        {
            "case": "clocks_idle",
            "kind": "clocks_idle",
            "idle_watts": float(chip.idle_watts),
            "sm_clock_hz": 3.45e8,
        },
        {
            "case": "loaded_idle",
            "kind": "loaded_idle",
            "loaded_idle_watts": loaded,
            "sm_clock_hz": float(chip.boost_hz),
        },
    ]


def measured(
    rows: list[dict], profile: Profile, *, noise: float = 0.02, energy: bool = True
) -> list[dict]:
    """Returns rows with the time and energy that `profile` says, and noise."""
    rows = [{**PROVENANCE, "sm_clock_hz": CLOCK_HZ, **row} for row in rows]
    timed = [{**row, "seconds": 1.0} for row in rows]
    with jax.enable_x64(True):
        asks = machine_rows(asked(timed), profile.chip)
        leaves = jax.tree.map(lambda leaf: jnp.full(len(rows), leaf), profile)
        jitted = jax.jit(price, compiler_options=COMPILER)
        seconds, joules = map(np.asarray, jitted(asks, leaves.chip, leaves.stack))
    random = np.random.default_rng(0)
    errors = np.exp(noise * random.standard_normal((len(rows), 2)))
    result = []
    for row, time, energy_joules, error in zip(
        rows, seconds, joules, errors, strict=True
    ):
        column = "limited_seconds" if row["kind"] == "sm_share" else "seconds"
        found = {column: float(time * error[0]), "seconds_spread": noise}
        if energy:
            found["joules"] = float(energy_joules * error[1])
            found["watts"] = found["joules"] / found[column]
        result.append({**row, **found})
    return result


def write(path: Path, rows: list[dict]) -> Path:
    """Writes rows the way a run lies on disk."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    pyarrow.parquet.write_table(table, path)
    return path


# One source of kernels for each kind; power of shorter launches is that of others.
TABLES = {
    "gemm": ({"kernel_source": "vllm_default", "dtype": "bfloat16"}, 1e-4),
    "attention_prefill": (
        {"kernel_source": "vllm_flash_attn", "kv_cache_dtype": "bfloat16"},
        3.4e-4,
    ),
    "attention_decode": (
        {"kernel_source": "vllm_flash_attn", "kv_cache_dtype": "bfloat16"},
        3.4e-4,
    ),
    "moe": ({"kernel_source": "vllm_fused_moe", "moe_dtype": "bfloat16"}, 3.4e-4),
}
NAMES = {
    "isl": "prompt_tokens",
    "step": "cached_tokens",
    "ctx": "context_tokens",
    "batch_size": "batch",
    "num_heads": "heads",
    "attn_dtype": "dtype",
    "kv_cache_dtype": "kv_dtype",
    "moe_dtype": "dtype",
    "num_tokens": "tokens",
    "hidden_size": "width",
    "inter_size": "expert_width",
    "topk": "top_k",
    "num_experts": "experts",
}


def from_tables(folder: Path, counts: dict[str, int], seed: int = 0) -> list[dict]:
    """Returns `counts` rows of each kind that were measured on an H200, at random."""
    random = np.random.default_rng(seed)
    rows = []
    for kind, count in counts.items():
        wanted, shortest = TABLES[kind]
        filters = [("gpu", "=", "h200-sxm"), *((k, "=", v) for k, v in wanted.items())]
        table = pyarrow.parquet.read_table(
            folder / "ops" / f"{kind}.parquet", filters=filters
        )
        found = [row for row in table.to_pylist() if _whole(row) and _usual(row)]
        for i in random.permutation(len(found))[:count]:
            rows.append(_row(kind, found[i], shortest))
    return rows


def _whole(row: dict) -> bool:
    """Full attention, and experts that are all on one rank."""
    return (
        not row.get("window")
        and row.get("moe_tp_size", 1) == 1
        and row.get("moe_ep_size", 1) == 1
        and row.get("distribution", "balanced") == "balanced"
    )


def _usual(row: dict) -> bool:
    """Sizes that a suite has: neither contexts of a few tokens nor narrow matrices."""
    return (
        min(row.get("n", 1024), row.get("k", 1024)) >= 1024
        and row.get("isl", 128) >= 128
        and row.get("ctx", 512) >= 512
        and row.get("batch_size", 1) <= 256
    )


def _row(kind: str, cells: dict, shortest: float) -> dict:
    sizes = {
        NAMES.get(name, name): float(value) if isinstance(value, int | float) else value
        for name, value in cells.items()
    }
    seconds, watts = sizes.pop("latency_ms") * 1e-3, sizes.pop("power_w")
    row = {**PROVENANCE, **sizes, "kind": kind, "seconds": seconds}
    row["case"] = f"{kind}/{sorted(sizes.items(), key=str)}"
    if watts and seconds > shortest:
        row |= {"watts": watts, "joules": watts * seconds}
    return row
