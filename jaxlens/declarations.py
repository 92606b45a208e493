"""The space of deployments that a user declares: values of knobs, kinds and bounds.

*Knobs* are numbers and traced: all their values run in one compiled program. *Kinds* (model,
GPU, stack, formats, flags) are an outer loop; those that leave the structure of the program
as it is share its compilation. *Bounds* are expressions between names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from os import PathLike
from typing import Any

from jaxlens.deployments import UNLIMITED
from jaxlens.device_layouts import DEGREES, LAYOUT_NAMES
from jaxlens.expressions import Bound, bound
from jaxlens.knob_values import Values, choices, parsed
from jaxlens.questions import CHIP_NAMES, FIELDS, KNOBS, RESULTS
from jaxlens.requests import MOST_GPUS, RANGES

# Knobs by name: the unit in which text may give them.
UNITS: Mapping[str, str] = {
    **dict.fromkeys(DEGREES, ""),
    "sequences": "",  # in flight, per replica
    "batch": "",  # in flight, over all replicas
    "clock_hz": "hertz",
    "clock_share": "",  # of the highest clock of the chip
    **dict.fromkeys(FIELDS, ""),
    "power_cap_watts": "watts",
}
KINDS = (
    "model",
    "gpu",
    "stack",
    "weights",
    "kv",
    "sequence_parallel",
    "fused",
    "overlap",
)
FLAGS = ("sequence_parallel", "fused", "overlap")
ALIASES: Mapping[str, str] = {
    "tp": "tensor_parallel",
    "ep": "expert_parallel",
    "pp": "pipeline_parallel",
    "dp": "data_parallel",
    "clock": "clock_hz",
    "power_cap": "power_cap_watts",
    "comm_sms": "communication_sms",
    "skew": "routing_skew",
    "prompt": "prompt_tokens",
    "output": "output_tokens",
    "output_cv": "output_tokens_cv",
}
SCALES: Mapping[str, tuple[str, float]] = {
    "clock_ghz": ("clock_hz", 1e9),
    "clock_mhz": ("clock_hz", 1e6),
}
OPEN_ENDED = ("clock_hz", "power_cap_watts", "chunk_tokens")  # may have no limit
WHOLE = (*DEGREES, "communication_sms")
# Knobs of which a space has one: both say the same.
RIVALS = (("sequences", "batch"), ("clock_hz", "clock_share"))
NAMES = (*KNOBS, *RESULTS, *CHIP_NAMES)  # that a bound may have
WORDS = {
    "true": True,
    "on": True,
    "yes": True,
    "false": False,
    "off": False,
    "no": False,
}

Kind = str | bool | PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What may vary: values by knob, kinds by name, and bounds. See `search_space`."""

    knobs: Mapping[str, Values] = field(default_factory=dict)
    kinds: Mapping[str, tuple[Kind, ...]] = field(default_factory=dict)
    bounds: tuple[Bound, ...] = ()
    max_gpus: int | None = None

    @property
    def degrees(self) -> dict[str, tuple[int, ...]]:
        """Degrees of parallelism that are declared."""
        return {
            name: tuple(round(value) for value in self.knobs[name].every)
            for name in DEGREES
            if name in self.knobs
        }

    @property
    def layout_bounds(self) -> tuple[Bound, ...]:
        """Bounds between degrees alone: decided once for each layout."""
        return tuple(b for b in self.bounds if set(b.names) <= set(LAYOUT_NAMES))

    @property
    def point_bounds(self) -> tuple[Bound, ...]:
        """All other bounds: evaluated at every point, part of the compiled program."""
        return tuple(b for b in self.bounds if b not in self.layout_bounds)

    def joined(self, other: "SearchSpace") -> "SearchSpace":
        """Returns both together; what `other` declares wins, bounds add up."""
        return checked(
            replace(
                self,
                knobs={**self.knobs, **other.knobs},
                kinds={**self.kinds, **other.kinds},
                bounds=tuple(dict.fromkeys((*self.bounds, *other.bounds))),
                max_gpus=self.max_gpus if other.max_gpus is None else other.max_gpus,
            )
        )


def search_space(
    *,
    where: str | Iterable[str] = (),
    max_gpus: int | None = None,
    **declared: Any,
) -> SearchSpace:
    """Returns the space of all combinations of the values that are declared.

    Args:
        where: Bounds, such as "tensor_parallel * pipeline_parallel * data_parallel <= 16".
        max_gpus: Most GPUs of a deployment, all replicas together.
        declared: Values by name of a knob or kind: a number, a list, `Values` such as
            `knob_values.grid(1e9, 2e9, 11)`, or text such as "1..8*2".

    >>> found = search_space(gpu=["h100-sxm", "b200-sxm"], tensor_parallel="1..8*2")
    >>> len(found.knobs["tensor_parallel"])
    4

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    knobs: dict[str, Values] = {}
    kinds: dict[str, tuple[Kind, ...]] = {}
    for given, value in declared.items():
        name, factor = resolved(given)
        if name in knobs or name in kinds:
            raise ValueError(f"{given}: expected each knob once, got {name} twice.")
        if name in KINDS:
            kinds[name] = _kinds(name, value)
        else:
            knobs[name] = _values(given, name, value).scaled(factor)
    several = isinstance(where, Iterable) and not isinstance(where, str)
    texts: list[Any] = list(where) if several else [where]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"where: expected bounds as text, got {texts!r}.")
    bounds = tuple(bound(text, NAMES, ALIASES) for text in texts)
    space = SearchSpace(knobs=knobs, kinds=kinds, bounds=bounds, max_gpus=max_gpus)
    return checked(space)


def resolved(given: str) -> tuple[str, float]:
    """Returns the knob or kind that a spelling stands for, and the factor to its unit."""
    spelled = given.strip().lower().replace("-", "_")
    if spelled in SCALES:
        return SCALES[spelled]
    name = ALIASES.get(spelled, spelled)
    if name not in UNITS and name not in KINDS:
        known = [*UNITS, *KINDS, *ALIASES, *SCALES]
        near = get_close_matches(spelled, known, 3)
        near = near or [name for name in known if name.startswith(spelled[:3])]
        hint = f"near: {', '.join(near)}" if near else f"there are {', '.join(known)}"
        raise ValueError(f"{given}: expected the name of a knob or kind; {hint}.")
    return name, 1.0


def checked(space: SearchSpace) -> SearchSpace:
    """Returns `space` if what it declares is plausible and does not contradict itself."""
    for pair in RIVALS:
        if all(name in space.knobs for name in pair):
            raise ValueError(
                f"{pair[1]}: expected {' or '.join(pair)}, got both; declare one."
            )
    for name, values in space.knobs.items():
        _check_range(name, values)
    if space.max_gpus is not None and not 1 <= space.max_gpus <= MOST_GPUS:
        raise ValueError(
            f"max GPUs: expected a number from 1 to {MOST_GPUS}, got {space.max_gpus}."
        )
    if "stages" in space.knobs and space.kinds.get("overlap") == (False,):
        raise ValueError(
            "stages: expected overlap = true, as stages are those of the overlap of "
            "products with collectives, got overlap = false; leave one out."
        )
    return space


def _kinds(name: str, value: Any) -> tuple[Kind, ...]:
    single = isinstance(value, str | bool | PathLike | Mapping)
    given = [value] if single else list(value)
    if isinstance(value, str):
        given = [part.strip() for part in value.split(",") if part.strip()]
    if name in FLAGS:
        given = [_flag(name, item) for item in given]
    if not given:
        raise ValueError(f"{name}: expected at least one, got none.")
    found: list[Kind] = []
    for item in given:
        if item not in found:
            found.append(item)
    return tuple(found)


def _flag(name: str, item: Any) -> bool:
    word = str(item).strip().lower()
    if word not in WORDS:
        raise ValueError(f"{name}: expected true or false, got {item!r}.")
    return WORDS[word]


def _values(given: str, name: str, value: Any) -> Values:
    unit = "" if given.strip().lower() in SCALES else UNITS[name]
    if isinstance(value, Values):
        return value
    if isinstance(value, str):
        return parsed(value, unit, where=given)
    if isinstance(value, bool) or value is None or isinstance(value, Mapping):
        raise ValueError(f"{given}: expected numbers or text, got {value!r}.")
    items = list(value) if isinstance(value, Iterable) else [value]
    if any(isinstance(item, str) for item in items):
        return parsed(",".join(str(item) for item in items), unit, where=given)
    try:
        return choices(items, where=given)
    except TypeError:
        raise ValueError(f"{given}: expected numbers or text, got {value!r}.") from None


def _check_range(name: str, values: Values) -> None:
    finite = [v for v in (values.lowest, values.highest) if v < UNLIMITED]
    if len(finite) < 2 and name not in OPEN_ENDED:
        raise ValueError(
            f"{name}: expected numbers, got none: it has no limit to lift."
        )
    low, high, hint = 0.0, float("inf"), ""
    if name in DEGREES:
        low, high, hint = 1.0, float(MOST_GPUS), "; 1 does not split"
    elif name in ("sequences", "batch"):
        _, low, high, words = RANGES["batch"]
        hint = f"; {'it' if name == 'batch' else 'per replica: it'} counts sequences"
        hint = hint if words else ""
    elif name in RANGES:
        _, low, high, words = RANGES[name]
        hint = f"; {words}"
    elif name == "clock_hz":
        low, high, hint = (
            1e7,
            1e10,
            "; plain numbers are hertz: 1.4GHz, or clock_ghz=1.4",
        )
    elif name == "clock_share":
        low, high, hint = 0.01, 1.0, "; it is a share of the highest clock"
    for value in finite:
        if not low <= value <= high:
            raise ValueError(
                f"{name}: expected numbers from {low:g} to {high:,.10g}, "
                f"got {value:g}{hint}."
            )
    steps = values.listed or (values.low, values.step)
    if name in WHOLE and any(v != round(v) for v in steps):
        raise ValueError(f"{name}: expected whole numbers; use 1..8 or 1..8*2.")
