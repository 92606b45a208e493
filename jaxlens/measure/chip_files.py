"""The chip file beside a run on a device that the catalogue does not know."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlens.fitted_profiles import toml_text
from jaxlens.measure.device_facts import gpu_chip, gpu_facts
from jaxlens.measure.devices import Device
from jaxlens.measure.nvml import Gpu
from jaxlens.measure.processor_facts import processor_chip
from jaxlens.measure.records import Records
from jaxlens.profile_files import CHIPS, known_ids, read_entry

Tables = Mapping[str, Mapping[str, Any]]


def chip_path(out: Path) -> Path:
    """Returns where the chip of the run in `out` is described.

    >>> chip_path(Path("run.parquet")).name
    'run.chip.toml'
    """
    return out.with_name(f"{out.stem}.chip.toml")


@contextmanager
def chip_beside(
    records: Records | None, device: Device, gpu: Gpu | None, identifier: str
) -> Iterator[Path | None]:
    """Keeps the chip file of a run beside its rows; yields its path, None for none.

    A GPU is described before it is measured, unless a file is there: what a user corrected
    stays. What is known of a processor is what was measured of it, so its file is written
    again at the end, also at an early one.
    """
    if records is None or identifier in known_ids(CHIPS):
        yield None
        return
    path = chip_path(records.path)
    refuse_other(path, identifier)

    def write() -> None:
        save_chip(path, _tables(records, device, gpu, identifier))

    if gpu is None or not path.exists():
        write()
    try:
        yield path
    finally:
        if gpu is None:
            write()


def refuse_other(path: Path, identifier: str) -> None:
    """Raises where `path` describes another chip than `identifier`."""
    if path.exists():
        known = read_entry(CHIPS, path).id
        if known != identifier:
            raise ValueError(
                f"--out: expected a run on {known}, which {path.name} describes, got "
                f"{identifier}; choose another --out."
            )


def save_chip(path: Path, tables: Tables) -> None:
    """Writes a chip file at once, after checking that it reads as one."""
    read_entry(CHIPS, tables)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(toml_text(tables), encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _tables(records: Records, device: Any, gpu: Gpu | None, identifier: str) -> Tables:
    if gpu is None:
        return processor_chip(device, records.rows, identifier)
    return gpu_chip(gpu_facts(device, gpu), identifier)
