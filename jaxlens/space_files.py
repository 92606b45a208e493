"""A space of deployments from a YAML or TOML file, read strictly.

    model: meta-llama/Llama-3.1-70B-Instruct
    gpu: [h100-sxm, b200-sxm]
    weights: [checkpoint, fp8]
    tensor_parallel: 1..8*2
    clock: 1.0GHz:1.9GHz:10
    power_cap: [500W, none]
    where:
      - tensor_parallel * pipeline_parallel * data_parallel <= 16
    max_gpus: 16

Keys are those of `declarations.search_space`; what it does not know is refused.
"""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jaxlens.declarations import (
    ALIASES,
    KINDS,
    SCALES,
    UNITS,
    SearchSpace,
    search_space,
)

SUFFIXES = {".yaml": "YAML", ".yml": "YAML", ".toml": "TOML"}
OTHERS = ("where", "max_gpus")
KEYS = (*OTHERS, *KINDS, *UNITS, *ALIASES, *SCALES)


def read_space(path: str | Path) -> SearchSpace:
    """Returns the space that a file declares.

    Raises:
        ValueError: the file cannot be read, or what it says is wrong; names the key.
    """
    path = Path(path).expanduser()
    content = _content(path)
    given: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).strip().lower().replace("-", "_")
        if name not in KEYS:
            near = get_close_matches(name, KEYS, 3)
            near = near or [known for known in KEYS if known.startswith(name[:3])]
            hint = (
                f"near: {', '.join(near)}" if near else f"there are {', '.join(KEYS)}"
            )
            raise ValueError(
                f"{path.name}: expected names of knobs, got {key!r}; {hint}."
            )
        given[name] = value
    if "max_gpus" in given:
        given["max_gpus"] = _whole(path, given["max_gpus"])
    try:
        return search_space(**given)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def parse_setting(text: str) -> dict[str, str]:
    """Returns name and values of a setting such as "tensor_parallel=1..8*2".

    >>> parse_setting("tp = 1,2,4")
    {'tp': '1,2,4'}
    """
    name, equals, values = text.partition("=")
    if not equals or not name.strip() or not values.strip():
        raise ValueError(
            f"set: expected KNOB=VALUES such as tensor_parallel=1..8*2, got {text!r}."
        )
    return {name.strip(): values.strip()}


def settings_space(
    settings: list[str], where: list[str], max_gpus: int | None = None
) -> SearchSpace:
    """Returns the space that settings such as "tp=1,2,4" and bounds declare."""
    given: dict[str, str] = {}
    for text in settings:
        for name, values in parse_setting(text).items():
            if name in given:
                raise ValueError(f"set {name}: expected each knob once, got it twice.")
            given[name] = values
    for name in given:
        if name in OTHERS:
            raise ValueError(
                f"set {name}: expected a knob; use --{name.replace('_', '-')}."
            )
    return search_space(where=where, max_gpus=max_gpus, **given)


def _content(path: Path) -> Mapping[str, Any]:
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"space: expected a file that ends in {', '.join(SUFFIXES)}, got {path}."
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if kind == "TOML" else _yaml(text, path.name)
    except OSError as error:
        raise ValueError(
            f"space: expected a readable {kind} file, got {str(path)!r} "
            f"({error.strerror}); check the path."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: expected {kind}, got {error}.") from None
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path.name}: expected lines like `tensor_parallel: 1..8*2`, got "
            f"{type(content).__name__}."
        )
    return content


def _yaml(text: str, where: str) -> Any:
    """The content with every value as text: 1:10:5 is a grid, and no time of day."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ValueError(
                    f"{where}: expected each key once, got {twice!r} twice."
                )
        return yaml.load(text, Loader=yaml.BaseLoader)  # nothing but text and lists
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: expected YAML, got {error}.") from None


def _whole(path: Path, value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(
            f"{path.name}: expected max_gpus as a whole number, got {value!r}."
        ) from None
