"""Checked values of a HuggingFace configuration, with errors that name file and key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxlens.families import FAMILIES, SYNONYMS

# Far above any published model: a larger value is a unit mix-up or a broken file.
LARGEST: Mapping[str, int] = {
    "num_hidden_layers": 4_096,
    "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 40,
}
LARGEST_SIZE = 1 << 24

# What a vision-language configuration states once for all its towers.
_SHARED_KEYS = ("tie_word_embeddings", "quantization_config", "torch_dtype", "dtype")


def checked_size(value: Any, key: str, *, where: str, least: int = 1) -> int:
    """Returns `value` if it is a whole number from `least` to the largest plausible."""
    largest = LARGEST.get(key, LARGEST_SIZE)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= largest:
        raise ValueError(
            f"{where}: expected `{key}` to be a whole number from {least} to "
            f"{largest}, got {value!r}; correct the file."
        )
    return value


def text_tower(config: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Returns the keys of the language model inside a vision-language configuration."""
    text = config.get("text_config", config.get("llm_config"))
    if text is None:
        return dict(config)
    if not isinstance(text, Mapping):
        raise ValueError(
            f"{where}: expected `text_config` to be a table, got {text!r}."
        )
    shared = {key: config[key] for key in _SHARED_KEYS if key in config}
    tower = {**shared, **text}
    tower.setdefault("model_type", config.get("model_type"))
    return tower


@dataclass(frozen=True, kw_only=True)
class ConfigValues:
    """The keys of one language model, family defaults filled in, read with checks."""

    values: Mapping[str, Any]
    where: str

    @property
    def model_type(self) -> str:
        """The family, as HuggingFace names it."""
        return str(self.values["model_type"])

    def optional(self, key: str, default: Any = None) -> Any:
        """Returns the value of `key`; `default` where it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def flag(self, key: str, default: bool = False) -> bool:
        """Returns a true / false value."""
        value = self.optional(key, default)
        if not isinstance(value, bool):
            raise ValueError(
                f"{self.where}: expected `{key}` to be true or false, got {value!r}."
            )
        return value

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Returns a whole number from `least` to the largest plausible one."""
        value = self.optional(key, default)
        if value is None:
            names = " or ".join(f"`{name}`" for name in (key, *SYNONYMS.get(key, ())))
            raise ValueError(
                f"{self.where}: expected {names}, got a configuration without it; "
                f"add it, `{self.model_type}` models need it."
            )
        return checked_size(value, key, where=self.where, least=least)

    def optional_size(self, key: str) -> int | None:
        """Returns a checked size, or None where the key is absent or null."""
        return None if self.optional(key) is None else self.size(key)

    def layer_list(self, key: str) -> tuple[int, ...] | None:
        """Returns a list of whole numbers; None where the key is absent or null."""
        value = self.optional(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise ValueError(
                f"{self.where}: expected `{key}` to be a list of whole numbers, got "
                f"{value!r}."
            )
        return tuple(checked_size(v, key, where=self.where, least=0) for v in value)

    def sizes(self, key: str, *, count: int) -> tuple[int, ...] | None:
        """Returns a list of `count` sizes, or None where the key is absent or null."""
        value = self.optional(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) != count:
            raise ValueError(
                f"{self.where}: expected `{key}` to list one size for each of {count} "
                f"layers, got {value!r}."
            )
        return tuple(checked_size(item, key, where=self.where) for item in value)


def config_values(config: Mapping[str, Any], *, where: str) -> ConfigValues:
    """Returns a language model's keys, synonyms resolved, defaults filled in."""
    tower = text_tower(config, where=where)
    model_type = tower.get("model_type")
    if model_type is None:
        raise ValueError(
            f"{where}: expected `model_type`, got a configuration without it; set it "
            f"to one of {', '.join(FAMILIES)}."
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"{where}: expected `model_type` to be one of {', '.join(FAMILIES)}, got "
            f"{model_type!r}; if the layers are like one of these, name that one."
        )
    for key, names in SYNONYMS.items():
        given = [name for name in (key, *names) if tower.get(name) is not None]
        if given:
            tower[key] = tower[given[0]]
    return ConfigValues(values={**FAMILIES[model_type], **tower}, where=where)
