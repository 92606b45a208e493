"""Fits forward passes, prints their errors and writes the profiles.

python -m jaxlens.calibration.forward TABLE... [--out FOLDER]
"""

import argparse
import json
import sys
from pathlib import Path

from jaxlens.calibration.forward.fitting import fit_forward, left_out
from jaxlens.calibration.forward.profiles import profiles, save_profiles
from jaxlens.calibration.forward.validation import clock_regrets, cross_validated
from jaxlens.calibration.tables import read_table


def main(arguments: list[str]) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="jaxlens.calibration.forward")
    parser.add_argument("tables", nargs="+", help="tables of forward passes")
    parser.add_argument("--out", type=Path, help="folder for the fitted profiles")
    options = parser.parse_args(arguments)
    fitted = fit_forward([read_table(path) for path in options.tables])
    errors = cross_validated(fitted)
    regrets = clock_regrets(fitted, fitted.predicted[:, 1])
    wrong = {name: r for name, r in regrets.items() if r["regret"] > 0.01}
    shown = {"fit": fitted.report, **errors, "clock wrong, in sample": wrong}
    print(json.dumps(shown, indent=2))
    if options.out:
        unseen = left_out(fitted, fitted.problem.labels["model"])
        for path in save_profiles(profiles(fitted, errors, unseen), options.out):
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
