import math

import numpy as np
import pytest

from jaxlens.measure.disturbances import Counters, Disturbance, between, counters
from jaxlens.measure.estimators import (
    of_blocks,
    of_redrawn_windows,
    of_windows,
    redrawn,
    spread_of_windows,
)


def noisy_windows(seed, *, true=1.0, count=24, disturbed=0.6):
    """Windows of blocks: jitter of 0.5 %, and most windows slowed down by 5 to 60 %."""
    chance = np.random.default_rng(seed)
    windows = []
    for _ in range(count):
        slow = 1.0 + chance.uniform(0.05, 0.6) * (chance.random() < disturbed)
        jitter = 1.0 + chance.exponential(0.005, size=80)
        windows.append(true * slow * jitter)
    return windows


def test_the_estimate_finds_the_quiet_time_where_the_median_does_not():
    found, medians = [], []
    for seed in range(30):
        windows = noisy_windows(seed)
        found.append(of_windows([of_blocks(window) for window in windows]))
        medians.append(np.median(np.concatenate(windows)))
    assert found == pytest.approx([1.0] * 30, abs=0.01)
    assert np.median(medians) > 1.05


def test_one_lucky_window_moves_the_estimate_little():
    values = [1.0 + 0.001 * i for i in range(24)]
    assert of_windows([0.8, *values]) == pytest.approx(of_windows(values), abs=0.002)


def test_the_spread_covers_what_other_runs_find():
    values = [
        [of_blocks(window) for window in noisy_windows(seed, disturbed=0.8)]
        for seed in range(60)
    ]
    middle = np.median([of_windows(one) for one in values])
    inside = [
        abs(of_windows(one) / middle - 1.0) <= spread_of_windows(one) for one in values
    ]
    assert np.mean(inside) > 0.8
    assert spread_of_windows([1.0]) == math.inf
    assert spread_of_windows([2.0, 2.0, 2.0]) == 0.0


def test_draws_are_the_same_every_time():
    values = [3.0, 1.0, 2.0, 5.0]
    first, again = (of_redrawn_windows(values, redrawn(4)) for _ in range(2))
    assert (first == again).all()
    assert first.min() >= 1.0 and first.max() <= 5.0


def test_counters_are_read_where_the_system_has_them(tmp_path):
    (tmp_path / "stat").write_text("cpu  1 2 3 4 5 6 7 250 0 0\ncpu0 0 0 0 0 0 0 0 9\n")
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "cpu").write_text(
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull total=7\n"
    )
    for thread, waited in (("11", 400), ("12", 600)):
        folder = tmp_path / "self" / "task" / thread
        folder.mkdir(parents=True)
        (folder / "schedstat").write_text(f"123 {waited} 4\n")
    found = counters(tmp_path)
    assert found.stolen_seconds == pytest.approx(2.5)  # 250 ticks of 10 ms
    assert found.waiting_seconds == pytest.approx(1.5)
    assert found.delayed_seconds == pytest.approx(1e-6)
    assert counters(tmp_path / "nowhere") == Counters()


def test_stolen_time_and_others_that_wait_disturb_a_window():
    start = Counters(stolen_seconds=1.0, waiting_seconds=2.0, delayed_seconds=3.0)

    def after(stolen=0.0, waiting=0.0, delayed=0.0):
        end = Counters(
            stolen_seconds=1.0 + stolen,
            waiting_seconds=2.0 + waiting,
            delayed_seconds=3.0 + delayed,
        )
        return between(start, end, 0.1)

    assert not after().found
    assert not after(waiting=0.001, delayed=0.0001).found
    assert after(stolen=0.01).found
    assert after(waiting=0.05).found
    assert after(delayed=0.005).found
    assert between(Counters(), Counters(), 0.1) == Disturbance(span_seconds=0.1)
