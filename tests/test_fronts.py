import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxlens.fronts import best_of_each, pareto_front, top_k


def test_a_front_of_two_by_hand():
    #                  dominated     front       front       front    beaten by (2, 2)
    points = np.array([[3.0, 3.0], [2.0, 2.0], [1.0, 5.0], [4.0, 1.0], [2.0, 4.0]])
    assert pareto_front(points).tolist() == [2, 1, 3]


def test_of_equal_points_the_first_is_taken():
    points = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    assert pareto_front(points).tolist() == [0, 2]
    assert pareto_front(np.column_stack([points, [0, 0, 0]])).tolist() == [0, 2]


def test_nan_and_infinity_are_no_winners():
    points = np.array([[np.nan, 0.0], [1.0, 1.0], [0.5, np.inf], [np.inf, np.inf]])
    assert pareto_front(points).tolist() == [2, 1]
    assert pareto_front(np.full((3, 2), np.nan)).size == 0


@settings(deadline=None, max_examples=60)
@given(
    arrays(
        float,
        st.tuples(st.integers(0, 40), st.integers(2, 4)),
        elements=st.integers(0, 6).map(float),
    )
)
def test_a_front_is_what_nothing_beats(points):
    def beaten(p):
        return bool(((points <= p).all(axis=1) & (points < p).any(axis=1)).any())

    chosen = pareto_front(points)
    expected = {tuple(p) for p in points if not beaten(p)}
    assert {tuple(points[i]) for i in chosen} == expected
    assert len(chosen) == len(expected)


def test_a_front_takes_two_to_four_objectives():
    with pytest.raises(ValueError, match="2 to 4 objectives"):
        pareto_front(np.zeros((3, 5)))


def test_top_k_is_stable_and_short_where_there_is_little():
    values = np.array([3.0, 1.0, np.nan, 1.0, 2.0])
    assert top_k(values, 3).tolist() == [1, 3, 4]
    assert top_k(values, 10).tolist() == [1, 3, 4, 0]
    assert top_k(values, 0).size == 0


def test_best_of_each_group_smallest_first():
    values = np.array([3.0, 1.0, 2.0, 0.5, np.nan])
    groups = np.array([[0, 1], [0, 1], [0, 2], [1, 1], [9, 9]])
    assert best_of_each(values, groups).tolist() == [3, 1, 2]
