"""All of a sweep on disk, as Parquet: written in shards, resumed where it was killed."""

from jaxlens.shards.writing import (
    SMALLEST_ROW_BYTES,
    check_room,
    look,
    read_all,
    write_all,
)

__all__ = ["SMALLEST_ROW_BYTES", "check_room", "look", "read_all", "write_all"]
