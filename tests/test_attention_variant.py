"""The worked example of docs/attention_variant.md runs, and counts what it should."""

import re
from pathlib import Path

import pytest

from jaxlens import Deployment
from jaxlens.loads import Load
from jaxlens.memory import sequence_bytes, weights_bytes
from jaxlens.steps import items

PAGE = Path(__file__).parents[1] / "docs" / "attention_variant.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def ran():
    names: dict = {}
    exec(compile(BLOCKS[0][1], str(PAGE), "exec"), names)  # the page's own code
    return names


def test_the_variant_fits_in_thirty_lines():
    code = BLOCKS[0][1]
    variant = code[code.index("DIFFERENTIAL") : code.index("profile =")]
    assert len([line for line in variant.splitlines() if line.strip()]) < 30


def test_it_prints_a_small_change(ran, capsys):
    assert abs(ran["change"]) < 0.05


def test_two_maps_of_half_the_width_cost_what_one_does(ran):
    load = Load(decode_sequences=8.0, decode_context=500.0, emitting=8.0)

    def attention(model):
        layout = Deployment(tensor_parallel=2.0)
        asked = {i.name: i.asks for i in items(model, layout, load, ("decode",))}
        return asked["attention: attention (decode)"]

    usual, new = attention(ran["llama"]), attention(ran["differential"])
    assert new.flop == usual.flop
    assert new.kv_bytes == usual.kv_bytes
    layout = Deployment()
    for held in (
        lambda model: weights_bytes(model, layout),
        lambda model: sequence_bytes(model, layout, 1000.0),
    ):
        assert held(ran["differential"]) == pytest.approx(held(ran["llama"]))


def test_the_rest_of_the_page_runs_too(ran, capsys):
    for kind, code in BLOCKS[1:]:
        if kind == "python":
            exec(compile(code, str(PAGE), "exec"), dict(ran))
    printed = capsys.readouterr().out
    assert "'op': 'out', 'kind': 'all-reduce', 'payload': 'd·t'" in printed
    assert BLOCKS[-1] == ("text", printed[printed.index("einsum:") :])
