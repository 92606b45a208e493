import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlens.declarations import search_space
from jaxlens.deployments import UNLIMITED
from jaxlens.device_layouts import LAYOUT_NAMES, layouts
from jaxlens.expressions import bound, slack
from jaxlens.knob_values import axis, choices, grid, integers, parsed, powers
from jaxlens.plans import plans
from jaxlens.requests import prepare
from jaxlens.space_files import read_space, settings_space
from jaxlens.spaces import LARGEST_AXIS, point, space


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8", [8]),
        ("1,2,4", [1, 2, 4]),
        ("4, 1, 1", [1, 4]),
        ("1..4", [1, 2, 3, 4]),
        ("0..64+16", [0, 16, 32, 48, 64]),
        ("1..10+4", [1, 5, 9]),
        ("1..8*2", [1, 2, 4, 8]),
        ("3..100*3", [3, 9, 27, 81]),
        ("1.0:2.0:5", [1.0, 1.25, 1.5, 1.75, 2.0]),
        ("1:1000:4:log", [1, 10, 100, 1000]),
        ("1,2,8..32*2", [1, 2, 8, 16, 32]),
        ("5..5", [5]),
        ("50%", [0.5]),
        ("8,none", [8, UNLIMITED]),
    ],
)
def test_text_stands_for_values(text, values):
    found = parsed(text, where="knob")
    assert len(found) == len(values)
    assert found.every == pytest.approx(values)
    asked = space(axis("knob", found))
    decoded = [point(asked, i)["knob"] for i in range(asked.size)]
    assert decoded == pytest.approx(values)


def test_units_are_those_of_the_command_line():
    assert parsed("1.2GHz:1.4GHz:2", "hertz", where="c").every == (1.2e9, 1.4e9)
    assert parsed("1000MHz..1.2GHz+100MHz", "hertz", where="c").every == pytest.approx(
        (1.0e9, 1.1e9, 1.2e9)
    )
    assert parsed("400,0.5kW,none", "watts", where="c").every == (400, 500, UNLIMITED)
    ghz, hertz = search_space(clock_ghz="1:2:3"), search_space(clock="1GHz:2GHz:3")
    assert ghz.knobs["clock_hz"].every == hertz.knobs["clock_hz"].every


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected values such as"),
        ("1..", "expected values such as"),
        ("8..1", "low <= high"),
        ("1..8*1", "a factor above 1"),
        ("0..8*2", "0 < low"),
        ("3:3:3", "low < high"),
        ("1:2:1", "at least two values"),
        ("0:2:3:log", "0 < low < high"),
        ("1..1e12", "take a coarser step"),
        ("1:2:99999999", "take a coarser step"),
        ("1 GHz", "a number without a unit"),
        ("__import__", "expected values such as"),
    ],
)
def test_text_that_stands_for_nothing_says_what_would(text, words):
    with pytest.raises(ValueError, match=words) as error:
        parsed(text, where="knob")
    assert str(error.value).startswith("knob: expected")


@settings(max_examples=30, deadline=None)
@given(low=st.floats(1e-3, 1e6), ratio=st.floats(1.01, 1e4), count=st.integers(2, 200))
def test_grids_have_both_ends_and_ascend(low, ratio, count):
    for log in (False, True):
        found = np.array(grid(low, low * ratio, count, log=log).every)
        assert found.size == count
        assert found[[0, -1]] == pytest.approx([low, low * ratio])
        assert (np.diff(found) > 0.0).all()


def test_sizes_are_known_without_building():
    assert len(integers(1, LARGEST_AXIS)) == LARGEST_AXIS
    assert len(grid(0.0, 1.0, LARGEST_AXIS)) == LARGEST_AXIS
    assert powers(1, 2**20).highest == 2**20
    huge = search_space(
        model="Qwen/Qwen3-8B",
        gpu="h100-sxm",
        tp="1..8*2",
        prompt="1..1000000",
        output="1..1000000",
        chunk_tokens="512..100000",
    )
    (plan,) = plans(huge)
    assert plan.size > 10**18


def test_names_have_short_forms_and_kinds_are_listed():
    found = search_space(
        tp=[1, 2],
        **{"power-cap": "300W"},
        gpu="h100-sxm, b200-sxm",
        overlap=[True, "off"],
    )
    assert found.degrees == {"tensor_parallel": (1, 2)}
    assert found.kinds["gpu"] == ("h100-sxm", "b200-sxm")
    assert found.kinds["overlap"] == (True, False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tensr_parallel": 2}, "near: tensor_parallel"),
        ({"bananas": 2}, "expected the name of a knob or kind"),
        ({"tp": 1.5}, "expected whole numbers"),
        ({"tp": 0}, "from 1 to 4,096, got 0"),
        ({"tp": 2, "tensor_parallel": 2}, "each knob once"),
        ({"tp": True}, "expected numbers or text"),
        ({"tp": [[1]]}, "expected numbers or text"),
        ({"tp": float("inf")}, "expected finite values"),
        ({"batch": 8, "sequences": 8}, "expected sequences or batch, got both"),
        ({"clock": "1GHz", "clock_share": 0.5}, "expected clock_hz or clock_share"),
        ({"clock": 1410}, "plain numbers are hertz"),
        ({"prompt": "none"}, "no limit to lift"),
        ({"routing_skew": 2}, "0 is uniform"),
        ({"overlap": "maybe"}, "expected true or false"),
        ({"stages": 4, "overlap": False}, "leave one out"),
        ({"gpu": []}, "at least one"),
        ({"max_gpus": 0}, "max GPUs: expected"),
        ({"where": 3}, "expected bounds as text"),
    ],
)
def test_what_is_no_space_says_why(given, words):
    with pytest.raises(ValueError, match=words):
        search_space(**given)


def test_a_bound_is_a_relative_slack():
    known = ("a", "b")
    values = {"a": 3.0, "b": 4.0}
    for text, expected in {
        "a <= b": 0.25,
        "b <= a": -0.25,
        "a < 3": -1e-5,
        "a <= 3": 0.0,
        "a == 3": 0.0,
        "a == b": -0.25,
        "2 <= a <= 6": 1 / 3,
        "a <= 6 and b <= 4": 0.0,
        "min(a, b) * 2 >= max(a, b) + 2": 0.0,
        "b % 2 == 0": 0.0,
        "-a + 7 >= b / 1": 0.0,
    }.items():
        found = slack(bound(text, known), values)
        assert float(found) == pytest.approx(expected, abs=2e-6), text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tp", "expected a comparison"),
        ("tp <= 3 or tp >= 5", "expected a comparison"),
        ("tp ** 9 <= 3", "expected only"),
        ("tp.real <= 3", "expected only"),
        ("__import__('os') <= 3", "expected only"),
        ("tp in [1, 2]", "no other compares"),
        ("tp <= 1e999", "expected only"),
        ("tpp <= 3", "near: tp"),
        ("zzzz <= 3", "there are tp, pp"),
        ("1 <= 2", "at least one name"),
        ("(" * 300, "expected a bound such as"),
        ("tp <= " + "1+" * 300 + "1", "at most 500 characters"),
        ("", "expected a bound such as"),
    ],
)
def test_what_is_no_bound_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        bound(text, ["tp", "pp"])


def test_layouts_obey_the_engine_and_the_bounds():
    asked = prepare("Qwen/Qwen3-8B", "h100-sxm")  # 32 heads
    found = layouts(
        asked.shape,
        asked.profile.chip,
        asked.deployment,
        8,
        degrees={"tensor_parallel": (1, 3, 4), "pipeline_parallel": (1, 2)},
        bounds=[bound("tensor_parallel * pipeline_parallel <= 4", LAYOUT_NAMES)],
    )
    assert all(layout.gpus <= 8 for layout in found)
    assert {one.tensor_parallel for one in found if one.problem} == {3}
    for layout in found:
        size = layout.tensor_parallel * layout.pipeline_parallel
        assert (layout.bound_slack >= 0.0) == (size <= 4)
    with pytest.raises(ValueError, match="at most 8 GPUs, got none"):
        layouts(
            asked.shape,
            asked.profile.chip,
            asked.deployment,
            8,
            degrees={"tensor_parallel": (16,)},
        )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "space.yaml",
            "gpu: [h100-sxm, l40s]\ntp: 1..8*2\nsequences: 1:10:4\noverlap: on\n"
            "power_cap: [300W, none]\nwhere: tp <= 4\nmax_gpus: 8\n",
        ),
        (
            "space.toml",
            'gpu = ["h100-sxm", "l40s"]\ntp = [1, 2, 4, 8]\nsequences = "1:10:4"\n'
            'overlap = true\npower_cap = ["300W", "none"]\nwhere = ["tp <= 4"]\n'
            "max_gpus = 8\n",
        ),
    ],
)
def test_files_say_what_python_says(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_space(path) == search_space(
        gpu=["h100-sxm", "l40s"],
        tp=powers(1, 8),
        sequences=grid(1, 10, 4),
        overlap=True,
        power_cap=choices([300, UNLIMITED]),
        where="tp <= 4",
        max_gpus=8,
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("s.yaml", "tensr_parallel: 2", "got 'tensr_parallel'; near: tensor_parallel"),
        ("s.yaml", "tp: 2\ntp: 4", "each key once, got 'tp' twice"),
        ("s.yaml", "- tp", "expected lines like"),
        ("s.yaml", "[1, 2", "expected YAML"),
        ("s.yaml", "tp: many", "s.yaml: tp: expected values such as"),
        ("s.toml", "tp = ", "expected TOML"),
        ("s.toml", "max_gpus = 1.5", "whole number"),
        ("s.json", "{}", "ends in .yaml, .yml, .toml"),
    ],
)
def test_wrong_files_say_where(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_space(path)


def test_settings_win_over_files_and_bounds_add_up():
    filed = search_space(tp="1..8*2", dp=1, where="tp <= 4")
    told = settings_space(["tp=2,4"], ["gpus <= 8"])
    both = filed.joined(told)
    assert both.degrees == {"tensor_parallel": (2, 4), "data_parallel": (1,)}
    assert [b.text for b in both.bounds] == ["tensor_parallel <= 4", "gpus <= 8"]
    with pytest.raises(ValueError, match="expected sequences or batch, got both"):
        search_space(batch=8).joined(search_space(sequences=8))
