"""What a comparison will visit: one plan for each kind of deployment.

A kind is a model on a GPU under a stack, with its formats and flags. Its plan has the layouts
that the GPUs allow and the space of all knobs; nothing has been evaluated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from jaxlens.declarations import FLAGS, Kind, SearchSpace
from jaxlens.deployments import Deployment, Workload
from jaxlens.device_layouts import Layout, layouts
from jaxlens.economics import Tariff
from jaxlens.expressions import Bound
from jaxlens.knob_values import Values, axis
from jaxlens.limits import BUDGETS, Limits
from jaxlens.profile_files import CHIPS, read_entry
from jaxlens.questions import FIELDS, Question, deployment_space, question
from jaxlens.queueing import Arrivals
from jaxlens.requests import Request, has_network, prepare
from jaxlens.spaces import Axis, Space

DEFAULT_MAX_GPUS = 16
OWN_FORMAT = "checkpoint"  # weights and cache as published
# Axes whose values have two meanings, of which a space declares one.
RIVALS = {
    "sequences": ("sequences", "batch"),
    "clock": ("clock_hz", "clock_share"),
}
Tariffs = Tariff | Mapping[str, Tariff]  # the same for all GPUs, or by id


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """One kind of deployment and all that will be tried of it."""

    label: str  # what tells it from the other kinds of a comparison
    request: Request
    layouts: tuple[Layout, ...]
    space: Space
    question: Question
    kind: Mapping[
        str, Kind
    ]  # model, gpu, stack, formats and flags, as they were declared
    bounds: tuple[Bound, ...]  # between degrees, and between any names

    @property
    def size(self) -> int:
        """How many deployments there are."""
        return self.space.size


def plans(
    declared: SearchSpace,
    workload: Workload | None = None,
    *,
    limits: Limits | None = None,
    soft: Sequence[str] = (),
    rates: Tariffs | None = None,
    arrivals: Arrivals | None = None,
) -> tuple[Plan, ...]:
    """Returns the plan of each kind of deployment in a space.

    Args:
        declared: The space; it names at least a model and a GPU.
        workload: Lengths of the requests, where the space does not vary them.
        limits: What deployments must meet.
        soft: Power budgets that exclude nothing: excess is reported.
        rates: Prices, host watts and PUE.
        arrivals: How requests come in; without them all sequences are always in flight.

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    for name, example in (("model", "Qwen/Qwen3-8B"), ("gpu", "h100-sxm")):
        if not declared.kinds.get(name):
            raise ValueError(
                f"{name}: expected at least one id such as {example}, got none."
            )
    for name in soft:
        if name not in BUDGETS:
            raise ValueError(f"soft: expected of {', '.join(BUDGETS)}, got {name!r}.")
    kinds = [
        dict(zip(declared.kinds, values, strict=True))
        for values in product(*declared.kinds.values())
    ]
    varied = [name for name, values in declared.kinds.items() if len(values) > 1]
    shared = {"limits": limits, "soft": tuple(soft), "arrivals": arrivals}
    return tuple(
        _plan(kind, varied, _request(kind, declared, workload), declared, rates, shared)
        for kind in kinds
    )


def _plan(
    kind: Mapping[str, Kind],
    varied: Sequence[str],
    request: Request,
    declared: SearchSpace,
    rates: Tariffs | None,
    shared: Mapping[str, Any],
) -> Plan:
    listed = layouts(
        request.shape,
        request.profile.chip,
        request.deployment,
        declared.max_gpus or DEFAULT_MAX_GPUS,
        network=has_network(request.card),
        degrees=declared.degrees,
        bounds=declared.layout_bounds,
    )
    asked = question(
        request.model,
        request.profile,
        request.deployment,
        request.workload,
        listed,
        rates=_rates(rates, str(kind["gpu"]), request.card.chip),
        bounds=declared.point_bounds,
        hertz="clock_hz" in declared.knobs,
        over_all_replicas="batch" in declared.knobs,
        **shared,
    )
    return Plan(
        label=_label(request.card.chip, kind, varied),
        request=request,
        layouts=listed,
        space=deployment_space(listed, **_axes(declared.knobs, request)),
        question=asked,
        kind=kind,
        bounds=declared.bounds,
    )


def _request(
    kind: Mapping[str, Any], declared: SearchSpace, workload: Workload | None
) -> Request:
    flags = {name: kind[name] for name in FLAGS if name in kind}
    if "stages" in declared.knobs:
        flags.setdefault("overlap", True)
    formats = {
        name: None if kind.get(name) == OWN_FORMAT else kind.get(name)
        for name in ("weights", "kv")
    }
    return prepare(
        kind["model"],
        kind["gpu"],
        stack=kind.get("stack"),
        deployment=Deployment(**flags),
        workload=workload,
        **formats,
    )


def _axes(knobs: Mapping[str, Values], request: Request) -> dict[str, Axis]:
    """Axes of what is declared, and of one value for the other fields."""
    owners = {"workload": request.workload, "base": request.deployment}
    fixed = {
        name: Values(listed=(float(getattr(owners[owner], name)),))
        for name, owner in FIELDS.items()
    }
    given = {**fixed, **{name: knobs[name] for name in FIELDS if name in knobs}}
    for name, rivals in RIVALS.items():
        for rival in rivals:
            if rival in knobs:
                given[name] = knobs[rival]
    return {name: axis(name, values) for name, values in given.items()}


def _rates(rates: Tariffs | None, gpu: str, chip: str) -> Tariff:
    """Prices of a GPU by the name that it was given, by its id or by another alias."""
    if rates is None or isinstance(rates, Tariff):
        return rates or Tariff()
    if gpu in rates:
        return rates[gpu]
    for name, tariff in rates.items():
        if read_entry(CHIPS, name).id == chip:
            return tariff
    raise ValueError(
        f"prices: expected one for {chip}, got {', '.join(rates) or 'none'}; add it."
    )


def _label(chip: str, kind: Mapping[str, Kind], varied: Sequence[str]) -> str:
    """The GPU, and what else tells this kind from the others."""
    parts = [chip]
    for name in varied:
        value, words = kind[name], name.replace("_", " ")
        if isinstance(value, bool):
            parts.append(words if value else f"no {words}")
        elif name != "gpu":
            parts.append(f"kv {value}" if name == "kv" else str(value))
    return " ".join(parts)
