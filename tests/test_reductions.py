import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.keeps import Groups, Keep, Objective, numbers, plan
from jaxlens.reductions import LOW_RANGE, no_counts, nothing, update
from jaxlens.reductions import count as counted

KEEP = Keep(objectives=(Objective("cost"),), top=2, groups=Groups("kind", 3))
PLAN = plan(KEEP, ("cost", "kind", "slack_size", "slack_time"))
NUMBERS = numbers(KEEP)


def block(cost, kind=0.0, size=1.0, time=1.0):
    """Returns columns; what is one number holds for all points."""
    columns = {"cost": cost, "kind": kind, "slack_size": size, "slack_time": time}
    shape = np.shape(cost)
    return {
        name: jnp.asarray(np.broadcast_to(np.float32(one), shape))
        for name, one in columns.items()
    }


def seen(*blocks, high=0):
    kept, tally = nothing(PLAN), no_counts(PLAN)
    for number, one in enumerate(blocks):
        lane = jnp.arange(one["cost"].size, dtype=jnp.int32)
        low = lane + 10 * number
        valid = lane < 1000
        kept = update(PLAN, NUMBERS, kept, one, valid, jnp.int32(high), low)
        tally = counted(PLAN, NUMBERS, tally, one, valid, low)
    return jax.device_get((kept, tally))


def test_of_equals_the_first_is_kept_across_blocks():
    kept, _ = seen(block([3.0, 1.0, 1.0]), block([1.0, 0.5, 3.0]), high=2)
    top = kept.top[0]
    assert top.value[:5].tolist() == [0.5, 1.0, 1.0, 1.0, 3.0]
    assert top.low[:6].tolist() == [11, 1, 2, 10, 0, 12]
    assert set(top.high[:6].tolist()) == {2}
    assert LOW_RANGE == 2**30


def test_the_best_of_groups_and_points_of_no_group():
    kinds = [0.0, 1.0, 1.0, 3.0, -1.0, 0.5]
    kept, _ = seen(block([4.0, 3.0, 3.0, 0.0, 0.0, 0.0], kinds), block([4.0, 2.0], 0.0))
    group = kept.group[0]
    assert group.value[:4].tolist() == [2.0, 3.0, np.inf, np.inf]
    assert group.low[:2].tolist() == [11, 1]


def test_limits_count_together_and_alone():
    given = block(
        [1.0, 1.0, 1.0, 1.0], size=[-1.0, -1.0, 1.0, 0.0], time=[-1, 1, -2, 0]
    )
    kept, tally = seen(given)
    assert tally.feasible == 1
    assert tally.missed.tolist() == [2, 2]
    assert tally.alone.tolist() == [1, 1]
    assert kept.top[0].low[0] == 3
    assert kept.nearest.low.tolist() == [0]  # misses both by one: the first of them
    assert kept.nearest.value.tolist() == [1.0]


def test_nan_is_counted_and_infinity_never_kept():
    kept, tally = seen(block([np.inf, 1.0, np.nan, np.nan]))
    assert tally.nan.tolist() == [2, 0, 0, 0]
    assert tally.first_nan == 2
    assert np.isfinite(kept.top[0].value).sum() == 1
