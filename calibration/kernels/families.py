"""All kernel formulas, by the kind of table that they explain."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxlens.calibration.kernels import (
    alltoall,
    attention_decode,
    attention_prefill,
    collectives,
    experts,
    gemm,
    powers,
)
from jaxlens.calibration.kernels.formulas import Columns, Family
from jaxlens.calibration.measured_tables import Table

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        module.FAMILY.kind: module.FAMILY
        for module in (
            gemm,
            attention_prefill,
            attention_decode,
            experts,
            collectives,
            alltoall,
        )
    }
)
POWER_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        kind: powers.power_family(FAMILIES[kind], work)
        for kind, work in {
            "gemm": powers.gemm_work,
            "attention_prefill": powers.prefill_work,
            "attention_decode": powers.decode_work,
            "moe": powers.experts_work,
        }.items()
    }
)


def rows_of(table: Table) -> Columns:
    """Returns the columns of a table, one row for every measured time."""
    if table.kind not in FAMILIES:
        raise ValueError(
            f"{table.source}: expected a table of kind {', '.join(FAMILIES)}, got "
            f"{table.kind}."
        )
    if table.kind == "alltoall":
        return alltoall.by_phase(table.columns)
    return table.columns
