"""What a fit has reached so far, in a file that a restart goes on from.

A file belongs to one fit: its fingerprint covers everything that decides the result (rows,
priors, options, code, version of JAX), so that a restart ends where the fit would have ended.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

import jaxlens

State = TypeVar("State")
FINGERPRINT = "fingerprint"


class Checkpoint:
    """States of a fit by name; in memory alone where there is no path."""

    def __init__(self, path: Path | None = None, fingerprint: str = "") -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.arrays: dict[str, np.ndarray] = {}
        self.note = ""  # what became of an earlier file
        if path is not None and path.exists():
            self._open(path)

    def keep(self, **states: Any) -> None:
        """Keeps states (dataclasses of arrays) under their names, all or none."""
        for name, state in states.items():
            for field, value in vars(state).items():
                self.arrays[f"{name}.{field}"] = np.asarray(value)
        if self.path is not None:
            self._write(self.path)

    def kept(self, name: str, kind: type[State]) -> State | None:
        """Returns the state of that name, None where there is none."""
        found = {
            key.removeprefix(f"{name}."): value
            for key, value in self.arrays.items()
            if key.startswith(f"{name}.")
        }
        return kind(**found) if found else None

    def remove(self) -> None:
        """Deletes the file: the fit is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _open(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            theirs = str(arrays.pop(FINGERPRINT))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            self.note = f"{path} cannot be read as a checkpoint; starting afresh"
            return
        if theirs != self.fingerprint:
            self.note = f"{path} is of another fit; starting afresh"
            return
        self.arrays = arrays
        self.note = f"continuing from {path}"

    def _write(self, path: Path) -> None:
        """Replaces the file in one step, once the new one is on the disk."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: Any = {FINGERPRINT: np.array(self.fingerprint), **self.arrays}
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with fresh.open("wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


def beside(out: Path) -> Path:
    """Returns where the checkpoint of a fit lies that is written to `out`."""
    return out.with_name(f"{out.name}.checkpoint.npz")


def fingerprint(tree: Any, *settings: object) -> str:
    """Returns a hash of all arrays of `tree`, of `settings`, and of the code that fits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        values = np.asarray(leaf)
        digest.update(f"{values.dtype}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    for text in (*settings, jax.__version__, jax.default_backend()):
        digest.update(f"{text!r}\n".encode())
    for path in _sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources() -> Iterable[Path]:
    """Code of the library, then that of calibration, which may lie elsewhere."""
    for folder in (Path(jaxlens.__file__).parent, Path(__file__).resolve().parent):
        yield from sorted(folder.glob("*.py"))
