"""Supply voltage and idle power by SM clock: their shape, fitted to measured curves.

Voltage is flat up to a knee and rises along a parabola above it. With x = (f - f_knee) /
(f_boost - f_knee) and at least 0,

    V(f) = V_flat (1 + rise ((1 - bend) x + bend x^2)),    P(f) = P_0 (1 + slope f/f_boost) v^a

Measured: A100 PCIe 40 GB and A100 SXM (EnergAIzer artifact, arXiv 2604.20105, 2026): bend 0.60
and 0.39; a straight line puts 1.9 % too little voltage at the knee and 1.6 % too much at boost.
"""

from dataclasses import dataclass

import numpy as np

from jaxlens.calibration.measured_tables import Table
from jaxlens.profiles import load_chip, load_profile_card

KNEES = 400  # that a fit tries
LOWEST_CLOCK_SHARE = (
    0.2  # below, memory clocks drop as well and idle power is another one
)


@dataclass(frozen=True)
class VoltageCurve:
    """Shape of V(f) above its flat part."""

    flat_volts: float
    knee_hz: float
    rise: float  # V(boost) / V(flat) - 1
    bend: float  # share of the rise that goes with the square


@dataclass(frozen=True)
class IdleCurve:
    """Shape of P(f) without any kernel."""

    floor_watts: float
    slope: float  # more at boost clock, at the same voltage
    knee_hz: float
    rise: float  # more at boost clock, on top
    bend: float


def fit_voltage(
    clock_hz: np.ndarray, volts: np.ndarray, boost_hz: float
) -> VoltageCurve:
    """Returns the curve of least squared relative error; the knee is searched."""
    knee, (flat, linear, square) = _best(clock_hz, volts, boost_hz, _rising)
    total = linear + square
    return VoltageCurve(
        flat, knee, total / flat, float(np.clip(square / max(total, 1e-12), 0.0, 1.0))
    )


def fit_idle(clock_hz: np.ndarray, watts: np.ndarray, boost_hz: float) -> IdleCurve:
    """Returns the curve of least squared relative error; the knee is searched."""
    knee, (floor, slope, linear, square) = _best(clock_hz, watts, boost_hz, _sloping)
    total = linear + square
    bend = square / total if abs(total) > 1e-12 else 0.0
    return IdleCurve(floor, slope / floor, knee, total / floor, float(bend))


def voltage_at(
    clock_hz: np.ndarray, curve: VoltageCurve, boost_hz: float
) -> np.ndarray:
    """Returns volts at each clock."""
    x = _above(clock_hz, curve.knee_hz, boost_hz)
    rise = (1.0 - curve.bend) * x + curve.bend * x * x
    return curve.flat_volts * (1.0 + curve.rise * rise)


def idle_at(clock_hz: np.ndarray, curve: IdleCurve, boost_hz: float) -> np.ndarray:
    """Returns idle watts at each clock."""
    x = _above(clock_hz, curve.knee_hz, boost_hz)
    rise = (1.0 - curve.bend) * x + curve.bend * x * x
    straight = curve.slope * clock_hz / boost_hz
    return curve.floor_watts * (1.0 + straight + curve.rise * rise)


def clock_curve_prediction(table: Table) -> dict[str, np.ndarray]:
    """Returns volts or idle watts of every row, from the curves that chips come with.

    The curve of a chip is the one in its TOML file, not fitted to the table; volts are NaN
    where it has no measured ones, and idle power is from the shared model then.
    """
    name = {"clocks_voltage": "volts", "clocks_idle": "idle_watts"}[table.kind]
    predicted = np.full(len(table), np.nan)
    for gpu in dict.fromkeys(table["gpu"].tolist()):
        rows = table["gpu"] == gpu
        predicted[rows] = _predicted(gpu, name, np.asarray(table["sm_clock_hz"])[rows])
    return {name: predicted}


def chip_voltage(gpu: str) -> VoltageCurve:
    """Returns the voltage curve of a chip; its flat part is 1 V where none was measured."""
    chip = load_chip(gpu)
    curve = load_profile_card(gpu, shipped=False).curves.get("voltage")
    return VoltageCurve(
        flat_volts=curve.values[0] if curve else 1.0,
        knee_hz=float(chip.knee_hz),
        rise=float(chip.voltage_rise),
        bend=float(chip.voltage_bend),
    )


def _predicted(gpu: str, name: str, clock_hz: np.ndarray) -> np.ndarray:
    chip = load_chip(gpu)
    boost = float(chip.boost_hz)
    curves = load_profile_card(gpu, shipped=False).curves
    if name == "volts":
        if "voltage" not in curves:
            return np.full(len(clock_hz), np.nan)
        return voltage_at(clock_hz, chip_voltage(gpu), boost)
    if "idle" in curves:
        known = np.asarray(curves["idle"].clock_hz), np.asarray(curves["idle"].values)
        grid = np.arange(known[0].min(), known[0].max() + 1.0, float(chip.step_hz))
        curve = fit_idle(grid, np.interp(grid, *known), boost)
        return idle_at(clock_hz, curve, boost)
    volts = chip_voltage(gpu)
    ratio = voltage_at(clock_hz, volts, boost) / volts.flat_volts
    return float(chip.idle_watts) * ratio**1.5


def _above(clock_hz: np.ndarray, knee_hz: float, boost_hz: float) -> np.ndarray:
    return np.maximum(0.0, (clock_hz - knee_hz) / (boost_hz - knee_hz))


def _rising(clock_hz: np.ndarray, knee_hz: float, boost_hz: float) -> np.ndarray:
    x = _above(clock_hz, knee_hz, boost_hz)
    return np.stack([np.ones_like(x), x, x * x], axis=1)


def _sloping(clock_hz: np.ndarray, knee_hz: float, boost_hz: float) -> np.ndarray:
    x = _above(clock_hz, knee_hz, boost_hz)
    return np.stack([np.ones_like(x), clock_hz / boost_hz, x, x * x], axis=1)


def _best(clock_hz, values, boost_hz, basis) -> tuple[float, tuple[float, ...]]:
    """The knee, and the weights of `basis`, of least squared relative error."""
    known = np.isfinite(values) & (clock_hz > LOWEST_CLOCK_SHARE * boost_hz)
    clock, target = clock_hz[known], values[known]
    if len(clock) < 5:
        raise ValueError(
            f"clock curve: expected at least 5 known points, got {len(clock)}."
        )
    found: list[tuple[float, float, np.ndarray]] = []
    for knee in np.linspace(clock.min(), 0.95 * boost_hz, KNEES):
        terms = basis(clock, knee, boost_hz) / target[:, None]
        weights, *_ = np.linalg.lstsq(terms, np.ones(len(clock)), rcond=None)
        miss = terms @ weights - 1.0
        found.append((float(miss @ miss), float(knee), weights))
    _, knee, weights = min(found, key=lambda item: item[0])
    return knee, tuple(float(weight) for weight in weights)
