"""`jaxlens gpus`: the chips, and how much of each is measured."""

from typing import Any

from jaxlens.cli.options import Json
from jaxlens.cli.tables import print_json, print_line, print_table, scaled
from jaxlens.hardware import Chip
from jaxlens.profiles import (
    ProfileCard,
    known_chips,
    known_stacks,
    load_chip,
    load_profile_card,
)

EXAMPLES = """
[bold]Examples[/bold]

jaxlens gpus

jaxlens gpus --json     (every coefficient with unit, origin, spread and source)
"""


def command(as_json: Json = False) -> None:
    """GPUs that come with the package: datasheet facts, and what was calibrated.

    Any other GPU is one TOML file: `--gpu mine.toml`.
    """
    cards = {name: _cards(name) for name in known_chips()}
    if as_json:
        print_json([_facts(name, load_chip(name), cards[name]) for name in cards])
        return
    rows = []
    for name, by_stack in cards.items():
        chip = load_chip(name)
        fitted = [stack for stack, card in by_stack.items() if card.fitted]
        rows.append(
            (
                name,
                *_peaks(chip, next(iter(by_stack.values()))),
                scaled(float(chip.hbm_bytes), "B"),
                scaled(float(chip.hbm_bytes_per_s), "B/s"),
                scaled(float(chip.link_bytes_per_s), "B/s"),
                f"{float(chip.node_gpus):.0f}",
                f"{float(chip.tdp_watts):.0f} W",
                ", ".join(fitted) or "-",
            )
        )
    names = ("gpu", "bf16", "fp8", "fp4", "memory", "HBM", "link", "node", "TDP")
    print_table((*names, "calibrated under"), rows)
    print_line(
        "peaks dense, in FLOP/s; link per direction; node: GPUs joined by it; "
        "not calibrated (-): every energy rests on a prior"
    )


def _cards(name: str) -> dict[str, ProfileCard]:
    return {stack: load_profile_card(name, stack) for stack in known_stacks()}


def _peaks(chip: Chip, card: ProfileCard) -> tuple[str, ...]:
    return tuple(
        scaled(float(getattr(chip, f"peak_{unit}_flop_per_s")), "")
        if unit in card.formats
        else "-"
        for unit in ("bf16", "fp8", "fp4")
    )


def _facts(name: str, chip: Chip, by_stack: dict[str, ProfileCard]) -> dict[str, Any]:
    card = next(iter(by_stack.values()))
    fitted = {
        stack: sorted(
            field for field, c in found.coefficients.items() if c.origin == "fitted"
        )
        for stack, found in by_stack.items()
        if found.fitted
    }
    return {
        "id": name,
        "name": card.chip_name,
        "vendor": card.vendor,
        "architecture": card.architecture,
        "formats": list(card.formats),
        **{field: float(value) for field, value in vars(chip).items()},
        "fitted": fitted,
        "origins": {
            field.removeprefix("chip."): {
                "origin": "prior" if c.spread is not None else "datasheet",
                "unit": c.unit,
                "spread": c.spread,
                "source": c.source,
            }
            for field, c in _defaults(by_stack).coefficients.items()
            if field.startswith("chip.")
        },
    }


def _defaults(by_stack: dict[str, ProfileCard]) -> ProfileCard:
    """The card of a stack without a fit, whose values are those of the chip's file."""
    plain = [card for card in by_stack.values() if not card.fitted]
    return plain[0] if plain else next(iter(by_stack.values()))
