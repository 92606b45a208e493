"""Models by name: the offline catalogue, files and mappings, all to a `ModelShape`.

The catalogue in `data/models/*.toml` holds, per HuggingFace id, the keys of the
published `config.json` that fix the shape. `data/model_suffixes.toml` says which
endings of an id leave the shape alone, and which change number formats.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxlens.configs import shape_from_config
from jaxlens.shapes import ModelShape

QUANTIZATION_FILE = "hf_quant_config.json"  # where ModelOpt keeps its settings


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model of the catalogue."""

    config: Mapping[str, Any]  # keys of the published config.json
    source: str
    aliases: tuple[str, ...]
    file: str


@dataclass(frozen=True, kw_only=True)
class Suffixes:
    """Endings of ids, in lower case, that are not models of their own."""

    neutral: tuple[str, ...]
    quantized: tuple[Mapping[str, Any], ...]
    republishers: tuple[str, ...]


def load_shape(source: str | os.PathLike[str] | Mapping[str, Any]) -> ModelShape:
    """Returns the shape of a model.

    `source` is a HuggingFace id of the catalogue, a `config.json` or the folder that
    holds one, or the contents of a `config.json`. Raises `ValueError` that says where,
    what was expected and what was found.
    """
    if isinstance(source, Mapping):
        name = source.get("_name_or_path")
        name = name if isinstance(name, str) and name else "model"
        return shape_from_config(source, name=name, where="config")
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            "model: expected a HuggingFace id, a path or a mapping, got "
            f"{type(source).__name__}."
        )
    path = _config_path(source)
    if path is not None:
        return _shape_from_file(path)
    return _shape_from_id(str(source))


@cache
def known_models() -> Mapping[str, ModelEntry]:
    """Returns the catalogue by HuggingFace id, without variants by suffix."""
    tables: dict[str, tuple[str, dict[str, Any]]] = {}
    folder = files("jaxlens") / "data" / "models"
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".toml"):
            for name, table in tomllib.loads(file.read_text("utf-8")).items():
                tables[name] = (file.name, table)
    entries = {}
    for name, (file_name, table) in tables.items():
        config = _inherited(name, {key: value for key, (_, value) in tables.items()})
        entries[name] = ModelEntry(
            config=MappingProxyType(config),
            source=str(table["source"]),
            aliases=tuple(table.get("aliases", ())),
            file=file_name,
        )
    return MappingProxyType(entries)


def _inherited(name: str, tables: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the configuration keys of an entry, with those of its `like` model."""
    own = {
        k: v for k, v in tables[name].items() if k not in ("source", "aliases", "like")
    }
    like = tables[name].get("like")
    return own if like is None else {**_inherited(like, tables), **own}


@cache
def _suffixes() -> Suffixes:
    text = (files("jaxlens") / "data" / "model_suffixes.toml").read_text("utf-8")
    table = tomllib.loads(text)
    return Suffixes(
        neutral=tuple(f"-{ending.lower()}" for ending in table["neutral"]),
        quantized=tuple(table["quantized"]),
        republishers=tuple(name.lower() for name in table["republishers"]),
    )


@cache
def _names() -> Mapping[str, str]:
    """Returns catalogue ids by lower-case id, alias, and name without organisation."""
    names: dict[str, str] = {}
    for name, entry in known_models().items():
        for known in (name, *entry.aliases):
            names[known.lower()] = name
            names.setdefault(known.lower().rpartition("/")[2], name)
    return names


def _shape_from_id(identifier: str) -> ModelShape:
    entry, settings = _resolve(identifier)
    config = dict(entry.config)
    if settings is not None:
        config["quantization_config"] = settings
    where = f"data/models/{entry.file}, {identifier}"
    return shape_from_config(config, name=identifier, where=where)


def _resolve(identifier: str) -> tuple[ModelEntry, Mapping[str, Any] | None]:
    """Returns the entry of an id, and the quantisation that its ending stands for."""
    lowered = identifier.strip().lower()
    direct = _find(lowered)
    if direct is not None:
        return direct, None
    for rule in _suffixes().quantized:
        if fnmatchcase(lowered, rule["id"].lower()):
            entry = _find(lowered.removesuffix(rule["id"].lower().rpartition("*")[2]))
            if entry is not None:
                return entry, rule["quantization_config"]
    raise ValueError(_unknown(identifier))


def _find(lowered: str) -> ModelEntry | None:
    """Returns the entry whose id is `lowered` less some endings that mean nothing."""
    organisation, _, _ = lowered.rpartition("/")
    if organisation in _suffixes().republishers:
        candidates = (lowered, lowered.rpartition("/")[2])
    else:
        candidates = (lowered,)
    for candidate in candidates:
        for name in _shortened(candidate):
            if name in _names():
                return known_models()[_names()[name]]
    return None


def _shortened(name: str) -> Iterator[str]:
    """Yields `name`, then with one neutral ending after the other taken away."""
    while True:
        yield name
        endings = [ending for ending in _suffixes().neutral if name.endswith(ending)]
        if not endings:
            return
        name = name.removesuffix(max(endings, key=len))


def _unknown(identifier: str) -> str:
    """Returns the message for an id that the catalogue does not have."""
    spelled = {
        alias.lower(): alias for e in known_models().values() for alias in e.aliases
    }
    spelled |= {name.lower(): name for name in known_models()}
    short = {name.rpartition("/")[2]: name for name in spelled}
    wanted = identifier.strip().lower()
    near = difflib.get_close_matches(wanted, spelled, n=3, cutoff=0.5)
    by_name = difflib.get_close_matches(
        wanted.rpartition("/")[2], short, n=3, cutoff=0.6
    )
    names = dict.fromkeys(
        spelled[name] for name in [*(short[n] for n in by_name), *near]
    )
    nearest = f"near ones: {', '.join(list(names)[:4])}" if names else "none is near"
    return (
        f"model: expected a known HuggingFace id, got {identifier[:200]!r}; {nearest}. "
        "For any other model give the path of its config.json."
    )


def _config_path(source: str | os.PathLike[str]) -> Path | None:
    """Returns the file that `source` names, or None if it is an id of the catalogue."""
    text = os.fspath(source)
    path = Path(text).expanduser()
    try:
        folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):  # too long, or characters that no path can have
        folder = exists = False
    if folder and (path / "config.json").is_file():
        return path / "config.json"
    looks_like_path = text.endswith(".json") or text.startswith((".", "/", "~"))
    if isinstance(source, str) and not looks_like_path and (folder or not exists):
        return None
    if not exists or folder:
        raise ValueError(
            f"{path}: expected a config.json or a folder that holds one, got "
            f"{'a folder without it' if folder else 'no such file'}."
        )
    return path


def _shape_from_file(path: Path) -> ModelShape:
    config = _read_json(path)
    if not isinstance(config, Mapping):
        raise ValueError(
            f"{path}: expected a JSON object, got {type(config).__name__}."
        )
    beside = path.with_name(QUANTIZATION_FILE)
    if "quantization_config" not in config and beside.is_file():
        config = {**config, "quantization_config": _read_json(beside)}
    name = path.parent.name if path.name == "config.json" else path.stem
    return shape_from_config(config, name=name, where=str(path))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(
            f"{path}: expected a readable JSON file, got {error}; download it again."
        ) from error
