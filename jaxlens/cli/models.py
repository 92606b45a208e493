"""`jaxlens models`: the catalogue."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from jaxlens.cli.options import Json
from jaxlens.cli.tables import print_json, print_line, print_table, scaled
from jaxlens.models import known_models, load_shape
from jaxlens.parameters import parameters
from jaxlens.precisions import FORMATS
from jaxlens.shapes import Attention, LatentAttention, ModelShape

EXAMPLES = """
[bold]Examples[/bold]

jaxlens models llama-3

jaxlens models "Qwen/*" --json
"""


def command(
    pattern: Annotated[
        str,
        typer.Argument(
            help="Part of an id, or a pattern with * and ?; default: all.",
            show_default=False,
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Models that come with the package; any other one goes by its config.json.

    Endings such as -Instruct or -FP8 resolve too and are not listed.
    """
    rows = [_facts(name) for name in matching(pattern, known_models())]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("model", "family", "parameters", "active", "layers", "KV per token"),
        [
            (
                row["id"],
                row["family"],
                scaled(row["parameters"], ""),
                scaled(row["parameters_active"], ""),
                str(row["layers"]),
                scaled(row["kv_bytes_per_token"], "B"),
            )
            for row in rows
        ],
        left=2,
    )
    print_line(f"{len(rows)} models; any other by the path of its config.json")


def matching(pattern: str, known: Iterable[str]) -> list[str]:
    """Returns the ids that hold `pattern` or fit it, in alphabetic order."""
    wanted, ids = pattern.casefold(), sorted(known, key=str.casefold)
    found = [
        name
        for name in ids
        if wanted in name.casefold() or fnmatchcase(name.casefold(), wanted)
    ]
    if not found:
        close = difflib.get_close_matches(pattern, ids, n=3, cutoff=0.4)
        hint = f"near: {', '.join(close)}" if close else "none is near"
        raise ValueError(
            f"pattern: expected part of a known id, got {pattern!r}; {hint}."
        )
    return found


def _facts(name: str) -> dict[str, Any]:
    shape = load_shape(name)
    count = parameters(shape)
    return {
        "id": name,
        "family": str(known_models()[name].config.get("model_type", "")),
        "parameters": count.total,
        "parameters_active": count.active,
        "layers": max(
            sum(mixer.layers for mixer in shape.mixers),
            sum(feed.layers for feed in shape.feeds),
        ),
        "kv_bytes_per_token": kv_bytes_per_token(shape),
        "max_context": shape.max_context,
        "weights": shape.formats.feed_forward,
        "source": known_models()[name].source,
    }


def kv_bytes_per_token(shape: ModelShape) -> float:
    """Returns bytes that one more token adds to the cache, inside all windows."""
    elements = 0
    for mixer in shape.mixers:
        if isinstance(mixer, Attention):
            tensors = 1 if mixer.shared_key_value else 2
            elements += mixer.layers * tensors * mixer.kv_heads * mixer.head_dim
        elif isinstance(mixer, LatentAttention):
            elements += mixer.layers * (mixer.kv_rank + mixer.rope_dim)
    return elements * FORMATS[shape.kv_format]
