"""What fitted groups say about a new one of few rows: where its scores lie, how far they stray.

    z ~ N(z0, s^2 C),    C = (1 - h) S + h diag(S) + b^2 1,    S = mean_g d_g d_g^T

with the scores z0 of a pool, the deviations d_g of all fitted groups from
their own pools (or from the coarse pool, where z0 is that), and a shrinkage h, because there
are about as many groups as coefficients. Which z0 is nearest is left to the rows.

Source: O. Ledoit, M. Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", J. Multivariate Analysis 88(2), 2004 (shrinkage).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from jaxlens.calibration.kernels.formulas import Family, Labels, scores_of
from jaxlens.calibration.kernels.groups import SEPARATOR
from jaxlens.calibration.kernels.kernel_fits import Group, Levels

SHRINKAGE = 0.5  # h
BASE_SPREAD = 0.3  # b
NOTHING_KNOWN = "no fitted group"
# Other names of what torch runs: a linear layer, and flash attention of some version.
KIN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "torch.mm": ("torch.nn.functional.linear",),
        "torch.scaled_dot_product_attention": (
            "flash_attention",
            "vllm_flash_attn",
            "vllm_flash_attn_fa2",
            "vllm_flash_attn_fa3",
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A place where the scores of a new group may lie."""

    name: str  # of the pool or group
    mean: np.ndarray
    factor: np.ndarray  # A of the covariance A A^T


def priors_of(
    family: Family, labels: Mapping[str, str], levels: Levels, spread: float
) -> list[Prior]:
    """Returns the priors that a new group with `labels` may have.

    The pools of its own kernel, or of its kin, and the coarse pool; every pool that agrees in
    what has to match (the number format), where the kernel is unknown; and where none agrees,
    all pools and the prior of the family.

    Args:
        family: Explains the rows.
        labels: Of the new group.
        levels: Fitted groups and pools.
        spread: Of a group around its prior, times what fitted groups show.
    """
    pooled = [level for level in family.levels[:-1] if "gpu" not in level]
    fine, coarse = pooled[-1], pooled[0]
    every = [group for level in pooled for group in levels.get(level, {}).values()]
    near = [group for group in every if _agrees(group, labels, family.must_match)]
    own = [g for g in near if tuple(g.labels) == coarse or _is_kin(g, labels, fine)]
    alone = all(tuple(group.labels) == coarse for group in own)
    like = family.must_match if near else ()
    factors = {
        level: spread * _factor(family, levels, level, labels, like)
        for level in {fine, coarse}
    }
    priors = [
        Prior(
            name=group.name,
            mean=scores_of(family.coefficients, group.values),
            factor=factors[coarse if tuple(group.labels) == coarse else fine],
        )
        for group in ((near if alone else own) or every)
    ]
    return priors if near else [*priors, _unknown(family)]


def _is_kin(group: Group, labels: Mapping[str, str], fine: Labels) -> bool:
    """Whether a pool is that of the same kernel, or of one by another name."""
    kin = KIN.get(labels.get("kernel_source", ""), ())
    return group.labels.get("kernel_source") in kin or _agrees(group, labels, fine)


def _unknown(family: Family) -> Prior:
    size = len(family.coefficients)
    return Prior(name=NOTHING_KNOWN, mean=np.zeros(size), factor=np.eye(size))


def _agrees(group: Group, labels: Mapping[str, str], keys: Labels) -> bool:
    return all(group.labels.get(key) == labels.get(key) for key in keys)


def _factor(
    family: Family,
    levels: Levels,
    level: Labels,
    labels: Mapping[str, str],
    like: Labels,
) -> np.ndarray:
    """Returns A for groups around their pools of `level`, from groups like the new one."""
    pools = levels.get(level, {})
    moved = []
    for group in levels.get(family.levels[-1], {}).values():
        known = {**group.labels, "kind": family.kind}
        pool = pools.get(SEPARATOR.join(known[label] for label in level))
        if pool is not None and _agrees(group, labels, like):
            own = scores_of(family.coefficients, group.values)
            moved.append(own - scores_of(family.coefficients, pool.values))
    size = len(family.coefficients)
    if not moved:
        return np.eye(size)
    deviations = np.stack(moved)
    seen = deviations.T @ deviations / len(deviations)
    shrunk = (1.0 - SHRINKAGE) * seen + SHRINKAGE * np.diag(np.diag(seen))
    return np.linalg.cholesky(shrunk + BASE_SPREAD**2 * np.eye(size))
