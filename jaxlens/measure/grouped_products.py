"""Products of sorted rows with the weights of their experts, in one launch where possible."""

from collections.abc import Callable
from typing import Any

from jaxlens.measure.devices import Device

Grouped = Callable[[Any, Any, Any], Any]  # rows [r, k], weights [x, k, n], ends [x]


def grouped_product(device: Device, dtype: Any, ends: list[int]) -> tuple[Grouped, str]:
    """Returns the grouped product and its name; a loop over experts as the last resort.

    `ends` are the last rows of each expert, exclusive, as the device tensor that the product
    takes as its third argument.
    """
    torch = device.torch
    fused = getattr(torch.nn.functional, "grouped_mm", None)
    fused = fused or getattr(torch, "_grouped_mm", None)
    if fused is not None and device.kind == "cuda" and dtype == torch.bfloat16:
        return lambda rows, weights, last: fused(rows, weights, offs=last), "grouped_mm"

    def looped(rows: Any, weights: Any, last: Any) -> Any:
        result = rows.new_empty((rows.shape[0], weights.shape[2]))
        start = 0
        for expert, end in enumerate(ends):
            if end > start:
                torch.mm(rows[start:end], weights[expert], out=result[start:end])
            start = end
        return result

    return looped, "torch.mm per expert"


def balanced_ends(rows: int, experts: int) -> list[int]:
    """Returns where each expert's rows end if they are spread evenly.

    >>> balanced_ends(10, 4)
    [3, 6, 8, 10]
    """
    share, rest = divmod(rows, experts)
    return [share * (x + 1) + min(x + 1, rest) for x in range(experts)]
