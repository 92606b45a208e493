"""What a user asks the harness to measure."""

from dataclasses import dataclass
from pathlib import Path

from jaxlens.measure.suites import OPERATIONS, SUITES

QUICK_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of `jaxlens measure`."""

    suite: str = "quick"
    operations: tuple[str, ...] = OPERATIONS
    out: Path = Path("run.parquet")
    device: str = "cuda"
    budget_seconds: float | None = None  # QUICK_SECONDS for the quick suite, else none
    window_seconds: float | None = None
    runs: int = 1
    threads: int | None = None  # of a processor; one per physical core by default
    lock_clock_hz: float | None = None
    allow_disturbed: bool = False

    @property
    def seconds(self) -> float | None:
        """The time that measuring may take."""
        if self.budget_seconds is None and self.suite == "quick":
            return QUICK_SECONDS
        return self.budget_seconds


def check(request: Request) -> Request:
    """Returns `request` if it makes sense."""
    if request.suite not in SUITES:
        raise ValueError(
            f"--suite: expected one of {', '.join(SUITES)}, got {request.suite!r}."
        )
    unknown = sorted(set(request.operations) - set(OPERATIONS))
    if unknown or not request.operations:
        raise ValueError(
            f"--ops: expected some of {', '.join(OPERATIONS)}, got "
            f"{', '.join(unknown) or 'none'}."
        )
    for name, value in (
        ("--budget", request.budget_seconds),
        ("--window", request.window_seconds),
        ("--lock-clocks", request.lock_clock_hz),
    ):
        if value is not None and not 0.0 < value < float("inf"):
            raise ValueError(f"{name}: expected more than 0, got {value}.")
    if request.runs < 1:
        raise ValueError(f"--runs: expected 1 or more, got {request.runs}.")
    if request.threads is not None and request.threads < 1:
        raise ValueError(f"--threads: expected 1 or more, got {request.threads}.")
    if request.threads is not None and request.device != "cpu":
        raise ValueError(
            f"--threads: expected --device cpu, got --device {request.device}."
        )
    if request.lock_clock_hz is not None and request.device == "cpu":
        raise ValueError("--lock-clocks: expected a GPU, got --device cpu.")
    return request
