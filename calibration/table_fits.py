"""Fits of tables that are no serving runs: a machine, kernels and collectives, forward passes.

What `jaxlens measure` wrote of one machine becomes a chip and a profile of it. Kernels get
formulas of their own (one file for each chip, and one of pools); forward passes give profiles
of chips under the eager stack. Both are written to a folder that `jaxlens validate --profile`
accepts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlens.calibration.measured_tables import Table

KERNELS = frozenset(
    {"gemm", "attention_prefill", "attention_decode", "moe", "collectives", "alltoall"}
)
Progress = Callable[[str], None]


def kind_of(tables: Sequence[Table]) -> str:
    """Returns which fit tables are for: serving, forward or kernels.

    Raises:
        ValueError: for tables of different fits, or of a kind that nothing is fitted to.
    """
    kinds = dict.fromkeys(
        "kernels" if table.kind in KERNELS else table.kind for table in tables
    )
    if len(kinds) > 1:
        raise ValueError(
            f"calibrate: expected tables for one fit, got {', '.join(kinds)}; "
            f"fit serving runs, forward passes and kernels one after the other."
        )
    (kind,) = kinds
    if kind not in ("serving", "forward", "kernels"):
        raise ValueError(
            f"calibrate: expected serving runs, forward passes or kernels, got {kind}; "
            f"`jaxlens validate` reads such a table."
        )
    return kind


def are_runs(paths: Sequence[Path]) -> bool:
    """Returns whether `paths` are runs of `jaxlens measure`, all of their kinds in one.

    Raises:
        ValueError: for runs together with tables of another kind.
    """
    from jaxlens.calibration.machines.runs import is_run

    found = [is_run(path) for path in paths]
    if any(found) and not all(found):
        other = paths[found.index(False)]
        raise ValueError(
            f"calibrate: expected runs of `jaxlens measure` alone, got {other} as well; "
            "fit tables of another kind in a command of its own."
        )
    return all(found)


def fit_kernel_tables(
    tables: Sequence[Table], out: Path, progress: Progress
) -> dict[str, Any]:
    """Fits kernels, writes them into the folder `out` and returns the report."""
    from jaxlens.calibration.kernels import fit_kernels

    _folder(out)
    twice = [t.kind for t in tables if [o.kind for o in tables].count(t.kind) > 1]
    if twice:
        raise ValueError(
            f"calibrate: expected one table of each kind, got two of {twice[0]}."
        )
    found = fit_kernels(
        tables,
        progress=lambda name, done, total: progress(f"{name}: {done} of {total}"),
    )
    found.save(out)
    return {"report": found.report, "written": sorted(map(str, out.glob("*.toml")))}


def fit_forward_tables(
    tables: Sequence[Table], out: Path, progress: Progress
) -> dict[str, Any]:
    """Fits forward passes, writes profiles into the folder `out`, returns the report."""
    from jaxlens.calibration.forward.fitting import fit_forward, left_out
    from jaxlens.calibration.forward.profiles import profiles, save_profiles
    from jaxlens.calibration.forward.validation import cross_validated

    _folder(out)
    progress("fitting forward passes")
    found = fit_forward(tables)
    progress("validating on models left out")
    errors = cross_validated(found)
    unseen = left_out(found, found.problem.labels["model"])
    written = save_profiles(profiles(found, errors, unseen), out)
    return {
        "report": {"fit": found.report, **errors},
        "written": list(map(str, written)),
    }


def _folder(out: Path) -> None:
    if out.suffix and not out.is_dir():
        raise ValueError(
            f"calibrate: expected --out to be a folder for these tables, got {out}."
        )
