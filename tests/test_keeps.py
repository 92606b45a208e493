import json

import pytest

from jaxlens.keeps import (
    Groups,
    Histogram,
    Keep,
    Objective,
    as_mapping,
    from_mapping,
    plan,
)
from tests.streamed import KEEP

NAMES = ("cost", "rate", "wait", "kind", "slack_load", "slack_rate")


def test_a_keep_survives_a_file():
    assert from_mapping(json.loads(json.dumps(as_mapping(KEEP)))) == KEEP
    assert from_mapping(json.loads(json.dumps(as_mapping(Keep())))) == Keep()


def test_a_plan_reads_every_column_once_and_knows_the_limits():
    found = plan(KEEP, NAMES)
    assert found.columns == ("cost", "rate", "wait", "kind")
    assert found.reasons == ("load", "rate")
    assert found.required == (True, False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective("cost", 2.0), "sign of 1 or -1"),
        (lambda: Histogram("cost", 0.0, 1.0), "0 < low < high"),
        (lambda: Histogram("cost", 1.0, 2.0, 0), "1 to 65536 bins"),
        (lambda: Groups("kind", 0), "1 to 65536 groups"),
        (lambda: Keep(top=0), "top: expected 1 to 4096"),
        (lambda: Keep(front=(Objective("cost"),)), "2 to 4 objectives, got 1"),
        (lambda: Keep(front_capacity=1), "front capacity"),
        (lambda: Keep(front_epsilon=2.0), "front epsilon"),
        (lambda: Keep(objectives=(Objective("a"), Objective("a"))), "column once"),
        (lambda: Keep(groups=Groups("kind", 3)), "an objective to be best by"),
    ],
)
def test_what_cannot_be_kept_says_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()
