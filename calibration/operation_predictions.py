"""What the prices of predictions say of measured operations, one by one.

A row is priced as a step of one operation, at its clock and on its share of the SMs, under the
coefficients of its chip and of torch as a stack. Two kernels side by side share HBM: beside a
copy the roofline of a product counts the bytes of both, and what does not overlap is the chip's
contention w. Streams with an equal say are slowed alike:

    slowdown = max_w(t_product(bytes of both) / t_product, 1)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlens.calibration.machines.prices import price
from jaxlens.calibration.machines.rows import NOTHING, Asked, asked, machine_rows
from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.run_chips import catalogued, chip_source
from jaxlens.fitted_profiles import read_fitted_profile
from jaxlens.kernel_works import works
from jaxlens.profile_files import STACKS, aliases, known_ids, normalised
from jaxlens.profiles import Profile, load_profile, load_profile_card
from jaxlens.requests import PROCESSOR
from jaxlens.smooth import smooth_max
from jaxlens.steps import Item

TORCH = "torch"  # stack that stands for all versions of torch
IDLE = ("clocks_idle", "loaded_idle")
OVERLAP = "overlap"
LISTED = 5  # reasons that a note gives
FEWEST = 32  # rows that are priced at once
# Compiled once for a handful of numbers: quick to compile, not quick to run.
_price = jax.jit(
    price,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
    },
)

Row = dict[str, Any]


def uncatalogued(table: Table) -> bool:
    """Returns whether rows are of a chip that only the file beside the table describes."""
    return not all(catalogued(name) for name in set(table["gpu"].tolist()))


def of_torch(table: Table) -> bool:
    """Returns whether all rows are of plain torch kernels, with no serving stack."""
    return table.has("stack") and {_stack(s) for s in table["stack"].tolist()} == {
        TORCH
    }


def is_of_machine(profile: str | Path | None) -> bool:
    """Returns whether `profile` is a fitted profile, or a folder with those of a machine."""
    if profile is None:
        return False
    path = Path(profile).expanduser()
    return path.is_file() or any(path.glob(f"*.{TORCH}.toml"))


def predict_operations(
    table: Table, profile: str | Path | None = None
) -> dict[str, Any]:
    """Returns seconds, joules and idle watts of every row; NaN where prices say nothing.

    Args:
        table: Rows of operations that `jaxlens measure` writes, of one kind or a whole run.
        profile: A fitted profile, or a folder of them; priors of the chip and of torch where
            not given.
    """
    names = ("seconds", "joules", "idle_watts", "product_slowdown", "copy_slowdown")
    said: dict[str, Any] = {name: np.full(len(table), np.nan) for name in names}
    rows = [_row(table, position) for position in range(len(table))]
    notes: list[str] = []
    for (gpu, stack), positions in _pairs(rows, profile).items():
        source = chip_source(table.source, gpu)
        priced = load_profile(source, stack, profile=profile)
        own = {str(row.get("stack") or TORCH) for row in (rows[i] for i in positions)}
        if own != {stack}:
            notes.append(f"{', '.join(sorted(own))}: priced as {stack}.")
        members = {i: rows[i] for i in positions}
        with jax.enable_x64(True):
            reasons = _price_alone(members, priced, said)
            _price_pairs(members, priced, said)
        if _energy_is_made_up(source, stack, profile):
            said["joules"][positions] = said["idle_watts"][positions] = np.nan
            notes.append(f"{gpu}: a processor, whose energy is not predicted.")
        if profile is None and source != gpu:
            notes.append(
                f"{gpu}: priced with priors of other chips; `jaxlens calibrate RUN.parquet "
                "--out mine/`, then --profile mine/."
            )
        notes += [f"not priced: {reason}." for reason in reasons[:LISTED]]
    said["limited_seconds"] = said["seconds"]
    said["loaded_idle_watts"] = said["idle_watts"]
    return {**said, "notes": notes}


def _row(table: Table, position: int) -> Row:
    """Returns the known cells of a row, with the kind of its operation."""
    row: Row = {"kind": table.kind}
    for name, values in table.columns.items():
        cell = values[position].item()
        if cell != "" and cell == cell:
            row[name] = cell
    return row


def _pairs(
    rows: Sequence[Row], profile: str | Path | None
) -> dict[tuple[str, str], list[int]]:
    """Returns the positions of the rows of each chip and stack."""
    fitted = None
    if profile is not None and Path(profile).expanduser().is_file():
        fitted = read_fitted_profile(Path(profile).expanduser()).stack
    pairs: dict[tuple[str, str], list[int]] = {}
    for position, row in enumerate(rows):
        stack = fitted or _stack(str(row.get("stack") or TORCH))
        pairs.setdefault((str(row["gpu"]), stack), []).append(position)
    return pairs


def _stack(name: str) -> str:
    """Returns the stack of the catalogue that prices rows of `name`.

    >>> _stack("torch-2.11.0"), _stack("vllm-0.11")
    ('torch', 'vllm-0.11')
    """
    plain = normalised(name)
    if plain in known_ids(STACKS):
        return plain
    if plain in aliases(STACKS):
        return aliases(STACKS)[plain]
    return TORCH


def _energy_is_made_up(
    source: str | Path, stack: str, profile: str | Path | None
) -> bool:
    return load_profile_card(source, stack, profile).vendor == PROCESSOR


def _price_alone(
    rows: Mapping[int, Row], profile: Profile, said: Mapping[str, np.ndarray]
) -> list[str]:
    """Fills in what operations take; returns why some are left out."""
    single = {i: row for i, row in rows.items() if row["kind"] != OVERLAP}
    found = asked(list(single.values()))
    if not found.rows:
        return list(found.reasons)
    where = {id(row): position for position, row in single.items()}
    positions = [where[id(row)] for row in found.rows]
    seconds, joules = _priced(found, profile)
    idle = np.array([row["kind"] in IDLE for row in found.rows])
    for name, values, told in (
        ("seconds", seconds, ~idle),
        ("joules", joules, ~idle),
        ("idle_watts", joules, idle),
    ):
        said[name][positions] = np.where(told, values, np.nan)
    return list(found.reasons)


def _price_pairs(
    rows: Mapping[int, Row], profile: Profile, said: Mapping[str, np.ndarray]
) -> None:
    """Fills in how much a product and a copy slow each other down."""
    pairs = {i: row for i, row in rows.items() if row["kind"] == OVERLAP}
    if not pairs:
        return
    products = [works("gemm", row)["gemm"] for row in pairs.values()]
    copied = np.array([row["copied_bytes"] for row in pairs.values()])
    alone = np.array([row["seconds_alone"] for row in pairs.values()])
    beside = alone / np.array([row["copy_seconds_alone"] for row in pairs.values()])
    # A copy's bytes take as long as they do alone, not as long as those of a product.
    stack = profile.stack
    pace = stack.gemm_byte_efficiency / stack.elementwise_byte_efficiency
    joint = [
        replace(one, hbm_bytes=one.hbm_bytes + float(bytes_))
        for one, bytes_ in zip(products, copied * beside * pace, strict=True)
    ]
    plain = [{"gpu": row["gpu"], "kind": "gemm"} for row in pairs.values()]
    times = []
    for group in (products, joint):
        items = ((Item(name="gemm", layers=1.0, asks=one), *NOTHING) for one in group)
        found = Asked(rows=tuple(plain), items=tuple(items), reasons=())
        times.append(_priced(found, profile)[0])
    contention = np.asarray(profile.chip.overlap_contention, float)
    slowdown = smooth_max(times[1] / times[0], np.ones(len(pairs)), contention)
    for name in ("product_slowdown", "copy_slowdown"):
        said[name][list(pairs)] = np.asarray(slowdown)


def _priced(found: Asked, profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Returns seconds and joules of rows; tables of like length share one compilation."""
    count = len(found.rows)
    more = max(FEWEST, 1 << (count - 1).bit_length()) - count
    padded = replace(
        found,
        rows=(*found.rows, *more * found.rows[:1]),
        items=(*found.items, *more * found.items[:1]),
    )
    rows = machine_rows(padded, profile.chip)
    leaves = jax.tree.map(lambda leaf: np.full(count + more, float(leaf)), profile)
    seconds, joules = _price(rows, leaves.chip, leaves.stack)
    return np.asarray(seconds)[:count], np.asarray(joules)[:count]
