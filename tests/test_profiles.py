import dataclasses
import math
import shutil
import time
import tomllib

import jax
import numpy as np
import pytest

from jaxlens import fitted_profiles, profile_files
from jaxlens.fitted_profiles import (
    FittedProfile,
    FittedValue,
    read_fitted_profile,
    save_profile,
)
from jaxlens.hardware import Chip, Stack
from jaxlens.profile_files import CHIPS, DATA, STACKS, normalised, read_entry
from jaxlens.profile_values import unit_of
from jaxlens.profiles import (
    Profile,
    known_chips,
    known_stacks,
    load_chip,
    load_profile,
    load_profile_card,
    load_stack,
)

CHIP_IDS = [
    "a100-sxm-40gb",
    "a100-sxm-80gb",
    "a100-pcie-40gb",
    "a10",
    "h100-sxm",
    "h100-pcie",
    "h100-nvl",
    "h100-sxm-64gb",
    "h200-sxm",
    "gh200",
    "b200-sxm",
    "b300-sxm",
    "gb200",
    "gb300",
    "l40s",
    "rtx-pro-6000",
    "rtx-4090",
    "v100-sxm-32gb",
    "mi300x",
]
STACK_IDS = [
    "vllm-0.11",
    "vllm-0.5",
    "tensorrt-llm-0.9",
    "hf-eager",
    "sglang",
    "deepspeed-mii",
    "vllm-memory-gap",
]


def chip_tables(name: str = "h100-sxm") -> dict:
    return tomllib.loads((DATA / "chips" / f"{name}.toml").read_text())


def own_chip_tables() -> dict:
    tables = chip_tables()
    tables["identity"] |= {"id": "mine", "name": "Mine", "aliases": []}
    return tables


def fitted_h100(**changes) -> FittedProfile:
    values = {
        "chip": "h100-sxm",
        "stack": "vllm-0.11",
        "created": "2026-01-31",
        "fitted_on": ('my "runs".csv',),
        "rows": 12,
        "chip_values": {"hbm_j_per_byte": FittedValue(6.25e-11, 0.03)},
        "stack_values": {"kernel_seconds": FittedValue(1.9e-6, 0.1)},
        "scatter": {"energy": 0.06, "latency": 0.05},
        "covariance_names": ("chip.hbm_j_per_byte", "stack.kernel_seconds"),
        "covariance": (9e-4, 1e-5, 1e-5, 0.01),
        "provenance": {"hash": "abc\n", "folds": 5, "converged": True, "seeds": [0, 1]},
    }
    return FittedProfile(**{**values, **changes})


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """A copy of the shipped profiles' folder that a test can write to."""
    monkeypatch.setattr(fitted_profiles, "DATA", tmp_path)
    folder = tmp_path / "profiles"
    folder.mkdir()
    return folder


def test_all_promised_chips_and_stacks_come_with_the_package():
    assert set(known_chips()) >= set(CHIP_IDS)
    assert set(known_stacks()) >= set(STACK_IDS)


@pytest.mark.parametrize("name", known_chips())
def test_every_chip_loads_as_python_floats(name):
    leaves = jax.tree.leaves(load_chip(name))
    assert all(type(leaf) is float and math.isfinite(leaf) for leaf in leaves)


@pytest.mark.parametrize("name", known_stacks())
def test_every_stack_loads_as_python_floats(name):
    leaves = jax.tree.leaves(load_stack(name))
    assert all(type(leaf) is float and math.isfinite(leaf) for leaf in leaves)


@pytest.mark.parametrize("kind", [CHIPS, STACKS], ids=["chips", "stacks"])
def test_every_value_has_unit_and_source(kind):
    for name in profile_files.known_ids(kind):
        entry = read_entry(kind, name)
        assert entry.id == name
        for field, value in entry.values.items():
            assert value.unit == unit_of(field)
            assert len(value.source) > 5
            assert value.spread is None or 0.0 < value.spread < 2.0


@pytest.mark.parametrize("kind", [CHIPS, STACKS], ids=["chips", "stacks"])
def test_no_name_stands_for_two_things(kind):
    ids = profile_files.known_ids(kind)
    names = [
        name
        for identifier in ids
        for name in {
            normalised(alias)
            for alias in [identifier, *read_entry(kind, identifier).identity["aliases"]]
        }
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("H100", "h100-sxm"),
        ("a100", "a100-sxm-80gb"),
        ("B200", "b200-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA B200", "b200-sxm"),
        ("NVIDIA B300 SXM6 AC", "b300-sxm"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("Tesla V100-SXM2-32GB", "v100-sxm-32gb"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_names_that_drivers_report_resolve(alias, name):
    assert load_profile_card(alias).chip == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("vLLM", "vllm-0.11"),
        ("vllm-0.11.1", "vllm-0.11"),
        ("default", "vllm-0.11"),
        ("vllm-0.5.4", "vllm-0.5.4"),
        ("tensorrt-llm", "tensorrt-llm-0.9"),
    ],
)
def test_stack_aliases_resolve(alias, name):
    assert load_profile_card("h100-sxm", alias).stack == name


@pytest.mark.parametrize(
    ("load", "name", "said"),
    [
        (load_chip, "h10o", "gpu: .*'h10o'; near: .*h100"),
        (load_chip, "A100 PCI", "near: a100-pcie-40gb"),
        (load_chip, "qqqq", "known: a10, a100"),
        (load_chip, "  ", "gpu: expected a text"),
        (load_chip, "../chips/h100-sxm", "gpu: expected a known gpu"),
        (load_chip, "missing.toml", r"missing.toml.*No such file.*check the path"),
        (load_stack, "vlm-0.11", "stack: .*near: vllm-0.11"),
    ],
)
def test_unknown_names_say_what_is_near(load, name, said):
    with pytest.raises(ValueError, match=said):
        load(name)


def test_a_stack_inherits_what_it_does_not_state(own_data):
    early, late = load_stack("vllm-0.5"), load_stack("vllm-0.11")
    assert early.host_sequence_seconds > late.host_sequence_seconds
    assert early.memory_share == late.memory_share
    card = load_profile_card("h100-sxm", "vllm-0.5")
    assert card.coefficients["stack.memory_share"].source.startswith("as vllm-0.11: ")


def test_adding_a_chip_takes_one_file(tmp_path):
    path = tmp_path / "my.toml"
    text = (DATA / "chips" / "h100-sxm.toml").read_text()
    path.write_text(text.replace('id = "h100-sxm"', 'id = "my-h100"'))
    assert load_chip(path) == load_chip(str(path)) == load_chip("h100-sxm")
    assert load_profile_card(path).chip == "my-h100"


def test_a_chip_file_may_state_only_what_differs(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(
        """
        [identity]
        id = "h100-small"
        name = "H100 with half the memory"
        vendor = "NVIDIA"
        architecture = "Hopper"
        inherits = "h100-sxm"
        [facts]
        hbm_bytes = { value = 40e9, unit = "B", source = "a label on the box" }
        """
    )
    expected = dataclasses.replace(load_chip("h100-sxm"), hbm_bytes=40e9)
    assert load_chip(path) == expected


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "my.toml"
    text = (DATA / "chips" / "h100-sxm.toml").read_text()
    path.write_text(text)
    assert load_chip(path).tdp_watts == 700.0
    path.write_text(
        text.replace("tdp_watts = { value = 700.0", "tdp_watts = { value = 65")
    )
    assert load_chip(path).tdp_watts == 65.0


def change(section, key, **entries):
    def apply(tables):
        tables[section][key] = {**tables[section][key], **entries}

    return apply


def drop(section, key):
    return lambda tables: tables[section].pop(key)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop("facts", "tdp_watts"), r"got none for tdp_watts \(W\); add them to"),
        (drop("identity", "vendor"), r"\[identity\].*missing \['vendor'\]"),
        (change("facts", "tdp_watts", value="700"), "expected a number, got '700'"),
        (change("facts", "tdp_watts", value=True), "expected a number, got True"),
        (change("facts", "tdp_watts", value=math.nan), "expected a finite number"),
        (change("facts", "tdp_watts", value=math.inf), "expected a finite number"),
        (change("facts", "tdp_watts", value=10**400), "expected a finite number"),
        (change("facts", "tdp_watts", value=0), "expected a number > 0, got 0"),
        (change("facts", "tdp_watts", unit="kW"), "unit 'W', got 'kW'; convert to SI"),
        (change("facts", "tdp_watts", source=" "), "tdp_watts source: expected a text"),
        (change("facts", "tdp_watts", note="x"), r"keys \['source', 'unit', 'value'\]"),
        (change("coefficients", "busy_watts", spread=0), "busy_watts spread: .*> 0"),
        (change("coefficients", "busy_watts", value=-1.0), "expected a number >= 0"),
        (change("coefficients", "hbm_saturation", value=2.0), "a share from 0 to 1"),
        (change("facts", "boost_hz", value=9e9), "min_hz <= boost_hz <= max_hz"),
        (lambda t: t["facts"].update(tdp_wats=1.0), "tdp_wats: .*near: tdp_watts"),
        (lambda t: t["facts"].update(sms=132), r"facts\] sms: expected `\{ value"),
        (lambda t: t["facts"].update(sms={"value": 1}), "expected `unit`.*unit is '1'"),
        (lambda t: t["facts"].update(busy_watts=t["facts"]["tdp_watts"]), "got two"),
        (lambda t: t.update(fact={}), r"unknown \['fact'\]"),
        (lambda t: t.update(facts=1), r"expected a table \[facts\]"),
        (lambda t: t["identity"].update(colour="red"), r"unknown \['colour'\]"),
        (lambda t: t["identity"].update(formats=["fp6"]), "formats: .*got 'fp6'"),
        (lambda t: t["identity"].update(aliases="H100"), "aliases: expected a list"),
        (lambda t: t["identity"].update(inherits="mine"), "expected a known gpu"),
        (lambda t: t["curves"]["idle"]["values"].pop(), "ascending clocks"),
        (lambda t: t["curves"].update(idle=1), r"\[curves.idle\]: expected the keys"),
    ],
)
def test_a_damaged_chip_says_where_and_what(damage, said):
    tables = own_chip_tables()
    damage(tables)
    if tables["identity"].get("inherits") == "mine":
        said = "got a circle mine -> mine"
    with pytest.raises(ValueError, match=said) as error:
        load_chip(tables)
    assert str(error.value).startswith("gpu tables")


def test_text_that_is_no_toml_is_named(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[identity\n")
    with pytest.raises(ValueError, match=r"broken.toml: expected TOML"):
        load_chip(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"broken.toml: expected TOML"):
        load_chip(path)


def test_a_pair_without_calibration_says_so(own_data):
    card = load_profile_card("l40s")
    assert not card.fitted
    assert card.formats == ("bf16", "fp8")
    assert card.fusion == "fused"
    assert card.coefficients["chip.tdp_watts"].origin == "datasheet"
    assert card.coefficients["stack.kernel_seconds"].origin == "prior"
    assert "stack prior: no calibration of vllm-0.11 on l40s" in card.notes
    assert len(card.coefficients) == len(CHIPS.fields) + len(STACKS.fields)


def test_saved_profile_reads_back_the_same(tmp_path):
    path = tmp_path / "fit.toml"
    save_profile(path, fitted_h100())
    assert read_fitted_profile(path) == fitted_h100()
    assert list(tmp_path.iterdir()) == [path]


def test_fitted_values_replace_priors(tmp_path):
    path = tmp_path / "fit.toml"
    save_profile(path, fitted_h100())
    profile = load_profile("h100-sxm", profile=path)
    assert isinstance(profile, Profile)
    assert profile.chip.hbm_j_per_byte == 6.25e-11
    assert profile.stack.kernel_seconds == 1.9e-6
    assert profile.chip.tdp_watts == 700.0
    card = load_profile_card("h100-sxm", profile=path)
    fitted = card.coefficients["chip.hbm_j_per_byte"]
    assert (fitted.origin, fitted.value, fitted.spread) == ("fitted", 6.25e-11, 0.03)
    assert fitted.source == 'fitted on my "runs".csv, 2026-01-31'
    assert card.scatter == {"energy": 0.06, "latency": 0.05}
    np.testing.assert_allclose(card.covariance, [[9e-4, 1e-5], [1e-5, 0.01]])
    assert any("communication power" in note for note in card.notes)


@pytest.mark.parametrize("stack", ["vllm-0.11", "vllm-0.5"])
def test_card_and_profile_agree(stack):
    profile, card = load_profile("h100-sxm", stack), load_profile_card("h100", stack)
    for field in CHIPS.fields:
        value = getattr(profile.chip, field)
        assert card.coefficients[f"chip.{field}"].value == value
    for field in STACKS.fields:
        value = getattr(profile.stack, field)
        assert card.coefficients[f"stack.{field}"].value == value


def test_a_shipped_profile_applies_to_its_pair_alone(own_data, tmp_path):
    save_profile(own_data / "h100-sxm.vllm-0.11.toml", fitted_h100())
    assert load_profile("H100").chip.hbm_j_per_byte == 6.25e-11
    assert load_profile_card("H100").rows == 12
    default = load_chip("h100-sxm").hbm_j_per_byte
    assert load_profile("H100", "sglang").chip.hbm_j_per_byte == default
    own = tmp_path / "own.toml"
    shutil.copy(DATA / "chips" / "h100-sxm.toml", own)
    assert load_profile(own).chip.hbm_j_per_byte == default


def test_a_profile_of_another_pair_is_refused(tmp_path):
    path = tmp_path / "fit.toml"
    save_profile(path, fitted_h100())
    with pytest.raises(ValueError, match=r"h200-sxm with vllm-0.11, got .* h100-sxm"):
        load_profile("h200-sxm", profile=path)
    with pytest.raises(ValueError, match=r"profile: .*check the path"):
        load_profile("h100-sxm", profile=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": -1}, "rows: expected a count"),
        ({"created": ""}, "created: expected a text"),
        ({"chip_values": {"hbm": FittedValue(1.0, 0.1)}}, "known field, got 'hbm'"),
        ({"chip_values": {"busy_watts": FittedValue(math.nan, 0.1)}}, "finite number"),
        ({"stack_values": {"passes": FittedValue(-1.0, 0.1)}}, "expected a number >"),
        ({"stack_values": {"passes": FittedValue(1.0, -0.1)}}, "sd: expected >= 0"),
        ({"scatter": {"energy": -0.1}}, "energy: expected >= 0"),
        ({"covariance": (1.0, 0.0)}, "2 different names and 4 numbers, got 2 and 2"),
        ({"covariance": (1.0, 0.5, 0.0, 1.0)}, "expected a symmetric one"),
        ({"covariance_names": ("busy_watts", "x")}, "near: chip.busy_watts"),
        ({"provenance": {"when": object()}}, "expected texts, finite numbers"),
    ],
)
def test_a_profile_that_could_not_be_read_is_not_written(tmp_path, changes, said):
    path = tmp_path / "fit.toml"
    save_profile(path, fitted_h100())
    before = path.read_text()
    with pytest.raises(ValueError, match=said):
        save_profile(path, fitted_h100(**changes))
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "fit.toml"
    save_profile(path, fitted_h100())

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fitted_profiles.os, "replace", fail)
    with pytest.raises(ValueError, match="No space left on device"):
        save_profile(path, fitted_h100(rows=13))
    assert read_fitted_profile(path).rows == 12
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="check the folder"):
        save_profile(tmp_path / "none" / "fit.toml", fitted_h100())


def test_loading_a_profile_again_takes_no_time():
    load_profile("h100-sxm")
    start = time.perf_counter()
    for _ in range(100):
        load_profile("h100-sxm")
    assert time.perf_counter() - start < 2.0


def test_fields_of_chip_and_stack_do_not_share_names():
    names = {
        cls: {field.name for field in dataclasses.fields(cls)} for cls in (Chip, Stack)
    }
    assert not names[Chip] & names[Stack]
