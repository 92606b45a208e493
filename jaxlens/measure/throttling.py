"""Why a GPU runs below its highest clock, and which reasons spoil a measurement.

Source: NVIDIA, NVML API reference, "nvmlClocksEventReasons", 2025,
https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html.
"""

REASONS: dict[int, str] = {
    0x001: "gpu idle",
    0x002: "application clocks set",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost with another GPU",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake from outside",
    0x100: "display clock setting",
}
# A kernel that draws as much as the board allows is limited by itself: that is a result.
OWN = {"gpu idle", "software power cap"}
# A clock that the caller locked on purpose shows as these.
LOCKED = {"application clocks set"}


def names(mask: int) -> tuple[str, ...]:
    """Returns the reasons in an NVML bit mask.

    >>> names(0x44)
    ('software power cap', 'hardware thermal slowdown')
    """
    known = tuple(name for bit, name in REASONS.items() if mask & bit)
    rest = mask & ~sum(REASONS)
    return (*known, f"unknown reason {rest:#x}") if rest else known


def foreign(reasons: set[str], *, locked: bool = False) -> tuple[str, ...]:
    """Returns the reasons that do not come from the measured kernel itself.

    >>> foreign({"software power cap", "power brake from outside"})
    ('power brake from outside',)
    """
    return tuple(sorted(reasons - OWN - (LOCKED if locked else set())))
