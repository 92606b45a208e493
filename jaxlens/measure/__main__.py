"""`python -m jaxlens.measure`: what the harness itself costs on this machine."""

import argparse
import json
import sys

from jaxlens.measure.benches import Bench
from jaxlens.measure.overheads import overheads
from jaxlens.measure.requests import Request
from jaxlens.measure.sessions import rules, station


def main() -> int:
    """Prints the overhead report as JSON in SI units and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxlens.measure",
        description="Windows over a loop that does nothing: the harness's own cost.",
    )
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    parser.add_argument("--window", type=float, default=1.0, help="seconds")
    given = parser.parse_args()
    request = Request(device=given.device, window_seconds=given.window)
    try:
        with station(request) as at:
            bench = Bench(
                device=at.device, gauge=at.gauge, rules=rules(request, at.gauge)
            )
            found = {"device": at.device.name, **at.idle, **overheads(bench)}
    except ValueError as error:
        print(f"jaxlens: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
