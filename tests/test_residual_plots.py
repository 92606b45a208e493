import json

import numpy as np
import pytest
import synthetic_runs
from matplotlib.figure import Figure

from jaxlens import cli, residual_plots
from jaxlens.calibration.tables import read_table
from jaxlens.calibration.validation import decile_labels, predicted_and_measured

MEASURED = np.array([1.0, 10.0, 100.0])
PREDICTED = np.array([1.1, 8.0, 100.0])


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rows = synthetic_runs.measured(folder, {"chip.hbm_j_per_byte": 1.3})
    return synthetic_runs.write(folder / "runs.csv", rows)


def words(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


def test_measured_lies_along_and_predicted_upwards(axes):
    groups = np.array(["a", "b", "a"])
    residual_plots.predicted_against_measured(
        axes, PREDICTED, MEASURED, name="energy (J)", groups=groups
    )
    _, first, second = axes.collections
    np.testing.assert_allclose(first.get_offsets(), [[1.0, 1.1], [100.0, 100.0]])
    np.testing.assert_allclose(second.get_offsets(), [[10.0, 8.0]])
    assert axes.get_xlabel() == "measured energy (J)"
    assert axes.get_ylabel() == "predicted energy (J)"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["±20% of measured", "a", "b"]


def test_the_band_is_a_fifth_of_what_was_measured(axes):
    residual_plots.predicted_against_measured(axes, PREDICTED, MEASURED, name="x")
    corners = axes.collections[0].get_paths()[0].vertices
    ratios = set(np.round(corners[:, 1] / corners[:, 0], 6))
    assert ratios == {0.8, 1.2}


def test_each_group_has_a_strip_and_its_number_of_rows(axes):
    residuals = np.log(np.array([1.1, 1.2, 0.9]))
    labels = np.array(["16", "8", "16"])
    residual_plots.residuals_by(axes, residuals, labels, factor="batch")
    assert words(axes) == ["8 (1)", "16 (2)"]
    strips = [np.sort(c.get_offsets()[:, 0]) for c in axes.collections]
    np.testing.assert_allclose(strips[0], [1.2])
    np.testing.assert_allclose(strips[1], [0.9, 1.1])
    assert axes.get_title(loc="left") == "by batch"


def test_small_groups_give_way_and_are_counted(axes):
    many = residual_plots.MOST_GROUPS + 2
    labels = np.array([f"m{i:02d}" for i in range(many)] * 2 + ["m31"])[2:]
    residual_plots.residuals_by(axes, np.zeros(len(labels)), labels, factor="model")
    assert len(words(axes)) == residual_plots.MOST_GROUPS
    title = axes.get_title(loc="left")
    assert (
        title == f"by model ({len(set(labels)) - len(words(axes))} smaller ones "
        "not shown)"
    )


def test_tenths_share_equal_values():
    labels = decile_labels(np.array([*range(1, 21), np.nan], float))
    assert labels[0] == labels[1] == "1–2"
    assert labels[19] == "19–20"
    assert labels[20] == "unknown"
    assert set(decile_labels(np.array([8.0, 8.0, 8.0]))) == {"8"}


def test_what_is_drawn_is_what_was_measured(runs):
    table = read_table(runs)
    found = predicted_and_measured([table])
    assert set(found) == {"energy", "latency"}
    np.testing.assert_array_equal(
        found["energy"].measured, table["joules_per_output_token"]
    )
    assert found["energy"].known.all()


def test_command_keeps_a_picture_beside_its_report(runs, tmp_path, capsys):
    path = tmp_path / "errors.png"
    assert cli.main(["validate", str(runs), "--plot", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plot"] == str(path)
    assert report["energy"]["rows"] == 16
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_no_known_format_is_refused_before_any_work(runs, capsys):
    assert cli.main(["validate", str(runs), "--plot", "errors.txt"]) == 2
    assert "expected a file that ends in .png" in capsys.readouterr().err
