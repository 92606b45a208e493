"""The formula of a dozen coefficients: what it recovers, and how close it comes."""

import numpy as np
import pytest

from jaxlens.calibration.closed_form import (
    ENERGY_TERMS,
    TERMS,
    ClosedForm,
    Terms,
    closed_form_terms,
    fit_closed_form,
    positive_least_squares,
)
from jaxlens.calibration.tables import read_table

TRUTH = ClosedForm(
    latency={
        **dict.fromkeys(TERMS, 0.0),
        "weights": 1.3,
        "cache": 1.5,
        "layers": 2e-5,
        "step": 1e-3,
    },
    energy={**dict.fromkeys(ENERGY_TERMS, 0.0), "time": 0.4, "products": 0.9},
)


def synthetic(rows):
    generator = np.random.default_rng(0)
    scale = {"layers": 50.0, "step": 1.0, "collectives": 100.0, "sequences": 100.0}
    columns = [
        scale.get(name, 5e-3) * generator.uniform(0.1, 1.0, rows) for name in TERMS
    ]
    return Terms(
        seconds=np.stack(columns, axis=1),
        watts_per_sequence=generator.uniform(5.0, 500.0, rows),
        flop_per_output_token=generator.uniform(1e10, 1e12, rows),
    )


def test_positive_least_squares_meets_its_conditions():
    generator = np.random.default_rng(1)
    for _ in range(20):
        matrix, target = generator.normal(size=(30, 6)), generator.normal(size=30)
        x = positive_least_squares(matrix, target)
        slope = matrix.T @ (target - matrix @ x)
        assert (x >= 0.0).all()
        assert np.abs(slope[x > 0.0]).max(initial=0.0) < 1e-8
        assert slope[x == 0.0].max(initial=-1.0) < 1e-8


def test_it_solves_an_example_by_hand():
    # Alone, the first column would get 1.5; the second one would be negative.
    matrix = np.array([[1.0, 0.0], [1.0, 1.0]])
    found = positive_least_squares(matrix, np.array([2.0, 1.0]))
    assert found == pytest.approx([1.5, 0.0])


def test_columns_of_nothing_get_nothing():
    matrix = np.array([[1.0, 0.0], [2.0, 0.0]])
    found = positive_least_squares(matrix, np.array([3.0, 6.0]))
    assert found == pytest.approx([3.0, 0.0])


def test_a_fit_recovers_the_formula_behind_the_numbers():
    terms = synthetic(50)
    found = fit_closed_form(terms, TRUTH.seconds(terms), TRUTH.joules(terms))
    for name in TERMS:
        assert found.latency[name] == pytest.approx(TRUTH.latency[name], abs=1e-9)
    for name in ENERGY_TERMS:
        assert found.energy[name] == pytest.approx(TRUTH.energy[name], abs=1e-9)


def test_one_wild_measurement_does_not_bend_the_formula():
    terms = synthetic(50)
    seconds = TRUTH.seconds(terms)
    seconds[7] *= 10.0
    found = fit_closed_form(terms, seconds, TRUTH.joules(terms))
    others = np.arange(50) != 7
    ratio = found.seconds(terms)[others] / TRUTH.seconds(terms)[others]
    assert np.abs(ratio - 1.0).max() < 0.05


def test_a_formula_reads_as_one():
    assert str(TRUTH) == (
        "t = 1.3 weights + 1.5 cache + 2e-05 layers + 0.001 step;  "
        "J = (G N / b) (0.4 time + 0.9 products)"
    )


def test_measurements_must_be_positive():
    terms = synthetic(3)
    with pytest.raises(ValueError, match="seconds above 0 for each of 3 rows"):
        fit_closed_form(terms, np.array([1.0, 0.0, 1.0]), np.ones(3))


def test_terms_follow_from_datasheets_and_layer_shapes(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "gpu,stack,model,weight_dtype,kv_dtype,tensor_parallel,prompt_tokens,"
        "output_tokens,concurrency,output_tokens_per_second\n"
        "h100-sxm,vllm-0.11,meta-llama/Llama-3.1-8B-Instruct,bf16,bf16,1,500,500,1,90\n"
        "h100-sxm,vllm-0.11,meta-llama/Llama-3.1-8B-Instruct,bf16,bf16,2,500,500,8,900\n"
    )
    terms = closed_form_terms(read_table(path))
    one, two = terms.seconds
    column = {name: index for index, name in enumerate(TERMS)}
    # 8.03e9 parameters of two bytes at 3.35 TB/s.
    assert one[column["weights"]] == pytest.approx(16.06e9 / 3.35e12, rel=0.01)
    assert two[column["weights"]] == pytest.approx(0.5 * one[column["weights"]])
    # 32 layers x 8 heads x 128 x keys and values x 2 bytes; four times as many per GPU.
    context = 500.0 + 0.5 * 500.0  # in a window as long as the run
    cache = 131072.0 * context / 3.35e12
    assert one[column["cache"]] == pytest.approx(cache, rel=1e-3)
    assert two[column["cache"]] == pytest.approx(4.0 * cache, rel=1e-3)
    # Two FLOPs a weight, for each output token and its share of the prompt.
    assert terms.flop_per_output_token[0] == pytest.approx(2 * 2 * 7.5e9, rel=0.01)
    assert one[column["collectives"]] == 0.0
    assert two[column["collectives"]] == 32.0
    assert one[column["tiles"]] == 0.0
    assert terms.watts_per_sequence.tolist() == [700.0, 175.0]


@pytest.mark.data
def test_fifty_measurements_are_enough_for_the_formula(data_folder):
    table = read_table(data_folder / "serving" / "mlenergy_v3.csv")
    table = table.subset(np.asarray(table["clean"], float) != 0.0)
    terms = closed_form_terms(table)
    seconds, joules = table["latency_seconds"], table["joules_per_output_token"]
    seen = np.random.default_rng(0).choice(len(table), 50, replace=False)
    found = fit_closed_form(terms.subset(seen), seconds[seen], joules[seen])
    unseen = np.setdiff1d(np.arange(len(table)), seen)
    for said, measured in (
        (found.seconds(terms), seconds),
        (found.joules(terms), joules),
    ):
        assert np.abs(said[unseen] / measured[unseen] - 1.0).mean() < 0.30
