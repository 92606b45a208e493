"""How JAX runs under a command: what it keeps on disk, and on which processor."""

import os
import sys
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Returns the folder for what jaxlens may compute again, after the platform's habit."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "jaxlens"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "jaxlens" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "jaxlens"
    return Path.home() / ".cache" / "jaxlens"


def keep_compilations() -> None:
    """Has JAX keep compiled programs on disk, unless the user has told it where.

    Small programs too: a search or a fit runs dozens of them, each in no time.
    """
    import jax

    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None:
        return
    try:
        folder = cache_folder() / "compilations"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or a read-only one: compile each time
        return
    settings.update("jax_compilation_cache_dir", str(folder))
    settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def stay_on_cpu() -> None:
    """Has JAX run on the CPU, unless the user has told it where.

    For commands that price one deployment: an accelerator takes longer to start, and its
    memory may belong to an engine that serves.
    """
    import jax

    settings: Any = jax.config
    if not settings.jax_platforms:
        settings.update("jax_platforms", "cpu")
