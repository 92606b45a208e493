"""Errors of kernel formulas on a chip that only the quick suite of `jaxlens measure` has seen.

The quick suite is emulated on measured op tables: of each chip and kernel, the rows nearest to
the cases that the harness would choose in its time are fitted; the rows nearest to the other
cases of the full suite, and other rows of the table, judge. Pools and groups that serve as
priors are fitted without any row of that chip. Kernels that torch runs go by torch's names.
Reads the folder that JAXLENS_DATA names.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from jaxlens.calibration.kernels import (
    KernelFits,
    Options,
    fit_kernels,
    predict_table,
    trustworthy_power,
)
from jaxlens.calibration.kernels.kernel_fits import Group
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.tables import read_table
from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Device
from jaxlens.measure.plans import plan
from jaxlens.measure.requests import Request
from jaxlens.measure.suites import full
from jaxlens.measure.windows import Rules
from jaxlens.profiles import load_chip

CHIPS = ("h200-sxm", "b200-sxm", "a100-sxm-80gb", "l40s")  # one each of four kinds
SIZES = {
    "gemm": ("m", "n", "k"),
    "attention_prefill": ("batch", "prompt_tokens", "heads", "kv_heads"),
    "attention_decode": ("batch", "context_tokens", "heads", "kv_heads"),
    "moe": (
        *("tokens", "width", "expert_width", "top_k", "experts"),
        *("tensor_parallel", "expert_parallel"),
    ),
}
DTYPE = "bfloat16"
FEWEST_ROWS = 400  # of a kernel that is emulated
POOL_ROWS = 200  # of a kernel on another chip that priors are fitted to
OTHER_ROWS = 400
POOLS = Options(at_once=4)  # few groups: less padding
NEAR = 2.0  # factor in sizes within which a row stands for a case
MOE_SOURCE = "moe_torch_flow_cutlass"  # grouped products, as torch runs them
SCORED_SECONDS = 1e-5
FEWEST_POWER_ROWS = 100
TARGETS = {"seconds": "seconds", "joules": "watts"}  # judged, and fitted
# What torch calls the kernels that it runs: a linear layer, flash attention.
TORCH = {"torch.nn.functional.linear": "torch.mm"} | dict.fromkeys(
    (
        "flash_attention",
        "vllm_flash_attn",
        "vllm_flash_attn_fa2",
        "vllm_flash_attn_fa3",
    ),
    "torch.scaled_dot_product_attention",
)


def device(gpu: str) -> Device:
    """Returns what the choice of a suite asks of a device."""
    chip = load_chip(gpu)
    known = {"memory_bytes": float(chip.hbm_bytes), "sms": int(float(chip.sms))}
    return cast(Device, SimpleNamespace(kind="cuda", name=gpu, **known))


def nearest(table: Table, cases: Sequence[Case], factor: float = np.inf) -> np.ndarray:
    """Returns the rows nearest in size to the cases, no size off by more than `factor`."""
    names = SIZES[table.kind]
    sizes = np.log(np.stack([table[name] for name in names], axis=1))
    found = set()
    for one in cases:
        apart = sizes - np.log([float(one[name]) for name in names])
        row = int(np.argmin(np.sum(apart**2, axis=1)))
        if np.max(np.abs(apart[row])) <= np.log(factor):
            found.add(row)
    return np.array(sorted(found), int)


def cases_of(suite: Sequence[Case], kind: str) -> list[Case]:
    """Returns the cases of `kind` that tables have: one format, no cached tokens."""
    return [
        one
        for one in suite
        if one.kind == kind
        and one["dtype"] == DTYPE
        and not dict(one.sizes).get("cached_tokens")
    ]


def split(
    rows: Table, quick: Sequence[Case], every: Sequence[Case]
) -> tuple[Table, dict[str, Table]]:
    """Returns the rows of the quick suite, and those that judge."""
    learnt = nearest(rows, cases_of(quick, rows.kind))
    suite = np.setdiff1d(nearest(rows, cases_of(every, rows.kind), NEAR), learnt)
    rest = np.setdiff1d(np.arange(rows.rows), np.concatenate([learnt, suite]))
    rest = np.sort(np.random.default_rng(0).permutation(rest)[:OTHER_ROWS])
    judged = {"suite": rows.subset(suite), "table": rows.subset(rest)}
    return rows.subset(learnt), judged


def renamed(table: Table, source: str) -> Table:
    """Returns `table` under the name that the harness gives its kernel."""
    names = np.full(table.rows, TORCH.get(source, source))
    return replace(table, columns={**table.columns, "kernel_source": names})


def errors(table: Table, fits: KernelFits, target: str) -> dict[str, Any]:
    """Returns errors of seconds or joules, of launches long enough to be scored."""
    found = predict_table(table, fits)[target]
    scored = table["seconds"] >= SCORED_SECONDS
    apes = np.abs(found[scored] / table[target][scored] - 1.0)
    if not len(apes):
        return {"rows": 0}
    mean, median = round(float(apes.mean()), 4), round(float(np.median(apes)), 4)
    return {"rows": len(apes), "mape": mean, "median_ape": median}


def emulate(
    rows: Table, priors: KernelFits, quick: Sequence[Case], every: Sequence[Case]
) -> dict[str, Any]:
    """Returns what a fit on the quick suite makes of the other rows of one kernel.

    Time and energy are emulated apart: the harness reads the power of every case, a table
    has power to trust in its longer launches alone.
    """
    shown: dict[str, Any] = {}
    for target, part in (("seconds", rows), ("joules", trusted(rows))):
        if part.rows < FEWEST_POWER_ROWS:
            continue
        learnt, judged = split(part, quick, every)
        fits = fit_kernels([learnt], priors=priors)
        group = fitted(fits, rows.kind, TARGETS[target])
        shown[target] = {
            "quick_rows": learnt.rows,
            "nearest": group.nearest,
            "reported_mape": group.held_out_mape and round(group.held_out_mape, 4),
            **{name: errors(other, fits, target) for name, other in judged.items()},
        }
    return shown


def trusted(table: Table) -> Table:
    """Returns the rows whose power is their own."""
    if not table.has("watts"):
        return table.subset(np.zeros(table.rows, bool))
    return table.subset(trustworthy_power(table.kind)(table.columns))


def fitted(fits: KernelFits, kind: str, target: str) -> Group:
    """Returns the one group of a chip that was fitted."""
    levels = fits.levels[target][kind]
    (group,) = [g for of in levels if "gpu" in of for g in levels[of].values()]
    return group


def kernels(table: Table, gpu: str) -> dict[str, Table]:
    """Returns the rows of every kernel that was measured often enough on a chip."""
    mine = table.subset(table["gpu"] == gpu)
    names, counts = np.unique(mine["kernel_source"], return_counts=True)
    if table.kind == "moe":
        counts = np.where(names == MOE_SOURCE, counts, 0)
    return {
        str(name): renamed(mine.subset(mine["kernel_source"] == name), str(name))
        for name in names[counts >= FEWEST_ROWS]
    }


def thinned(table: Table) -> Table:
    """Returns at most `POOL_ROWS` rows of each kernel on each chip."""
    order = np.random.default_rng(0).permutation(table.rows)
    names = np.char.add(table["gpu"], table["kernel_source"])[order]
    kept = [order[names == name][:POOL_ROWS] for name in np.unique(names)]
    return table.subset(np.sort(np.concatenate(kept)))


def study(
    folder: Path, chips: Sequence[str], kinds: Sequence[str], budget_seconds: float
) -> dict[str, Any]:
    """Returns errors by kind, chip and kernel, and their means over kernels."""
    quick = plan(Request(budget_seconds=budget_seconds), device(chips[0]), Rules(), 1)
    every = full(device(chips[0]))
    by_kind: dict[str, Any] = {}
    for kind in kinds:
        table = read_table(folder / "ops" / f"{kind}.parquet")
        format_of = "kv_dtype" if "kv_dtype" in table.columns else "dtype"
        table = table.subset(table[format_of] == DTYPE)
        by_kind[kind] = {}
        for gpu in chips:
            known = kernels(table, gpu)
            if not known:
                continue
            priors = fit_kernels(
                [thinned(table.subset(table["gpu"] != gpu))], options=POOLS
            )
            for source, rows in known.items():
                name = f"{gpu} | {source}"
                by_kind[kind][name] = emulate(rows, priors, quick, every)
                print(f"{kind}: {name}", file=sys.stderr)
    return {
        "cases": len(quick),
        "summary": {kind: summary(found) for kind, found in by_kind.items()},
        "by_kernel": by_kind,
    }


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns means over kernels."""
    shown: dict[str, Any] = {}
    for target in TARGETS:
        known = [one[target] for one in found.values() if target in one]
        if known:
            parts = {part: [one[part] for one in known] for part in ("suite", "table")}
            shown[target] = {
                "kernels": len(known),
                "mean_quick_rows": _mean([one["quick_rows"] for one in known]),
                **{
                    f"{part}_{measure}": _mean(
                        [one[measure] for one in scores if one["rows"]]
                    )
                    for part, scores in parts.items()
                    for measure in ("mape", "median_ape")
                },
            }
    return shown


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def main() -> None:
    """Prints the study as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", default=",".join(CHIPS))
    parser.add_argument("--kinds", default=",".join(SIZES))
    parser.add_argument("--budget", type=float, default=300.0, help="seconds")
    given = parser.parse_args()
    folder = os.environ.get("JAXLENS_DATA")
    if not folder or not (Path(folder) / "ops").is_dir():
        print(json.dumps({"skipped": "JAXLENS_DATA names no folder of op tables"}))
        return
    begun = time.perf_counter()
    chips, kinds = given.chips.split(","), given.kinds.split(",")
    found = study(Path(folder), chips, kinds, given.budget)
    found["seconds"] = round(time.perf_counter() - begun, 1)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
