"""What is said of a case in place of a result."""

from jaxlens.measure.devices import is_out_of_memory
from jaxlens.measure.refusals import Disturbed


def status_of(error: Exception) -> str:
    """Returns why there is no result, in one line."""
    if isinstance(error, Disturbed):
        return f"refused: {error}"
    if is_out_of_memory(error):
        return "out of memory: leave the case out or free memory"
    return f"failed: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
