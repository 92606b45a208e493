"""Profiles of chips without serving runs, carried over from fitted ones.

A chip takes the physics of its fitted kin (the same die with other memory or another limit),
and its priors where there is none. Its stack is that of the kin, or the geometric mean of all
fitted chips. The bandwidth that products reach also moves by half of the logarithm of what
measured kernels say about both chips.

Measured: H100 to B200 under vLLM 0.11. Kernels say 0.89 of the share of bandwidth for
products of few rows, serving runs 0.94, the square root; for products of many rows kernels say
0.89 and serving runs 1.01, so those stay.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxlens.calibration.kernels import predict_table
from jaxlens.calibration.raw_tables import from_records
from jaxlens.calibration.tables import build_table
from jaxlens.fitted_profiles import FittedProfile, FittedValue
from jaxlens.profiles import ProfileCard, load_chip, load_profile_card

# The same die under another limit or with other memory.
KIN = {
    "h200-sxm": "h100-sxm",
    "gb200": "b200-sxm",
    "a100-sxm-80gb": "a100-sxm-40gb",
}
KERNEL_POWER = 0.5
FEW_ROWS = (16, 64)
SQUARE = 8192
KERNELS = ("torch.nn.functional.linear", "vllm_default", "torch_flow")
BANDWIDTH = "gemm_byte_efficiency"
MOST_SHARE = 0.97


def transferred(gpu: str, fitted: Sequence[FittedProfile], stack: str) -> FittedProfile:
    """Returns a profile of `gpu` under `stack`, carried over from `fitted` ones.

    Args:
        gpu: Chip without runs under that stack.
        fitted: Profiles of other chips, of which some are of that stack.
        stack: Id of the stack.
    """
    card = load_profile_card(gpu, stack, shipped=False)
    given = [profile for profile in fitted if profile.stack == stack]
    if not given:
        raise ValueError(
            f"transfer: expected a fit of {stack}, got none; fit it first."
        )
    kin = [p for p in fitted if p.chip == KIN.get(card.chip)]
    kin = sorted(kin, key=lambda p: (p.stack != stack, -p.rows))[:1]
    software = [p for p in kin if p.stack == stack] or given
    chip_values = _carried(card, "chip", kin)
    stack_values = _carried(card, "stack", software)
    moved = _by_kernels(card.chip, [p.chip for p in software])
    if BANDWIDTH in stack_values:
        old = stack_values[BANDWIDTH]
        value = min(MOST_SHARE, old.value * moved)
        stack_values[BANDWIDTH] = replace(old, value=_short(value))
    sources = dict.fromkeys(f"{p.chip} with {p.stack}" for p in kin + software)
    return FittedProfile(
        chip=card.chip,
        stack=card.stack,
        created=datetime.date.today().isoformat(),
        fitted_on=tuple(f"carried over from {source}" for source in sources),
        rows=0,
        chip_values=chip_values,
        stack_values=stack_values,
        provenance={
            "kernel_bandwidth_ratio": _short(moved),
            "runs": "none on this chip: intervals hold the error of unseen chips",
        },
    )


def reached_bandwidth(gpu: str) -> float | None:
    """Returns the share of HBM bandwidth of products of few rows; None where not measured."""
    chip = load_chip(gpu)
    moved = np.array([2.0 * (SQUARE * SQUARE + 2.0 * m * SQUARE) for m in FEW_ROWS])
    for kernel in KERNELS:
        records = [
            {
                "gpu": gpu,
                "kernel_source": kernel,
                "dtype": "bfloat16",
                "m": rows,
                "n": SQUARE,
                "k": SQUARE,
                "seconds": 1.0,
            }
            for rows in FEW_ROWS
        ]
        raw = from_records(records, source="shapes", data=b"")
        seconds = np.asarray(predict_table(build_table(raw, kind="gemm"))["seconds"])
        if np.isfinite(seconds).all():
            return float(np.mean(moved / float(chip.hbm_bytes_per_s) / seconds))
    return None


def _by_kernels(gpu: str, others: Sequence[str]) -> float:
    """Ratio of reached bandwidth to that of `others`, tempered; 1 where not known."""
    own = reached_bandwidth(gpu)
    theirs = [reached_bandwidth(other) for other in others]
    known = [math.log(share) for share in theirs if share is not None]
    if own is None or not known:
        return 1.0
    return math.exp(KERNEL_POWER * (math.log(own) - sum(known) / len(known)))


def _carried(
    card: ProfileCard, layer: str, profiles: Sequence[FittedProfile]
) -> dict[str, FittedValue]:
    """Geometric means of fitted values, less sure by half the spread of the own priors."""
    result = {}
    every: list[Mapping[str, FittedValue]] = [
        getattr(profile, f"{layer}_values") for profile in profiles
    ]
    for name in every[0] if every else ():
        own = card.coefficients[f"{layer}.{name}"].spread or 0.0
        mean = sum(math.log(values[name].value) for values in every) / len(every)
        sd = sum(values[name].sd for values in every) / len(every)
        spread = math.hypot(sd, 0.5 * own)
        result[name] = FittedValue(value=_short(math.exp(mean)), sd=_short(spread))
    return result


def _short(value: float) -> float:
    return float(f"{value:.5g}")
