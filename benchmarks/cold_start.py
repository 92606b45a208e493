"""Seconds that a new user waits: import, first `predict`, first `explore`.

Each is a fresh process with an empty compilation cache, then once more with the cache that the
first one filled.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

MODEL = "meta-llama/Llama-3.1-70B-Instruct"
MIXTURE = "Qwen/Qwen3-30B-A3B"  # of experts
SIZES = ("--prompt", "1024", "--output", "256")
CASES = {
    "import": [sys.executable, "-c", "import jaxlens"],
    "predict": [
        *(sys.executable, "-m", "jaxlens.cli", "predict", MODEL, "--gpu", "h100-sxm"),
        *("--tp", "4", "--batch", "64", *SIZES, "--json"),
    ],
    **{
        name: [
            *(sys.executable, "-m", "jaxlens.cli", "explore", model),
            *("--gpu", "h100-sxm,b200-sxm", *SIZES, "--tpot", "0.05", "--json"),
        ]
        for name, model in (("explore", MODEL), ("explore_moe", MIXTURE))
    },
}


def seconds(command: list[str], cache: str) -> dict[str, float]:
    """Returns wall and processor seconds of one fresh process."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = os.times()
    busy = after.children_user - before.children_user
    busy += after.children_system - before.children_system
    return {"wall_seconds": time.perf_counter() - started, "cpu_seconds": busy}


def main() -> None:
    """Prints the seconds of every case, cold and warm, as JSON."""
    result = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    for name, command in CASES.items():
        with tempfile.TemporaryDirectory() as cache:
            result[name] = {"cold": seconds(command, cache)}
            result[name]["warm"] = seconds(command, cache)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
