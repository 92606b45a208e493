"""Clocks of least energy, the caps like them, and what measured clocks and caps say."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxlens.calibration.forward.rows import usable
from jaxlens.calibration.powercaps import capped
from jaxlens.calibration.scores import mape
from jaxlens.calibration.tables import read_table
from jaxlens.cli import main
from jaxlens.deployments import Deployment, Workload
from jaxlens.optimize.clock_advice import advise_clock
from jaxlens.optimize.variables import clocks
from jaxlens.predictions import predict
from jaxlens.requests import prepare

LLAMA = "meta-llama/Llama-3.1-8B"
ALLOWED_REGRET = 0.01


@pytest.fixture(scope="module")
def serving():
    return prepare(LLAMA, "h100-sxm", deployment=Deployment(batch=64.0))


@pytest.fixture(scope="module")
def advice(serving):
    return advise_clock(serving, slowdown=1.1, per_phase=True)


@pytest.fixture(scope="module")
def eager():
    return forward("facebook/opt-1.3b", "bf16", 8.0, 512.0)


def forward(name, weights, sequences, tokens):
    asked = prepare(
        name,
        "a100-pcie-40gb",
        stack="hf-eager",
        weights=weights,
        deployment=Deployment(batch=sequences),
        workload=Workload(prompt_tokens=tokens, output_tokens=1.0),
    )
    # Measured passes are those of the bare model.
    bare = tuple(b for b in asked.model.blocks if b.label != "head")
    return replace(asked, model=replace(asked.model, blocks=bare))


def at(asked, **knobs):
    deployment = replace(asked.deployment, **knobs)
    return predict(asked.model, asked.profile, deployment, asked.workload)


def test_the_clock_is_the_best_that_the_chip_supports_within_the_bound(serving, advice):
    best = advice.advised
    assert min(abs(best.clock_hz - hz) for hz in clocks(serving.profile.chip)) < 1.0
    assert best.slowdown <= 1.1
    least = min(s.joules for s in advice.settings if s.slowdown <= 1.1)
    assert best.joules <= 1.001 * least
    assert advice.unbounded.joules <= best.joules < advice.fastest.joules


def test_a_setting_is_what_predict_says_of_that_clock(serving, advice):
    found = at(serving, clock_hz=advice.advised.clock_hz)
    assert advice.advised.seconds == pytest.approx(
        float(found.seconds_per_output_token), rel=1e-4
    )
    assert advice.advised.joules == pytest.approx(
        float(found.joules_per_output_token), rel=1e-4
    )
    assert advice.advised.watts == pytest.approx(float(found.watts_per_gpu), rel=1e-4)


def test_a_tighter_bound_keeps_the_clock_higher(serving, advice):
    tight = advise_clock(serving, slowdown=1.02)
    assert tight.advised.clock_hz > advice.advised.clock_hz
    assert tight.advised.saving < advice.advised.saving
    none = advise_clock(serving, slowdown=1.0)
    assert none.advised.seconds == none.fastest.seconds


def test_the_cap_takes_the_time_of_the_lock(serving, advice):
    found = at(serving, power_cap_watts=advice.cap.watts)
    assert float(found.seconds_per_output_token) == pytest.approx(
        advice.advised.seconds, rel=0.01
    )
    assert advice.cap.watts < float(serving.profile.chip.tdp_watts)
    reached = advice.cap.reached_hz
    assert reached["mixed"] < reached["decode"]


def test_steps_of_one_kind_run_at_the_locked_clock_under_the_cap(eager):
    found = advise_clock(eager, slowdown=1.5)
    assert found.forward and found.cap is not None
    assert found.cap.reached_hz["pass"] == pytest.approx(
        found.advised.clock_hz, rel=0.03
    )
    # A board averages less than its limit: the limit is above what the lock draws.
    assert found.cap.watts == pytest.approx(
        found.advised.watts / float(eager.profile.chip.cap_share), rel=0.03
    )


def test_multiplying_is_cheapest_near_the_knee_of_the_voltage(eager):
    found = advise_clock(eager, slowdown=10.0)
    knee = float(eager.profile.chip.knee_hz)
    assert found.unbounded.clock_hz == pytest.approx(knee, rel=0.05)
    assert found.knee.switching_saved > 0.05
    assert "MHz" in found.knee.text and "knee" in found.knee.text


def test_two_clocks_pay_where_nothing_has_to_switch(serving, advice):
    by_schedule = {found.schedule: found for found in advice.phases}
    assert not by_schedule["interleaved"].pays
    pools = by_schedule["separate pools"]
    assert pools.switches_per_token == 0.0
    assert pools.pays and pools.decode_hz != pools.prefill_hz
    assert pools.joules <= pools.single_joules


def test_a_slower_switch_never_helps(serving):
    free, dear = (
        {
            found.schedule: found
            for found in advise_clock(
                serving, per_phase=True, switch_seconds=seconds
            ).phases
        }
        for seconds in (0.0, 1.0)
    )
    for schedule, found in free.items():
        assert found.saving >= dear[schedule].saving - 1e-12
        assert found.saving >= 0.0
    assert not dear["interleaved"].pays and not dear["one batch at a time"].pays


def test_a_chip_without_clocks_says_what_is_impossible(serving):
    chip = replace(serving.profile.chip, step_hz=0.0)
    blind = replace(serving, profile=replace(serving.profile, chip=chip))
    with pytest.raises(ValueError, match="clock advice is impossible"):
        advise_clock(blind)


@pytest.mark.parametrize(
    "knobs", [{"slowdown": 0.9}, {"switch_seconds": -1.0}, {"slowdown": float("nan")}]
)
def test_impossible_bounds_are_refused(serving, knobs):
    with pytest.raises(ValueError, match="expected"):
        advise_clock(serving, **knobs)


def test_guessed_voltage_is_named_and_measured_is_not(eager, advice):
    assert any("inferred, not measured: knee_hz" in note for note in advice.notes)
    measured = advise_clock(eager)
    assert not any("voltage curve" in note for note in measured.notes)
    assert any("cap_share" in note for note in measured.notes)


def test_lines_lock_what_is_advised(advice):
    megahertz = round(advice.advised.clock_hz / 1e6)
    assert advice.commands == (f"sudo nvidia-smi -i 0 -lgc {megahertz},{megahertz}",)
    assert advice.cap_commands == (f"sudo nvidia-smi -i 0 -pl {int(advice.cap.watts)}",)
    assert advice.reset == ("sudo nvidia-smi -i 0 -rgc",)


def test_the_command_prints_json_and_draws(capsys, tmp_path):
    picture = tmp_path / "clocks.png"
    words = ["advise", "clock", LLAMA, "-g", "h100-sxm", "-b", "64"]
    words += ["--per-phase", "--clock-switch-seconds", "10ms", "--plot", str(picture)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["advised"]["slowdown"] <= found["slowdown_bound"] == 1.1
    assert len(found["clocks"]) > 50 and len(found["per_phase"]) == 3
    assert found["commands"]["lock"][0].startswith("sudo nvidia-smi")
    assert picture.stat().st_size > 10_000
    assert main(words[:-2]) == 0
    shown = capsys.readouterr().out
    assert "advised" in shown and "voltage is flat" in shown


def test_the_command_refuses_a_clock(capsys):
    words = ["advise", "clock", LLAMA, "-g", "h100-sxm", "--clock", "1200MHz"]
    assert main(words) != 0
    assert "clock" in capsys.readouterr().err


def test_advised_clocks_are_right_on_measured_passes(data_folder):
    """Each workload chooses among the clocks it was measured at."""
    table = usable(read_table(data_folder / "prefill" / "energaizer_dvfs.csv"))
    columns = ("model", "weight_dtype", "batch", "prompt_tokens")
    keys = list(zip(*(table[name].tolist() for name in columns), strict=True))
    right, workloads = 0, 0
    for key in dict.fromkeys(keys):
        rows = np.array([other == key for other in keys])
        clock, joules = table["sm_clock_hz"][rows], table["joules"][rows]
        if np.ptp(clock) < 0.2 * clock.max():
            continue
        found = advise_clock(forward(*key), slowdown=100.0)
        said = np.interp(
            clock,
            [s.clock_hz for s in found.settings],
            [s.joules for s in found.settings],
        )
        regret = joules[np.argmin(said)] / joules.min() - 1.0
        right, workloads = right + (regret <= ALLOWED_REGRET), workloads + 1
    assert workloads >= 19
    assert right >= 18


def test_measured_caps_are_met_and_in_order(data_folder):
    table = read_table(data_folder / "clocks" / "rtxpro6000_vllm_powercap.csv")
    said = capped(table).joules_per_output_token
    known = np.isfinite(said)
    energy = table["joules_per_output_token"]
    assert mape(said, energy) <= 0.10
    columns = ("model", "stack", "concurrency")
    keys = list(zip(*(table[name].tolist() for name in columns), strict=True))
    order = []
    for first in np.flatnonzero(known):
        for second in np.flatnonzero(known):
            ratio = energy[first] / energy[second]
            if keys[first] == keys[second] and ratio > 1.03:
                order.append(said[first] > said[second])
    assert len(order) > 10 and all(order)
