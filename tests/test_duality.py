from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlens.optimize.duality import Item, Mode, frontier, solve


def exhaustive(groups, limit):
    """The least energy of all whole choices; infinite where none fits."""
    best = np.inf
    for modes in product(*groups):
        items = [item for mode in modes for item in mode.items]
        choices = [
            list(combinations_with_replacement(range(item.seconds.size), item.copies))
            for item in items
        ]
        for chosen in product(*choices):
            seconds = sum(mode.seconds for mode in modes)
            joules = sum(mode.joules for mode in modes)
            for item, options in zip(items, chosen, strict=True):
                seconds += item.seconds[list(options)].sum()
                joules += item.joules[list(options)].sum()
            if seconds <= limit * (1.0 + 1e-12):
                best = min(best, joules)
    return best


def item(*pairs, copies=1):
    seconds, joules = np.array(pairs, float).T
    return Item(seconds=seconds, joules=joules, copies=copies)


def test_two_copies_by_hand():
    # Each copy: 1 s for 10 J or 3 s for 4 J. In 5 s one of the two can be slow.
    mode = Mode(seconds=1.0, joules=2.0, items=(item((1, 10), (3, 4), copies=2),))
    found = solve([[mode]], 5.0)
    assert found.counts == (({0: 1, 1: 1},),)
    assert (found.seconds, found.joules) == (5.0, 16.0)
    assert found.bound_joules == pytest.approx(16.0)
    # With 6 s, half of a saving of 6 J would still fit, were there halves.
    looser = solve([[mode]], 6.0)
    assert (looser.joules, looser.bound_joules) == (16.0, pytest.approx(13.0))
    assert looser.multiplier == pytest.approx(3.0)  # joules per second


def test_a_mode_is_chosen_with_its_items():
    fast = Mode(seconds=1.0, joules=20.0, items=(item((1, 5)),))
    slow = Mode(seconds=2.0, joules=8.0, items=(item((2, 4)),))
    assert solve([[fast, slow]], 4.0).modes == (1,)
    assert solve([[fast, slow]], 3.9).modes == (0,)


def test_a_limit_that_nothing_meets_names_the_fastest():
    mode = Mode(seconds=1.0, joules=2.0, items=(item((1, 10), (3, 4)),))
    found = solve([[mode]], 1.5)
    assert not found.feasible
    assert found.seconds == 2.0


def test_a_loose_limit_has_no_price_and_no_gap():
    mode = Mode(seconds=0.0, joules=0.0, items=(item((1, 10), (3, 4), copies=7),))
    found = solve([[mode], [mode]], 100.0)
    assert found.joules == pytest.approx(56.0)
    assert found.gap == pytest.approx(0.0, abs=1e-12)
    assert found.multiplier == 0.0


def test_no_items_leave_the_modes():
    modes = [Mode(seconds=t, joules=1.0 / t, items=()) for t in (1.0, 2.0, 3.0)]
    assert solve([modes], 2.5).modes == (1,)


def test_only_the_convex_part_of_a_frontier_is_kept():
    seconds = np.array([1.0, 2.0, 3.0, 4.0, 1.0])
    joules = np.array([9.0, 8.0, 2.0, 3.0, 12.0])
    assert frontier(seconds, joules).tolist() == [0, 2]


pairs = st.tuples(st.floats(0.1, 10.0), st.floats(0.1, 10.0))
items = st.lists(pairs, min_size=1, max_size=3)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(items, min_size=1, max_size=2), min_size=1, max_size=2),
    st.integers(1, 3),
    st.floats(1.0, 3.0),
)
def test_the_bound_is_below_and_the_choice_above_the_optimum(groups, copies, slack):
    modes = [
        [
            Mode(seconds=0.5, joules=1.0 + k, items=(item(*pairs, copies=copies),))
            for k, pairs in enumerate(group)
        ]
        for group in groups
    ]
    fastest = solve(modes, 0.0).seconds
    found = solve(modes, slack * fastest)
    optimum = exhaustive(modes, slack * fastest)
    assert found.feasible
    assert found.seconds <= slack * fastest * (1.0 + 1e-9)
    assert found.bound_joules <= optimum * (1.0 + 1e-9)
    assert found.joules >= optimum * (1.0 - 1e-9)


def test_many_copies_close_the_gap():
    generator = np.random.default_rng(0)
    many = tuple(
        Item(
            seconds=1 + generator.random(50), joules=1 + generator.random(50), copies=80
        )
        for _ in range(2)
    )
    mode = Mode(seconds=10.0, joules=100.0, items=many)
    fastest = solve([[mode]], 0.0).seconds
    for slack in (1.0, 1.02, 1.1, 1.3):
        assert solve([[mode]], slack * fastest).gap <= 1e-3
