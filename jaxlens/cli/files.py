"""Options that a YAML file gives, with those of the command line on top."""

from pathlib import Path
from typing import Any

import typer

from jaxlens.profile_values import near
from jaxlens.recommendations import Recommendation, option_values, read
from jaxlens.recommendations.files import is_recommendation


def read_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Takes the options in `path` as defaults of the command that is being parsed.

    Keys are the long names of options, with hyphens or underscores; a recommendation holds
    the same in a form of its own.
    """
    if path is None or context.resilient_parsing:
        return path
    by_name = {
        spelled.lstrip("-").replace("-", "_"): str(parameter.name)
        for parameter in context.command.params
        for spelled in (*parameter.opts, str(parameter.name))
        if parameter.name not in ("defaults", "help")
    }
    defaults: dict[str, Any] = {}
    content = _mapping(path)
    if is_recommendation(content):
        content = option_values(path)
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in by_name:
            raise ValueError(
                f"{path.name}: expected names of options, got {key!r}"
                f"{near(name, by_name)}."
            )
        if isinstance(value, dict | list):
            raise ValueError(
                f"{path.name} {key}: expected one value, got {value!r}; "
                f"one file describes one deployment."
            )
        if value is not None:
            defaults[by_name[name]] = value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def recommendation(path: Path | None) -> Recommendation | None:
    """Returns the recommendation that options came from, if they came from one."""
    if path is None or not is_recommendation(_mapping(path)):
        return None
    return read(path)


def _mapping(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"--from: expected a readable YAML file, got {str(path)!r} "
            f"({error.strerror}); check the path."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: expected YAML, got {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path.name}: expected lines like `tp: 4`, got {type(content).__name__}."
        )
    return content
