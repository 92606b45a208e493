"""The file of a recommendation: YAML of a fixed form, written whole and read with checks."""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlens.deployments import Deployment, Workload
from jaxlens.profile_values import near

FORMAT = "jaxlens recommendation 1"
HEADER = """\
# A deployment that jaxlens recommends: what to run, what it should do, how to check it.
# All numbers are in SI units; joules cover all GPUs.
#
#   jaxlens predict --from FILE               predicts it again, and compares
#   jaxlens predict --from FILE --batch 32    predicts a variation
#
# The benchmark sends outputs of one length: compare it with `predicted_in_benchmark`.
"""
SECTIONS: Mapping[str, type | tuple[type, ...]] = {
    "format": str,
    "request": dict,
    "limits": dict,
    "why": list,
    "runner_up": (dict, type(None)),
    "predicted": dict,
    "predicted_in_benchmark": dict,
    "commands": dict,
    "provenance": dict,
    "coefficients": dict,
}
TEXTS = ("model", "gpu", "stack")
OPTIONAL_TEXTS = ("profile", "weights", "kv")
REQUEST = (*TEXTS, *OPTIONAL_TEXTS, "network_bytes_per_s", "deployment", "workload")
PROVENANCE = ("version", "model_fingerprint", "profile_fingerprint")
CURE = "write it again with `jaxlens explore --recommend`"


def is_recommendation(content: object) -> bool:
    """Returns whether the content of a YAML file says that it is a recommendation."""
    return isinstance(content, Mapping) and str(content.get("format", "")).startswith(
        "jaxlens recommendation"
    )


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a recommendation so that readers see the old file or the new one."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Commands of several lines as they are typed."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    body = yaml.dump(
        dict(content), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(f"{HEADER}\n{body}")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"recommendation: expected a place to write, got {str(path)!r} "
            f"({error.strerror}); check the folder."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_content(path: Path) -> dict[str, Any]:
    """Returns the sections of a recommendation, each of the form that it should have."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"recommendation: expected a readable file, got {str(path)!r} "
            f"({error.strerror}); check the path."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: expected YAML, got {error}; {CURE}.") from None
    if not is_recommendation(content) or content["format"] != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(
            f"{path.name}: expected format {FORMAT!r}, got {found!r}; {CURE}."
        )
    _keys(content, tuple(SECTIONS), path.name)
    for name, kind in SECTIONS.items():
        if not isinstance(content[name], kind):
            raise ValueError(
                f"{path.name} {name}: expected {_kind(kind)}, got "
                f"{type(content[name]).__name__}; {CURE}."
            )
    _check_request(content["request"], f"{path.name} request")
    _check_numbers(content, path.name)
    return content


def _check_request(request: dict[str, Any], where: str) -> None:
    _keys(request, REQUEST, where)
    for name in (*TEXTS, *OPTIONAL_TEXTS):
        value = request[name]
        empty = value is None and name in OPTIONAL_TEXTS
        if not empty and not (isinstance(value, str) and value.strip()):
            raise ValueError(f"{where} {name}: expected a text, got {value!r}.")
    if request["network_bytes_per_s"] is not None:
        _number(request["network_bytes_per_s"], f"{where} network_bytes_per_s")
    _check_knobs(request["deployment"], Deployment, f"{where} deployment")
    _check_knobs(request["workload"], Workload, f"{where} workload")


def _check_knobs(knobs: Any, owner: type, where: str) -> None:
    known = {item.name: item.default for item in dataclasses.fields(owner)}
    if not isinstance(knobs, dict):
        raise ValueError(f"{where}: expected knobs by name, got {knobs!r}.")
    for name, value in knobs.items():
        if name not in known:
            raise ValueError(
                f"{where}: expected some of {', '.join(known)}, got {name!r}"
                f"{near(str(name), known)}."
            )
        if isinstance(known[name], bool):
            if not isinstance(value, bool):
                raise ValueError(
                    f"{where} {name}: expected a yes or no, got {value!r}."
                )
        else:
            _number(value, f"{where} {name}")


def _check_numbers(content: dict[str, Any], where: str) -> None:
    for section in ("limits", "predicted_in_benchmark", "coefficients"):
        for name, value in content[section].items():
            _number(value, f"{where} {section} {name}")
    for name, value in content["predicted"].items():
        here = f"{where} predicted {name}"
        if isinstance(value, list) and len(value) == 2:
            for end in value:
                _number(end, here)
        else:
            _number(value, here)
    for name in PROVENANCE:
        if not isinstance(content["provenance"].get(name), str):
            raise ValueError(
                f"{where} provenance: expected a text {name}, got "
                f"{content['provenance'].get(name)!r}; {CURE}."
            )


def _keys(content: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    missing = [name for name in known if name not in content]
    unknown = [str(name) for name in content if name not in known]
    if missing or unknown:
        hint = near(unknown[0], known) if unknown else ""
        raise ValueError(
            f"{where}: missing {missing}, unknown {unknown}{hint}; {CURE}."
        )


def _number(value: Any, where: str) -> None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value!r}.")


def _kind(kind: type | tuple[type, ...]) -> str:
    words = {dict: "entries by name", list: "a list", str: "a text"}
    return words[kind[0] if isinstance(kind, tuple) else kind]
