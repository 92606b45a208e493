import json
import runpy
from pathlib import Path

import pytest

GOLDEN = runpy.run_path(str(Path(__file__).with_name("golden.py")))
EXPECTED = json.loads(GOLDEN["FILE"].read_text("utf-8"))


def test_shipped_profiles_predict_what_they_predicted():
    found = dict(GOLDEN["predictions"]())
    moved = [
        f"{name}: {number} was {EXPECTED[name][number]:g}, is {value:g}"
        for name, numbers in found.items()
        for number, value in numbers.items()
        if name not in EXPECTED
        or value != pytest.approx(EXPECTED[name][number], rel=1e-4)
    ]
    cure = "If that is on purpose, run `make golden` and commit tests/golden."
    assert not moved, "\n".join([*moved, cure])


def test_no_case_is_left_behind():
    assert list(EXPECTED) == list(GOLDEN["CASES"])
