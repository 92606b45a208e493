"""Golden errors: how far the shipped profiles are off on public tables, by chip and stack.

`make golden` writes them anew where `JAXLENS_DATA` names the folder of the tables.
"""

import json
import os
from pathlib import Path

from jaxlens.calibration.validation import validate

FILE = Path(__file__).with_name("golden") / "errors.json"
TABLES = ("mlenergy_v3", "mlenergy_v2", "argonne", "memory_gap")


def errors(folder: Path) -> dict[str, dict[str, dict]]:
    """Returns MAPE of energy and latency by table and chip, rounded to a tenth of a percent."""
    result: dict[str, dict[str, dict]] = {}
    for name in TABLES:
        found = validate([folder / "serving" / f"{name}.csv"], by=("gpu",))
        result[name] = {
            gpu: {
                target: round(summary[target]["mape"], 3)
                for target in ("energy", "latency")
                if target in summary
            }
            for gpu, summary in found["by"]["gpu"].items()
        }
    return result


def main() -> None:
    """Writes the errors, if the tables are at hand."""
    folder = os.environ.get("JAXLENS_DATA")
    if folder is None:
        print("JAXLENS_DATA is not set: errors.json stays as it is.")
        return
    FILE.write_text(json.dumps(errors(Path(folder)), indent=2) + "\n", "utf-8")
    print(f"wrote {FILE.name}")


if __name__ == "__main__":
    main()
