"""Branch and bound: relaxed in every branch at once, rounded where it can be best.

A branch is one combination of the enumerated variables, such as a layout. Branches are
rounded in the order of their relaxed optima, until those that are left promise no less than
what has been found. The bounds are local optima of the relaxed problem.
"""

import time
from dataclasses import replace
from itertools import product
from typing import Any, Protocol

import numpy as np

from jaxlens.optimize.relaxations import Relaxation
from jaxlens.optimize.rounding import Candidate, Rounding
from jaxlens.optimize.solvers import SMALL_EXCESS, Relaxed, joined, relax

WORTH = 1e-4  # relative: a branch that promises less than this is left alone
MOST_CORNERS = 3  # free variables whose corners are all looked at
PROMISING = 0.03  # scaled: branches this near the best are searched further
FEW = 3
MOST_CENTRES = 2  # relaxed optima of a branch that are rounded
RESCALINGS = 3
FINISHING_STEPS = 8  # quadratic ones, after a first-order descent


class Descent(Protocol):
    """A method that relaxes, and then anneals to whole values."""

    def relaxed(self, starts: np.ndarray, branches: np.ndarray) -> Any:
        """Returns `Relaxed` lanes, and the coordinates after annealing."""
        ...


class Search:
    """One search: every branch relaxed, the promising ones rounded.

    Relaxed by quadratic programming, or by `descent`; the points that it has annealed are
    candidates of the rounding.
    """

    def __init__(
        self, relaxation: Relaxation, starts: int, descent: Descent | None = None
    ) -> None:
        self.relaxation = relaxation
        self.descent = descent
        self.annealed: list[tuple[int, np.ndarray]] = []  # branch and coordinates
        self.starts = starts
        self.rounding = Rounding(relaxation)
        self.count = len(relaxation.branches)
        self.relaxed: Relaxed | None = None
        self.bests: list[Candidate] = []
        self.finished: set[int] = set()
        self.seconds = 0.0

    def run(self, rounded: int) -> Candidate:
        """Returns the best point, after rounding at least `rounded` branches."""
        started = time.perf_counter()
        best = self._run(rounded)
        elapsed = time.perf_counter() - started
        self.seconds = elapsed - self.relaxation.evaluator.compile_seconds
        return best

    def best_lane(self, branch: int) -> int | None:
        """Returns the lane with the best relaxed optimum of a branch."""
        return None if self.relaxed is None else self._ordered(branch)[0]

    def lane_objective(self, lane: int) -> float:
        """Returns the scaled objective of a lane, with the price of soft limits."""
        return self._lane_rank(lane)[1]

    def _run(self, rounded: int) -> Candidate:
        self.looks = self._look()
        self.relaxed, self.lane_branch = self._relax()
        self.bests = [self._known(branch) for branch in range(self.count)]
        self.bounds = [self._bound(branch) for branch in range(self.count)]
        for branch in sorted(range(self.count), key=lambda b: self.bounds[b]):
            bound = self.bounds[branch]
            best = min(self.bests, key=lambda c: c.rank)
            missed, objective = bound
            hopeless = (missed, objective + WORTH) >= best.rank[:2]
            if hopeless and len(self.finished) >= rounded:
                continue
            if missed > 0.0 and best.excess == 0.0 and len(self.finished) >= rounded:
                continue
            self._round(branch)
        return min(self.bests, key=lambda c: c.rank)

    def _known(self, branch: int) -> Candidate:
        found = self.rounding.best_known(branch)
        assert found is not None
        return found

    def _look(self) -> list[list[Candidate]]:
        """Corners and centre of every branch, exactly."""
        free = len(self.relaxation.free)
        rows = np.full((1, free), 0.5)
        if 0 < free <= MOST_CORNERS:
            corners = np.array(list(product((0.0, 1.0), repeat=free)))
            rows = np.concatenate([rows, corners])
        elif free:
            ends = [np.where(np.eye(free) > 0, end, 0.5) for end in (0.0, 1.0)]
            rows = np.concatenate([rows, *ends])
        every = np.concatenate([rows] * self.count)
        lanes = np.repeat(np.arange(self.count), len(rows))
        self.relaxation.calibrate(every, lanes)
        return self.rounding.evaluate_all(lanes, every)

    def _relax(self) -> tuple[Relaxed | None, np.ndarray]:
        """Every branch from its best corner, promising ones from further starts too."""
        free = len(self.relaxation.free)
        if not free:
            return None, np.arange(0)
        corners = [min(seen, key=lambda c: c.rank).coordinates for seen in self.looks]
        lanes = np.arange(self.count)
        self.lane_branch = lanes
        self.relaxed = self._relaxed(np.clip(corners, 0.02, 0.98), lanes)
        more = np.repeat(self._promising(), self.starts)
        starts = np.tile(_spread(self.starts, free), (len(more) // self.starts, 1))
        found = joined(self.relaxed, self._relaxed(starts, more))
        lanes = np.concatenate([lanes, more])
        for _ in range(RESCALINGS):
            if not self.relaxation.rescale(found.objective):
                break
            self.rounding.judge_again()
            again = self._relaxed(found.coordinates, lanes)
            found = replace(again, steps=found.steps + again.steps)
        return found, lanes

    def _promising(self) -> np.ndarray:
        """Branches that are near the best, or among the first few."""
        ranks = [self._lane_rank(branch) for branch in range(self.count)]
        order = sorted(range(self.count), key=lambda branch: ranks[branch])
        best = ranks[order[0]]
        near = [b for b in order if ranks[b] <= (best[0], best[1] + PROMISING)]
        return np.array(near if len(near) > FEW else order[:FEW])

    def _relaxed(self, starts: np.ndarray, lanes: np.ndarray) -> Relaxed:
        relaxation = self.relaxation
        low = np.zeros_like(starts)
        high, weights = low + 1.0, relaxation.weights
        if self.descent is None:
            return relax(relaxation.slopes, starts, lanes, low, high, weights)
        first, annealed = self.descent.relaxed(starts, lanes)
        self.annealed += zip(lanes.tolist(), annealed, strict=True)
        # Bounds and prices need more digits than first-order steps give.
        found = relax(
            relaxation.slopes,
            first.coordinates,
            lanes,
            low,
            high,
            weights,
            FINISHING_STEPS,
            first.multipliers,
        )
        return replace(found, steps=first.steps + found.steps)

    def _ordered(self, branch: int) -> list[int]:
        """Lanes of a branch, best first."""
        assert self.relaxed is not None
        own = np.flatnonzero(self.lane_branch == branch)
        return sorted(own.tolist(), key=self._lane_rank)

    def _lane_rank(self, lane: int) -> tuple[float, float]:
        assert self.relaxed is not None
        missed = float(self.relaxed.excess(self.relaxation.hard)[lane])
        objective = float(self.relaxed.objective[lane])
        soft = ~self.relaxation.hard
        beyond = np.maximum(-self.relaxed.slacks[lane, soft], 0.0)
        objective += float(beyond @ self.relaxation.weights[soft])
        if not np.isfinite(objective):
            return np.inf, np.inf
        return (0.0 if missed <= 10.0 * SMALL_EXCESS else missed), objective

    def _bound(self, branch: int) -> tuple[float, float]:
        if self.relaxed is None:
            return self.bests[branch].rank[:2]
        return min(
            self._lane_rank(self._ordered(branch)[0]), self.bests[branch].rank[:2]
        )

    def _round(self, branch: int) -> None:
        self.finished.add(branch)
        if self.relaxed is None:
            return
        lanes = self._distinct(self._ordered(branch))
        if not self.rounding.discrete:
            centres = self.relaxed.coordinates[lanes]
            self._keep(self.rounding.solved(branch, centres))
            return
        bound, prices = self.bounds[branch], self.relaxed.multipliers
        for lane in lanes:
            missed, promised = self._lane_rank(lane)
            known = self.bests[branch].rank[:2]
            # A relaxed optimum bounds what lies around it.
            if lane == lanes[0] or (missed, promised + WORTH) < known:
                centre = self.relaxed.coordinates[[lane]]
                found = self.rounding.rounded(branch, centre, prices[[lane]], bound)
                self._keep(found)
        self._keep(self._annealed(branch, self.bests[branch], prices[lanes[:1]]))

    def _keep(self, found: Candidate) -> None:
        best = self.bests[found.branch]
        self.bests[found.branch] = min(found, best, key=lambda c: c.rank)

    def _annealed(self, branch: int, found: Candidate, prices: np.ndarray) -> Candidate:
        """The best point around what annealing has found, if it is better than `found`."""
        own = [row for of, row in self.annealed if of == branch]
        known = self.rounding.evaluate(branch, own)
        best = min([found, *known], key=lambda c: c.rank)
        if not best.rank < found.rank:
            return found
        centre = best.coordinates[None]
        return self.rounding.rounded(branch, centre, prices, self.bounds[branch])

    def _distinct(self, lanes: list[int]) -> list[int]:
        """Lanes that have ended elsewhere than better ones, within 1 %; few at most."""
        assert self.relaxed is not None
        chosen: list[int] = []
        for lane in lanes:
            at = self.relaxed.coordinates[lane]
            near = [
                other
                for other in chosen
                if np.abs(at - self.relaxed.coordinates[other]).max() < 0.01
            ]
            missed, objective = self._lane_rank(lane)
            first = self._lane_rank(lanes[0])
            hopeless = (missed, objective) > (first[0], first[1] + 0.02)
            if not chosen or not (near or hopeless):
                chosen.append(lane)
        return chosen[:MOST_CENTRES]


def _spread(count: int, free: int) -> list[np.ndarray]:
    """Points that fill a box evenly, the first in its middle.

    Source: M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018,
    https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/.
    """
    ratio = 2.0
    for _ in range(30):  # x^(n+1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (free + 1.0))
    steps = ratio ** -np.arange(1.0, free + 1.0)
    return [(0.5 + position * steps) % 1.0 for position in range(count)]
