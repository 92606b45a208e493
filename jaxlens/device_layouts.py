"""Layouts of a model over GPUs, listed on the host and looked up on the device.

Which layouts an engine accepts, and which meet bounds between degrees alone, is decided once
for each; refused ones stay in the list with the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.deployments import UNLIMITED, Deployment
from jaxlens.expressions import Bound, slack
from jaxlens.hardware import Chip
from jaxlens.layouts import check_layout
from jaxlens.pytrees import pytree
from jaxlens.shapes import Experts, ModelShape

DEGREES = ("tensor_parallel", "expert_parallel", "pipeline_parallel", "data_parallel")
LAYOUT_NAMES = (*DEGREES, "gpus")  # that a bound between degrees alone may have
MOST_STAGES = 8  # pipeline stages, unless they are listed
CAPACITIES = (
    1024,
    65_536,
)  # columns are padded to one of them, to keep shapes the same

Degrees = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of parallelism, and why an engine refuses them if it does."""

    tensor_parallel: int
    expert_parallel: int
    pipeline_parallel: int
    data_parallel: int
    problem: str = ""
    bound_slack: float = 1.0  # of bounds between degrees; negative where one is missed

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


@pytree
class Layouts:
    """Layouts as columns, for the device."""

    tensor_parallel: Float[np.ndarray, " layout"]
    expert_parallel: Float[np.ndarray, " layout"]
    pipeline_parallel: Float[np.ndarray, " layout"]
    data_parallel: Float[np.ndarray, " layout"]
    slack: Float[np.ndarray, " layout"]
    bound_slack: Float[np.ndarray, " layout"]


def layouts(
    shape: ModelShape,
    chip: Chip,
    base: Deployment,
    most_gpus: int,
    *,
    network: bool = True,
    degrees: Degrees | None = None,
    bounds: Sequence[Bound] = (),
) -> tuple[Layout, ...]:
    """Returns all layouts on at most `most_gpus` GPUs, in powers of two by default.

    Args:
        shape: The model.
        chip: Its node size counts.
        base: What the layouts share.
        most_gpus: Layouts with more are left out.
        network: Whether replicas may span nodes.
        degrees: Degrees to try, by name. Experts are else split like any other matrix, or
            spread over all tensor x data ranks.
        bounds: Bounds between names in `LAYOUT_NAMES`.

    Raises:
        ValueError: none is left, or there are too many.
    """
    found = []
    for tp, ep, pp, dp in _combinations(shape, most_gpus, degrees or {}):
        layout = Layout(
            tensor_parallel=tp,
            expert_parallel=ep,
            pipeline_parallel=pp,
            data_parallel=dp,
        )
        asked = replace(
            base, batch=UNLIMITED, **{n: float(getattr(layout, n)) for n in DEGREES}
        )
        problems = check_layout(shape, chip, asked, network=network)
        found.append(replace(layout, problem=problems[0] if problems else ""))
        if len(found) > CAPACITIES[-1]:
            raise ValueError(
                f"layouts: expected at most {CAPACITIES[-1]:,} combinations of degrees, "
                f"got more; list fewer degrees or lower the number of GPUs."
            )
    if not found:
        raise ValueError(
            f"layouts: expected degrees whose product is at most {most_gpus} GPUs, got "
            f"none; raise the number of GPUs (max_gpus) or lower the degrees."
        )
    return _bounded(found, bounds)


def layout_columns(listed: Sequence[Layout]) -> Layouts:
    """Returns `listed` as columns of one of two capacities."""
    capacity = next(size for size in CAPACITIES if size >= len(listed))
    padded = [*listed, *[listed[-1]] * (capacity - len(listed))]

    def column(name: str) -> np.ndarray:
        return np.array([getattr(layout, name) for layout in padded], np.float32)

    return Layouts(
        **{name: column(name) for name in DEGREES},
        slack=np.array([-1.0 if layout.problem else 0.0 for layout in padded]),
        bound_slack=column("bound_slack"),
    )


def degrees_at(table: Layouts, position: Array) -> dict[str, Array]:
    """Returns the degrees of one layout; runs on the device."""
    return {name: elementary.entry(getattr(table, name), position) for name in DEGREES}


def _combinations(
    shape: ModelShape, most: int, degrees: Degrees
) -> Iterator[tuple[int, int, int, int]]:
    powers = [2**power for power in range(most.bit_length())]
    shallow = [power for power in powers if power <= MOST_STAGES]
    routed = any(isinstance(feed, Experts) for feed in shape.feeds)
    for tp in degrees.get("tensor_parallel", powers):
        for pp in degrees.get("pipeline_parallel", shallow):
            if tp * pp > most:
                continue
            for dp in degrees.get("data_parallel", powers):
                if tp * pp * dp > most:
                    continue
                spread = sorted({1, tp * dp}) if routed else [1]
                for ep in degrees.get("expert_parallel", spread):
                    yield tp, ep, pp, dp


def _bounded(found: list[Layout], bounds: Sequence[Bound]) -> tuple[Layout, ...]:
    if not bounds:
        return tuple(found)
    columns = {
        name: np.array([getattr(layout, name) for layout in found], np.float32)
        for name in LAYOUT_NAMES
    }
    least = np.min([np.asarray(slack(bound, columns)) for bound in bounds], axis=0)
    return tuple(
        replace(layout, bound_slack=float(value))
        for layout, value in zip(found, least, strict=True)
    )
