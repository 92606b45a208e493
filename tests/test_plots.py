import numpy as np
import pytest

from jaxlens import plots

CLOUD = plots.Cloud(
    seconds=np.array([0.01, 0.02, 0.04, 0.03]),
    joules=np.array([4.0, 2.0, 1.0, 3.0]),
    front_seconds=np.array([0.01, 0.02, 0.04]),
    front_joules=np.array([4.0, 2.0, 1.0]),
)


def drawn(**given):
    figure, axes = plots.panels(1)
    found = plots.energy_latency(
        axes[0], {"a": CLOUD, "b": CLOUD}, latency="token", **given
    )
    plots.caption(figure, axes, "title", "subtitle")
    figure.draw_without_rendering()
    return found


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_latencies_are_in_milliseconds_and_energies_in_joules():
    axes = drawn()
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [10.0, 20.0, 40.0])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [4.0, 2.0, 1.0])
    assert axes.get_xlabel() == "token (ms)"


def test_each_gpu_has_its_colour_and_its_name():
    axes = drawn()
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_a_limit_is_a_line_and_a_far_one_a_remark():
    near = drawn(limit_seconds=0.03, limit="TPOT limit")
    assert "TPOT limit 30 ms" in words(near)
    assert near.get_xlim()[1] > 30.0
    far = drawn(limit_seconds=10.0, limit="TPOT limit")
    assert "TPOT limit 10000 ms →" in words(far)
    assert far.get_xlim()[1] < 100.0


def test_the_winner_is_marked_where_it_is():
    axes = drawn(winner=plots.Mark(seconds=0.02, joules=2.0, label="2 x a"))
    star = axes.lines[-1]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == pytest.approx((20.0, 2.0))
    assert "2 x a" in words(axes)


def test_nothing_to_draw_is_no_error():
    empty = np.zeros(0)
    cloud = plots.Cloud(
        seconds=empty, joules=empty, front_seconds=empty, front_joules=empty
    )
    figure, axes = plots.panels(2)
    for panel in axes:
        plots.energy_latency(panel, {"a": cloud}, latency="token", limit_seconds=0.05)
    plots.caption(figure, axes, "title", "subtitle")
    figure.draw_without_rendering()
