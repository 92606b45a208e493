"""Quantities as people write them, "1410MHz" or "400 Gb/s", in SI."""

import re

UNITS: dict[str, dict[str, float]] = {
    "": {"": 1.0, "%": 0.01},
    "hertz": {"": 1.0, "Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    "watts": {"": 1.0, "W": 1.0, "kW": 1e3},
    "seconds": {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
    "bytes/s": {
        "": 1.0,
        "B/s": 1.0,
        "MB/s": 1e6,
        "GB/s": 1e9,
        "Mb/s": 1e6 / 8.0,
        "Gb/s": 1e9 / 8.0,
        "Mbit/s": 1e6 / 8.0,
        "Gbit/s": 1e9 / 8.0,
        "Gbps": 1e9 / 8.0,
    },
}
EXAMPLES = {
    "": "0.5",
    "hertz": "1410MHz",
    "watts": "400W",
    "seconds": "50ms",
    "bytes/s": "400Gb/s",
}
NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\s\d]*)\s*")


def quantity(text: str | float, unit: str, *, where: str) -> float:
    """Returns the number in `text`, with or without a unit, in `unit`.

    >>> quantity("1.41GHz", "hertz", where="clock")
    1410000000.0

    Raises:
        ValueError: It is no number, or in a unit of something else.
    """
    match = NUMBER.fullmatch(str(text))
    known = UNITS[unit]
    spelled = {name.casefold(): scale for name, scale in known.items()}
    if unit == "bytes/s":
        spelled = known  # b is a bit and B a byte
    name = match[2] if match else ""
    name = name if unit == "bytes/s" else name.casefold()
    if match is None or name not in spelled:
        raise ValueError(f"{where}: expected {_expected(unit)}, got {str(text)!r}.")
    return float(match[1]) * spelled[name]


def _expected(unit: str) -> str:
    if not unit:
        return "a number without a unit"
    return f"{unit}, or a number with a unit such as {EXAMPLES[unit]}"
