"""What the checkout holds is what the package holds, and importing it stays light."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
LINKED = ("calibration", "optimize")
HEAVY = ("torch", "pynvml", "matplotlib", "optax", "pandas", "flax", "pyarrow")


def run_python(*arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_package_list_equals_the_init_files_on_disk():
    on_disk = {
        ".".join(Path(folder).relative_to(ROOT).parts)
        for folder, _, files in os.walk(ROOT / "jaxlens", followlinks=True)
        if "__init__.py" in files
    }
    assert set(SETUPTOOLS["packages"]) == on_disk


@pytest.mark.parametrize("name", LINKED)
def test_links_are_relative(name):
    assert os.readlink(ROOT / "jaxlens" / name) == f"../{name}"


def test_import_pulls_in_nothing_heavy():
    script = f"import sys, jaxlens; print(*sys.modules.keys() & set({HEAVY!r}))"
    assert run_python("-c", script, cwd=ROOT).split() == []


def test_import_leaves_the_jax_configuration_alone():
    script = (
        "import jax; before = dict(jax.config.values); import jaxlens; "
        "assert dict(jax.config.values) == before"
    )
    run_python("-c", script, cwd=ROOT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Builds from a copy, so that no leftover of an earlier build gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("jaxlens", *LINKED):
        shutil.copytree(
            ROOT / name,
            source / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run_python(*build, "--wheel-dir", str(folder), str(source), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(Path(folder, file).relative_to(ROOT))
        for folder, _, files in os.walk(ROOT / "jaxlens", followlinks=True)
        for file in files
        if not file.startswith(".") and "__pycache__" not in folder
    }
    assert {name for name in held if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_wheel_is_not_shadowed_by_modules_of_the_user(wheel, tmp_path):
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    work = tmp_path / "work"
    work.mkdir()
    for name in LINKED:
        (work / f"{name}.py").write_text("raise ImportError('shadowed')\n")
    script = (
        "import jaxlens, jaxlens.calibration, jaxlens.optimize; "
        "print(jaxlens.__file__, jaxlens.calibration.__file__)"
    )
    output = run_python("-c", script, cwd=work, PYTHONPATH=str(installed))
    assert all(Path(name).is_relative_to(installed) for name in output.split())
