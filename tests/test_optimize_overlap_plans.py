"""A split for each collective and a clock for each phase, with a bound."""

from dataclasses import replace

import numpy as np
import pytest

from jaxlens.deployments import Deployment
from jaxlens.optimize.overlap_advice import advise_plan, supported_clocks
from jaxlens.optimize.overlap_ops import op_table, waiting_seconds
from jaxlens.optimize.overlap_plans import Phase, below_cap, plan
from jaxlens.optimize.overlap_spaces import question, split_space
from jaxlens.optimize.overlap_uniform import uniform_totals
from jaxlens.optimize.staging import prices
from jaxlens.requests import prepare

MODEL = "meta-llama/Llama-3.1-70B"
LAYOUT = 8, 16
STEPS = 256.0


@pytest.fixture(scope="module")
def asked():
    request = prepare(MODEL, "a100-sxm-80gb", deployment=Deployment(overlap=True))
    # Room under the cap: whether it binds is not what most of these are about.
    chip = replace(request.profile.chip, tdp_watts=1000.0)
    request = replace(request, profile=replace(request.profile, chip=chip))
    return request, {
        "prefill": question(request, "prefill", 2048),
        "decode": question(request, "decode", 2176),
    }


@pytest.fixture(scope="module")
def phases(asked):
    _, questions = asked
    clocks = supported_clocks(questions["prefill"])
    return [
        Phase(
            name=name,
            table=op_table(own, *LAYOUT, clocks, range(1, 17), range(1, 108)),
            steps=STEPS if name == "decode" else 1.0,
        )
        for name, own in questions.items()
    ]


def cap(asked):
    chip = asked[0].profile.chip
    return float(chip.tdp_watts * chip.cap_share)


def test_clocks_are_those_of_the_chip(asked):
    clocks = supported_clocks(asked[1]["prefill"])
    assert (clocks[0], clocks[-1]) == (210e6, 1410e6)
    assert np.diff(clocks) == pytest.approx(15e6)


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_the_tables_add_up_to_the_price_of_a_step(asked, phases, name):
    # Alike for all operations, at the top clock: what `price` says, up to the smooth cap.
    table = next(p.table for p in phases if p.name == name)
    options = np.flatnonzero(np.isin(table.communication_sms, (40.0, 107.0)))[::5]
    found = prices(
        asked[1][name],
        {
            "tensor_parallel": np.full(options.size, float(LAYOUT[0])),
            "batch": np.full(options.size, float(LAYOUT[1])),
            "stages": table.stages[options],
            "communication_sms": table.communication_sms[options],
        },
    )
    seconds, joules = uniform_totals(table)
    assert seconds[-1, options] == pytest.approx(found["seconds"], rel=3e-3)
    assert joules[-1, options] == pytest.approx(found["joules"], rel=3e-3)


def test_what_the_host_adds_is_convex_and_falls(phases):
    table = phases[1].table
    seconds = np.linspace(1e-4, 0.1, 500)
    added, slope = waiting_seconds(seconds, table)
    assert (np.diff(added) < 0.0).all()
    assert (np.diff(slope) > 0.0).all()
    assert np.gradient(added, seconds)[1:-1] == pytest.approx(slope[1:-1], abs=2e-2)


@pytest.mark.parametrize(
    ("names", "slowdown"),
    [
        (("prefill",), 1.1),
        (("decode",), 1.1),
        (("prefill", "decode"), 1.0),
        (("prefill", "decode"), 1.05),
        (("prefill", "decode"), 1.15),
        (("prefill", "decode"), 1.3),
    ],
)
def test_the_plan_is_within_one_per_cent_of_its_bound(asked, phases, slowdown, names):
    own = [phase for phase in phases if phase.name in names]
    found = plan(own, slowdown, cap(asked))
    assert found.feasible
    assert found.seconds <= found.limit_seconds * (1.0 + 1e-9)
    assert -1e-9 <= found.gap <= 0.01
    # All 80 layers of both kinds and the embedding have a split.
    for name in names:
        assert sum(c.layers for c in found.choices if c.phase == name) == 161
    # Simpler settings within the same limit take no less.
    for name, uniform in found.uniform.items():
        if name != "fastest":
            assert uniform.seconds <= found.limit_seconds * (1.0 + 1e-9)
            assert uniform.joules >= found.bound_joules * (1.0 - 1e-9)
    assert found.uniform["fastest"].seconds >= found.fastest_seconds * (1.0 - 1e-9)


def test_alike_in_a_kind_takes_no_less_than_each_on_its_own(asked, phases):
    own, kind = (plan(phases, 1.1, cap(asked), per=per) for per in ("op", "kind"))
    assert own.joules <= kind.joules * (1.0 + 1e-9)
    assert kind.joules <= kind.uniform["split per phase"].joules * (1.0 + 1e-9)
    assert len(kind.choices) == 6  # three kinds in two phases


def test_more_time_saves_energy_at_the_shadow_price(asked, phases):
    # With a clock given: another clock is a jump, which no price foretells.
    clocks = np.array([1095e6])
    one = [
        Phase(
            name=phase.name,
            table=op_table(
                asked[1][phase.name], *LAYOUT, clocks, range(1, 17), range(1, 108)
            ),
            steps=phase.steps,
        )
        for phase in phases
    ]
    less, more = (plan(one, slowdown, cap(asked)) for slowdown in (1.0001, 1.0002))
    saved = (less.joules - more.joules) / (more.limit_seconds - less.limit_seconds)
    assert more.shadow_price_watts > 0.0
    assert more.shadow_price_watts * 0.7 < saved < less.shadow_price_watts * 1.3


def test_a_low_cap_leaves_out_high_clocks(asked, phases):
    free, capped = (plan(phases[:1], 1.0, watts) for watts in (cap(asked), 260.0))
    assert free.clocks_above_cap == {"prefill": 0}
    assert capped.clocks_above_cap["prefill"] > 0
    assert capped.watts_per_gpu["prefill"] <= 260.0
    assert capped.seconds > free.seconds
    with pytest.raises(ValueError, match="power cap: expected one that some clock"):
        below_cap(phases[0].table, 50.0)


def test_bad_plans_are_refused(asked, phases):
    with pytest.raises(ValueError, match="slowdown: expected a number from 1"):
        plan(phases, 0.5, cap(asked))
    with pytest.raises(ValueError, match="per: expected one of op, kind"):
        plan(phases, 1.1, cap(asked), per="layer")


def test_a_plan_from_questions(asked):
    request, questions = asked
    space = split_space(
        request, questions["prefill"], stages=(1, 4), communication_sms=range(1, 108)
    )
    found = advise_plan(
        [(questions["prefill"], 1.0)], LAYOUT, space, clocks=[1.2e9, 1.41e9]
    )
    assert found.clock_hz["prefill"] in (1.2e9, 1.41e9)
    assert {c.stages for c in found.choices} <= {1, 4}
