"""Energy of the processor from the counters that Linux shows under `powercap`.

Source: The Linux kernel documentation, "Power Capping Framework", 2025,
https://docs.kernel.org/power/powercap/powercap.html.
"""

from pathlib import Path

ROOT = Path("/sys/class/powercap")


class Rapl:
    """The package counters of all sockets, added up and carried over their wrap-around."""

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = [_number(zone / "energy_uj") for zone in zones]
        self._microjoules = 0

    def joules(self) -> float:
        """Returns the energy since this reader was opened."""
        for i, zone in enumerate(self._zones):
            now = _number(zone / "energy_uj")
            step = now - self._last[i]
            self._microjoules += step if step >= 0 else step + self._ranges[i]
            self._last[i] = now
        return self._microjoules / 1e6


def open_rapl(root: Path = ROOT) -> Rapl | None:
    """Returns a reader of the sockets, None where counters are absent or not readable."""
    zones = [
        zone
        for zone in sorted(root.glob("*:*"))
        if zone.name.count(":") == 1 and (zone / "name").is_file()
        if (zone / "name").read_text().strip().startswith("package")
    ]
    try:
        return Rapl(zones) if zones else None
    except (OSError, ValueError):
        return None


def _number(path: Path) -> int:
    return int(path.read_text())
