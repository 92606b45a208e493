"""A prediction that is made again: the same numbers, or which have moved and why.

What can change are inputs, the coefficients of chip and stack, the shape of the model and the
version of jaxlens.
"""

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxlens.deployments import UNLIMITED
from jaxlens.fingerprints import fingerprint
from jaxlens.requests import Request

SAME = 1e-9  # relative: in float64, other processors round the last digits otherwise


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """How a prediction of today compares with the one in a file; pairs are old and new."""

    inputs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    coefficients: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    model_changed: bool = False
    versions: tuple[str, str] = ("", "")
    moved: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether every number is the one in the file."""
        return not self.moved


def reproduction(
    content: Mapping[str, Any],
    recommended: Request,
    request: Request,
    numbers: Mapping[str, Any],
) -> Reproduction:
    """Returns how the `answer` to `request` compares with what a file predicted.

    Args:
        content: Of the file.
        recommended: The request that the file stands for today.
        request: What was asked now.
        numbers: Its answer.
    """
    old, new = content["coefficients"], coefficients(request)
    provenance = content["provenance"]
    return Reproduction(
        inputs=changed_inputs(recommended, request),
        coefficients={
            name: (old.get(name, math.nan), new.get(name, math.nan))
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        },
        model_changed=provenance["model_fingerprint"] != shape_fingerprint(request),
        versions=(provenance["version"], importlib.metadata.version("jaxlens")),
        moved={
            name: (value, _number(numbers, name))
            for name, value in _flat(content["predicted"]).items()
            if not math.isclose(
                value, _number(numbers, name), rel_tol=SAME, abs_tol=1e-300
            )
        },
    )


def said(found: Reproduction, most: int = 4) -> list[str]:
    """Returns a reproduction in words: first whether numbers moved, then what changed."""
    lines = [
        "reproduces the recommendation: every number is the same"
        if found.same
        else f"not the numbers of the recommendation: {len(found.moved)} moved, "
        f"{_pairs(found.moved, most)}"
    ]
    if found.inputs:
        lines.append(f"inputs differ: {_pairs(found.inputs, most)}")
    if found.coefficients:
        lines.append(f"the profile has changed: {_pairs(found.coefficients, most)}")
    if found.model_changed:
        lines.append("the model's shape has changed")
    if found.versions[0] != found.versions[1]:
        lines.append(f"jaxlens {found.versions[0]} became {found.versions[1]}")
    if not (found.same or lines[1:]):
        lines.append("nothing that was asked has changed: the model of costs has")
    return lines


def as_content(found: Reproduction) -> dict[str, Any]:
    """Returns a reproduction as plain values, for JSON."""

    def pairs(entries: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        return {
            name: {"recommended": _finite(old), "now": _finite(new)}
            for name, (old, new) in entries.items()
        }

    return {
        "same": found.same,
        "moved": pairs(found.moved),
        "inputs_changed": pairs(found.inputs),
        "coefficients_changed": pairs(found.coefficients),
        "model_changed": found.model_changed,
        "version_recommended": found.versions[0],
        "version_now": found.versions[1],
    }


def coefficients(request: Request) -> dict[str, float]:
    """Returns everything that prices a request, by name."""
    chip, stack = vars(request.profile.chip), vars(request.profile.stack)
    return {
        **{f"chip.{name}": float(value) for name, value in chip.items()},
        **{f"stack.{name}": float(value) for name, value in stack.items()},
        **{f"scatter.{name}": float(v) for name, v in request.card.scatter.items()},
    }


def shape_fingerprint(request: Request) -> str:
    """Returns what tells models apart, whatever they are called."""
    return fingerprint(replace(request.shape, name=""))


def changed_inputs(old: Request, new: Request) -> dict[str, tuple[Any, Any]]:
    """Returns what two requests ask differently: old and new, by name."""
    pairs: dict[str, tuple[Any, Any]] = {
        "gpu": (old.card.chip, new.card.chip),
        "stack": (old.card.stack, new.card.stack),
        "weights": (old.shape.formats.feed_forward, new.shape.formats.feed_forward),
        "kv": (old.shape.kv_format, new.shape.kv_format),
        "model": (old.shape.name, new.shape.name),
    }
    for owner in ("deployment", "workload"):
        before, after = vars(getattr(old, owner)), vars(getattr(new, owner))
        pairs |= {name: (before[name], after[name]) for name in before}
    if not (old.deployment.overlap or new.deployment.overlap):
        del pairs["stages"]
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _flat(predicted: Mapping[str, Any]) -> dict[str, float]:
    flat = {}
    for name, value in predicted.items():
        if isinstance(value, list):
            flat |= {f"{name}.low": value[0], f"{name}.high": value[1]}
        else:
            flat[name] = value
    return flat


def _number(numbers: Mapping[str, Any], name: str) -> float:
    name, _, end = name.partition(".")
    value = numbers.get(name, math.nan)
    if end:
        value = value[end == "high"] if isinstance(value, list) else math.nan
    return float(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pairs(entries: Mapping[str, tuple[Any, Any]], most: int) -> str:
    shown = [
        f"{name} {_short(old)} -> {_short(new)}" for name, (old, new) in entries.items()
    ]
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "none" if value >= UNLIMITED or math.isnan(value) else f"{value:.6g}"
    return str(value)
