import json
from pathlib import Path

import pytest

from jaxlens.calibration.machines.calibrating import calibrate_machine
from jaxlens.measure import sessions
from jaxlens.measure.requests import Request
from jaxlens.measure.suites import full
from jaxlens.measure.windows import Rules
from jaxlens.profiles import load_profile_card
from jaxlens.requests import prepare

SHORT = Rules(
    window_seconds=0.01,
    warmup_seconds=0.01,
    longest_warmup_seconds=0.02,
    fewest_windows=2,
    most_windows=2,
)
EVERY = 6  # cases of the full suite


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A part of the full suite on this processor: how fast it is does not matter."""
    asked = Request(
        device="cpu", suite="full", out=tmp_path_factory.mktemp("run") / "run.parquet"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "rules", lambda *_: SHORT)
        patch.setattr(sessions, "plan", lambda _, device, *__: full(device)[::EVERY])
        sessions.measure(asked, report=lambda text: None)
    return asked.out


@pytest.fixture(scope="module")
def found(run):
    return calibrate_machine([run], run.with_name("mine"), kernels=False)


def test_what_was_measured_becomes_a_machine(found):
    report = found.report
    assert {"gemm", "attention_decode", "copy"} <= report["families"].keys()
    assert report["set_aside"] == 0
    assert all(part["time"]["in_sample"] > 0.0 for part in report["families"].values())
    chip, profile, written = map(Path, report["written"])
    assert json.loads(written.read_text())["rows"] == report["rows"]
    card = load_profile_card(chip, "torch", profile)
    assert card.fitted and card.rows == report["rows"]
    assert card.vendor == "processor"
    assert card.provenance["tables"][0].startswith("run.parquet sha256")


def test_a_processor_of_which_only_times_are_known_gets_no_prediction(found):
    if found.fitted.has_energy:
        pytest.skip("this processor has an energy counter")
    assert any(note.startswith("time only") for note in found.report["notes"])
    with pytest.raises(ValueError, match="expected a chip whose power is known"):
        prepare("Qwen/Qwen3-8B", found.report["written"][0])
