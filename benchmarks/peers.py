"""The same question asked of peers: seconds a configuration, cold start and installed size.

Llama-3.1-70B on four H100, prompts of 1024 and outputs of 256 tokens, many batches. Each tool
is installed from the package index into a virtual environment of its own and answers in
processes of its own, one after the other, in one run. What cannot be installed or run says why.
Only times and names of results are kept: no number that a peer predicts.

Source: AIConfigurator, NVIDIA, 2025, https://github.com/ai-dynamo/aiconfigurator; A. Bambhaniya
et al., "Demystifying AI Platform Design for Distributed Inference of Next-Generation LLM
models" (GenZ), arXiv 2406.01698, 2024.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_LOOPS = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"
LEFT_OUT = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "notebooks")
PATIENCE = 1800.0  # seconds, for an installation or a run
LARGEST_BYTES = 700e6  # of jaxlens and what it needs
TOOLS = ("pip", "setuptools", "_distutils_hack", "distutils-precedence.pth")

# Each script says how to ask for the configuration with a number, and what an answer
# consists of; no number is asked twice, for engines remember.
AICONFIGURATOR = """
import json, multiprocessing, os, time
begun = time.perf_counter()
from aiconfigurator.cli.api import cli_estimate
count = 4
def ask(number):
    return cli_estimate(
        "meta-llama/Meta-Llama-3.1-70B", "h100_sxm", mode="agg", backend_name="vllm",
        isl=1024, osl=256, tp_size=4, batch_size=64 + number,
    )
first = ask(0)
gives = [n for n in ("ttft", "tpot", "power_w") if getattr(first, n) is not None]
"""
ENGINE = """
import json, multiprocessing, os, time
begun = time.perf_counter()
from aiconfigurator_core.sdk.engine import EngineHandle
engine = EngineHandle.compile(
    "meta-llama/Meta-Llama-3.1-70B", "h100_sxm", "vllm", tp_size=4
)
count = 20_000
def ask(number):
    batch, prompt = 1 + number % 200, 256 + number // 4
    engine.predict_prefill_latency(1, prompt)
    engine.mixed_step_latency(prompt, batch, prompt, 256)
    engine.decode_step_latency(batch, prompt, 256)
ask(0)
gives = ["prefill latency", "mixed step latency", "decode step latency"]
"""
GENZ = """
import json, multiprocessing, os, time
begun = time.perf_counter()
from GenZ import decode_moddeling, prefill_moddeling
count = 15
same = dict(model="meta-llama/Llama-3.1-70B", input_tokens=1024, bits="bf16",
            system_name="H100_GPU", tensor_parallel=4)
def ask(number):
    prefill_moddeling(batch_size=1, **same)
    return decode_moddeling(batch_size=64 + number, Bb=1, output_tokens=256, **same)
first = ask(0)
gives = [name for name in ("Latency", "Throughput") if name in first]
"""
# All cores, as jaxlens uses them: one process each. The best of some rounds, for other
# work disturbs.
TIMED = """
cold = time.perf_counter() - begun
cores, rounds, seconds = os.cpu_count(), 3, []
def several(start):
    for number in range(start, start + count):
        ask(number)
with multiprocessing.get_context("fork").Pool(cores) as pool:
    for turn in range(rounds):
        starts = [1 + (turn * cores + core) * count for core in range(cores)]
        begun = time.perf_counter()
        pool.map(several, starts, chunksize=1)
        seconds.append(time.perf_counter() - begun)
print(json.dumps({
    "cold_seconds": cold,
    "seconds_per_configuration": min(seconds) / (count * cores),
    "configurations": count * cores * rounds,
    "gives": gives,
}))
"""
JAXLENS = """
import json, time
begun = time.perf_counter()
from dataclasses import replace
from jaxlens import Deployment, Workload, load_model, load_profile, predict
shared = load_model("meta-llama/Llama-3.1-70B"), load_profile("h100-sxm"), Workload()
base = Deployment(tensor_parallel=4.0)
predict(*shared[:2], replace(base, batch=64.0), shared[2])
cold = time.perf_counter() - begun
from jaxlens.batch import evaluate
from jaxlens.spaces import integers, space
NAMES = (
    "seconds_prefill", "seconds_per_output_token", "output_tokens_per_second",
    "joules_per_output_token", "watts_per_gpu", "memory_slack_bytes",
)
def ask(shared, values):
    model, profile, workload = shared
    estimate = predict(
        model, profile, replace(base, batch=values["batch"]),
        replace(workload, prompt_tokens=values["prompt"]),
    )
    return {name: getattr(estimate, name) for name in NAMES}
def asked(prompts):
    return space(integers("prompt", 256, 255 + prompts), integers("batch", 1, 500))
begun = time.perf_counter()
evaluate(ask, shared, asked(1001))
compiled = time.perf_counter() - begun
many = asked(4000)
seconds = []
for _ in range(3):
    begun = time.perf_counter()
    evaluate(ask, shared, many)
    seconds.append(time.perf_counter() - begun)
print(json.dumps({
    "cold_seconds": cold,
    "compile_seconds": compiled,
    "seconds_per_configuration": min(seconds) / many.size,
    "configurations": 3 * many.size,
    "gives": list(NAMES),
}))
"""
PEERS = {
    "aiconfigurator": (
        "aiconfigurator",
        {"api": AICONFIGURATOR + TIMED, "engine": ENGINE + TIMED},
    ),
    "genz": ("genz-llm", {"api": GENZ + TIMED}),
}


def measured(folder: Path) -> dict[str, Any]:
    """Returns what each tool takes, and how many times as long as jaxlens.

    Args:
        folder: Of the virtual environments; those that are there are used again.
    """
    with tempfile.TemporaryDirectory() as copied:
        source = Path(copied) / "jaxlens"  # a build leaves nothing in the checkout
        ignored = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(REPOSITORY, source, symlinks=True, ignore=ignored)
        own = _tool(folder / "jaxlens", str(source), {"sweep": JAXLENS})
    own["installed_below_bar"] = own.get("installed_bytes", 1e99) < LARGEST_BYTES
    result: dict[str, Any] = {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "largest_installed_bytes": LARGEST_BYTES,
        "jaxlens": own,
    }
    for name, (package, scripts) in PEERS.items():
        result[name] = _tool(folder / name, package, scripts)
    ours = own.get("sweep", {}).get("seconds_per_configuration")
    for name, (_, scripts) in PEERS.items():
        for script in scripts:
            theirs = result[name].get(script, {}).get("seconds_per_configuration")
            if ours and theirs:
                result[name][script]["times_as_long"] = theirs / ours
    return result


def _tool(folder: Path, package: str, scripts: dict[str, str]) -> dict[str, Any]:
    """Installs a package and runs its scripts; what fails says why."""
    found: dict[str, Any] = {"installed": True}
    if not (folder / "installed").exists():
        started = time.perf_counter()
        venv.create(folder, with_pip=True, clear=True)
        problem = _run([_python(folder), "-m", "pip", "install", "--quiet", package])[1]
        if problem:
            return {"installed": False, "reason": problem}
        (folder / "installed").touch()
        found["install_seconds"] = time.perf_counter() - started
    found |= _sizes(folder)
    for name, script in scripts.items():
        text, problem = _run([_python(folder), "-c", script])
        found[name] = json.loads(text.splitlines()[-1]) if not problem else None
        if problem:
            found[name] = {"ran": False, "reason": problem}
    return found


def _run(command: list[str]) -> tuple[str, str]:
    """What a command prints, and the last line of its complaint if it fails."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    # As in `benchmarks.throughput`: of no consequence to those without JAX.
    environment["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} {SHARED_LOOPS}".strip()
    )
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environment,
            cwd=tempfile.gettempdir(),
        )
    except subprocess.TimeoutExpired:
        return "", f"took more than {PATIENCE:.0f} s"
    if done.returncode or (command[1] == "-c" and not done.stdout.strip()):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return "", lines[-1]
    return done.stdout, ""


def _sizes(folder: Path) -> dict[str, Any]:
    """Bytes of all that was installed, and of its largest parts."""
    packages = next(folder.glob("lib/python*/site-packages"))
    sizes = {
        path.name: sum(
            f.lstat().st_size for f in [path, *path.rglob("*")] if f.is_file()
        )
        for path in packages.iterdir()
        if not path.name.startswith(TOOLS)
    }
    largest = sorted(sizes, key=lambda name: -sizes[name])[:8]
    return {
        "installed_bytes": sum(sizes.values()),
        "largest_parts_bytes": {name: sizes[name] for name in largest},
        "holds_torch": "torch" in sizes,
    }


def _python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def main() -> None:
    """Prints what each tool takes, as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--folder", type=Path, help="keep the environments there")
    given = parser.parse_args()
    if given.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            result = measured(Path(folder))
    else:
        result = measured(given.folder.resolve())
    if given.json:
        print(json.dumps(result, indent=2))
        return
    for tool in ("jaxlens", *PEERS):
        found = result[tool]
        print(f"{tool}: {found.get('installed_bytes', 0) / 1e6:.0f} MB")
        for name, times in found.items():
            if isinstance(times, dict) and "seconds_per_configuration" in times:
                print(
                    f"  {name}: {times['seconds_per_configuration']:.3g} s a configuration, "
                    f"first answer after {times['cold_seconds']:.1f} s"
                )
            elif isinstance(times, dict) and "reason" in times:
                print(f"  {name}: {times['reason']}")
        if not found["installed"]:
            print(f"  not installed: {found['reason']}")


if __name__ == "__main__":
    main()
