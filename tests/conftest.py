"""Settings and fixtures that all tests share."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Returns the folder of measured tables; skips the test where there is none."""
    name = os.environ.get("JAXLENS_DATA")
    if not name:
        pytest.skip("JAXLENS_DATA is unset: it names the folder of measured tables")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"JAXLENS_DATA: expected a folder, got {name}; correct or unset it")
    return folder
