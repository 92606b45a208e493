"""A recommendation as a file: what to run, what it is predicted to do, and how to check that.

YAML with the request in full, the coefficients that it was priced with, the predicted numbers
with their intervals, and the commands of servers, GPUs and benchmark. Reading it and predicting
again gives the same numbers, or says which have moved and what has changed since.
"""

import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from jaxlens.answers import answer
from jaxlens.commands import SERVERS, benchmark_command, checkpoint, serve_commands
from jaxlens.commands.gpus import gpu_commands, reset_commands
from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.fingerprints import fingerprint
from jaxlens.predictions import NUMBERS, Estimate, predict
from jaxlens.recommendations.files import FORMAT, read_content, write_content
from jaxlens.recommendations.reproductions import (
    Reproduction,
    changed_inputs,
    coefficients,
    shape_fingerprint,
)
from jaxlens.recommendations.reproductions import reproduction as _reproduction
from jaxlens.requests import Request, prepare

# What the file calls an input, and the option of `jaxlens predict`.
DEPLOYMENT_OPTIONS = {
    "batch": "batch",
    "tensor_parallel": "tp",
    "expert_parallel": "ep",
    "pipeline_parallel": "pp",
    "data_parallel": "dp",
    "clock_hz": "clock",
    "power_cap_watts": "power_cap",
    "communication_sms": "comm_sms",
    "stages": "stages",
    "chunk_tokens": "chunk_tokens",
    "routing_skew": "skew",
    "sequence_parallel": "sequence_parallel",
    "overlap": "overlap",
}
WORKLOAD_OPTIONS = {
    "prompt_tokens": "prompt",
    "output_tokens": "output",
    "output_tokens_cv": "output_cv",
}
SOURCES = ("model", "gpu", "stack", "profile", "weights", "kv")
# What a load generator measures of a prediction.
CHECKED = (
    "seconds_per_output_token",
    "output_tokens_per_second",
    "requests_per_second",
    "watts_per_gpu",
    "joules_per_output_token",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommendation:
    """The content of a file, and the request that it stands for today."""

    path: Path
    content: Mapping[str, Any]
    request: Request

    @property
    def predicted(self) -> Mapping[str, Any]:
        """Numbers as they were predicted, in SI."""
        return self.content["predicted"]


def exact_estimate(request: Request) -> Estimate:
    """Returns the estimate of a request in float64, in plain numbers."""
    with jax.enable_x64(True):
        found = predict(
            request.model, request.profile, request.deployment, request.workload
        )
        return jax.tree.map(float, found)


def write(
    request: Request,
    estimate: Estimate | None,
    path: str | os.PathLike[str],
    *,
    model: str,
    gpu: str | None = None,
    stack: str | None = None,
    profile: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    kv: str | None = None,
    network_bytes_per_s: float | None = None,
    limits: Mapping[str, float] | None = None,
    why: Sequence[str] = (),
    runner_up: Mapping[str, Any] | None = None,
    requests_per_second: float | None = None,
) -> Path:
    """Returns the path after writing a recommendation that reads back as `request`.

    Args:
        request: What is recommended.
        estimate: Its `exact_estimate`, computed if None.
        path: File to write.
        model: HuggingFace id or path of a config.json, as `request` was prepared with; so
            are `gpu`, `stack`, `profile`, `weights`, `kv` and `network_bytes_per_s`.
        gpu: By default the id of the request's chip.
        stack: By default the id of the request's stack.
        profile: Fitted profile; by default the one that comes with the package.
        weights: Number format of the weights; None is the checkpoint's own.
        kv: Number format of the KV cache; None is the checkpoint's own.
        network_bytes_per_s: Between nodes, per GPU; None is the chip's.
        limits: What was to be met, by name and in SI; unlimited ones are left out.
        why: What binds, a sentence each.
        runner_up: The next best deployment, in plain numbers.
        requests_per_second: Rate of the benchmark; by default the batch stays in flight.

    Raises:
        ValueError: a file that is read back would not ask the same.
    """
    sources = {
        "model": _kept(model),
        "gpu": _kept(gpu or request.card.chip),
        "stack": _kept(stack or request.card.stack),
        "profile": None if profile is None else _kept(os.fspath(profile)),
        "weights": weights,
        "kv": kv,
        "network_bytes_per_s": network_bytes_per_s,
    }
    estimate = exact_estimate(request) if estimate is None else estimate
    numbers = answer(request, estimate)
    content = {
        "format": FORMAT,
        "request": {
            **sources,
            "deployment": _plain(request.deployment),
            "workload": _plain(request.workload),
        },
        "limits": {n: float(v) for n, v in (limits or {}).items() if v < UNLIMITED},
        "why": [str(reason) for reason in why],
        "runner_up": dict(runner_up) if runner_up else None,
        "predicted": _predicted(numbers),
        "predicted_in_benchmark": _in_benchmark(request),
        "commands": _commands(request, model, weights, kv, requests_per_second),
        "provenance": _provenance(request, numbers),
        "coefficients": coefficients(request),
    }
    target = Path(path).expanduser()
    again = _request(content["request"], target)
    changed = [name for name in changed_inputs(request, again) if name != "model"]
    if shape_fingerprint(request) != shape_fingerprint(again):
        changed.append("model")
    if coefficients(request) != coefficients(again):
        changed.append("coefficients")
    if changed:
        raise ValueError(
            f"recommendation: expected sources that give the request again, got other "
            f"{', '.join(changed)}; pass model, gpu, stack, profile, weights, kv and "
            f"network_bytes_per_s as the request was prepared with."
        )
    write_content(target, content)
    return target


def read(path: str | os.PathLike[str]) -> Recommendation:
    """Returns the recommendation in a file, checked, with the request that it stands for.

    Raises:
        ValueError: where, what was expected, what came and what to do.
    """
    target = Path(path).expanduser()
    content = read_content(target)
    return Recommendation(
        path=target, content=content, request=_request(content["request"], target)
    )


def option_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the options of `jaxlens predict` that a file stands for, by name."""
    target = Path(path).expanduser()
    asked = read_content(target)["request"]
    deployment, workload = asked["deployment"], asked["workload"]
    options = {name: _resolved(asked[name], target) for name in SOURCES}
    options["network"] = asked["network_bytes_per_s"]
    options |= {
        option: deployment.get(name) for name, option in DEPLOYMENT_OPTIONS.items()
    }
    if not deployment.get("overlap"):
        options["stages"] = None  # the option switches the overlap on
    options["eager"] = not deployment.get("fused", True)
    options |= {option: workload.get(name) for name, option in WORKLOAD_OPTIONS.items()}
    return {name: value for name, value in options.items() if value is not None}


def reproduction(
    recommendation: Recommendation, request: Request, numbers: Mapping[str, Any]
) -> Reproduction:
    """Returns how the `answer` to `request` compares with what was predicted."""
    return _reproduction(
        recommendation.content, recommendation.request, request, numbers
    )


def _request(asked: Mapping[str, Any], path: Path) -> Request:
    """The request that the section of a file stands for."""
    sources = {name: _resolved(asked[name], path) for name in SOURCES}
    try:
        return prepare(
            sources["model"],
            sources["gpu"],
            stack=sources["stack"],
            profile=sources["profile"],
            weights=sources["weights"],
            kv=sources["kv"],
            deployment=Deployment(**asked["deployment"]),
            workload=Workload(**asked["workload"]),
            network_bytes_per_s=asked["network_bytes_per_s"],
        )
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _kept(source: str) -> str:
    """An id as it is; a file by its whole path."""
    found = Path(source).expanduser()
    return str(found.resolve()) if found.exists() else source


def _resolved(source: Any, path: Path) -> Any:
    """A file that has moved is looked for beside the recommendation."""
    if not isinstance(source, str) or not Path(source).is_absolute():
        return source
    beside = path.parent / Path(source).name
    return str(beside) if not Path(source).exists() and beside.exists() else source


def _plain(knobs: Deployment | Workload) -> dict[str, Any]:
    """Knobs as plain values, without those that are unlimited."""
    values = {
        item.name: getattr(knobs, item.name) for item in dataclasses.fields(knobs)
    }
    return {
        name: value if isinstance(value, bool) else float(value)
        for name, value in values.items()
        if isinstance(value, bool) or float(value) < UNLIMITED
    }


def _predicted(numbers: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in numbers if name.removesuffix("_interval") in NUMBERS]
    return {name: numbers[name] for name in names}


def _in_benchmark(request: Request) -> dict[str, float]:
    """The same for outputs of one length, which is what load generators send."""
    alike = replace(request.workload, output_tokens_cv=0.0)
    estimate = exact_estimate(replace(request, workload=alike))
    return {name: float(getattr(estimate, name)) for name in CHECKED}


def _commands(
    request: Request,
    model: str,
    weights: str | None,
    kv: str | None,
    requests_per_second: float | None,
) -> dict[str, Any]:
    loaded = checkpoint(model, request.shape, weights, kv)
    chip, layout, vendor = request.profile.chip, request.deployment, request.card.vendor
    return {
        "gpus": gpu_commands(vendor, chip, layout),
        "serve": serve_commands(loaded, request),
        "benchmark": {
            server: benchmark_command(
                server,
                loaded,
                layout,
                request.workload,
                requests_per_second=requests_per_second,
            )
            for server in SERVERS
        },
        "gpus_back": reset_commands(vendor, chip, layout),
    }


def _provenance(request: Request, numbers: Mapping[str, Any]) -> dict[str, Any]:
    told = dict(numbers["provenance"])
    told.pop("coefficients")
    return {
        **told,
        "version": importlib.metadata.version("jaxlens"),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_fingerprint": shape_fingerprint(request),
        "profile_fingerprint": fingerprint(coefficients(request)),
    }
