"""The chip of a measured table: of the catalogue, or of the chip file beside the table.

`jaxlens measure` writes RUN.parquet, one RUN.KIND.parquet for each kind of row and, on a device
that the catalogue does not know, RUN.chip.toml, whose id is the `gpu` of the rows.
"""

from pathlib import Path

from jaxlens.profile_files import (
    CHIPS,
    Entry,
    aliases,
    known_ids,
    normalised,
    read_entry,
)

ENDING = ".chip.toml"


def catalogued(name: str) -> bool:
    """Returns whether `name` is an id or an alias of the catalogue."""
    plain = normalised(name)
    return plain in known_ids(CHIPS) or plain in aliases(CHIPS)


def chip_file(table: str | Path) -> Path | None:
    """Returns the chip file beside a table of a run, None where there is none."""
    path = Path(table)
    for stem in (path.stem, Path(path.stem).stem):
        beside = path.with_name(f"{stem}{ENDING}")
        if beside.is_file():
            return beside
    return None


def chip_source(table: str | Path, name: str) -> str | Path:
    """Returns what `load_chip` takes for the chip that rows of `table` call `name`.

    The catalogue comes first; `name` itself where nothing is known of it.
    """
    if catalogued(name):
        return name
    beside = chip_file(table)
    if beside is not None and read_entry(CHIPS, beside).id == name:
        return beside
    return name


def chip_entry(table: str | Path, name: str) -> Entry | None:
    """Returns what is known of the chip that rows of `table` call `name`, or None."""
    try:
        return read_entry(CHIPS, chip_source(table, name))
    except (ValueError, OSError):
        return None
