"""The shipped profiles are as far off on public tables as they were."""

import json

import pytest

from tests import golden_errors


def test_errors_on_public_tables_have_not_drifted(data_folder):
    expected = json.loads(golden_errors.FILE.read_text("utf-8"))
    found = golden_errors.errors(data_folder)
    moved = [
        f"{table} {gpu} {target}: MAPE was {expected[table][gpu][target]:.1%}, is {mape:.1%}"
        for table, gpus in found.items()
        for gpu, targets in gpus.items()
        for target, mape in targets.items()
        if mape != pytest.approx(expected[table][gpu][target], abs=0.002)
    ]
    cure = "If that is on purpose, run `make golden` and commit tests/golden."
    assert not moved, "\n".join([*moved, cure])
