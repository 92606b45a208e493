"""From a relaxed optimum to whole values, at least as good as rounding it.

1. Each discrete variable is fixed at values around the optimum, one after the other, and the
   others are relaxed again: along a limit, a coarser batch wants another clock.
2. All roundings up and down of all these optima are evaluated exactly, with the nearest one.
3. The best walks to a local optimum over steps of one or two in one or two variables.

Points are compared by the limits they miss first, so feasibility is restored on the way
where it can be. Real variables are solved again once the others are whole.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from jaxtyping import Float, Int

from jaxlens.optimize.relaxations import Relaxation
from jaxlens.optimize.solvers import excess, relax

WINDOW = (-2, -1, 0, 1, 2, 3)  # values around a relaxed one, from the one below
DIVE_STEPS = 6
MOST_PRODUCT = 6  # discrete variables whose roundings are all tried
ROUNDS = 60
EQUAL_DIGITS = 9  # of the scaled objective
MET = 1e-9  # a limit that is missed by less counts as met
MISSED = 1e-3  # scaled excess of a relaxed optimum that rounding will not cure
CLOSE = 1e-4  # scaled: near enough to a relaxed optimum
MARGIN = 3e-6  # real variables are solved with limits tighter by this
PAIRS = ((1, 1), (1, -1), (1, 2), (1, -2), (2, 1), (2, -1))
REFINED = 4  # best points whose real variables are solved again

Coordinates = Float[np.ndarray, " free"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One exact point: where it is and how it compares."""

    branch: int
    coordinates: Coordinates
    found: Float[np.ndarray, " quantity"]
    objective: float  # scaled, with the price of soft limits
    excess: float  # of the worst hard limit, scaled; 0 within limits
    gpus: float  # decides between equals

    @property
    def rank(self) -> tuple[float, float, float]:
        """Less is better: first what is missed, then the objective."""
        return self.excess, round(self.objective, EQUAL_DIGITS), self.gpus


class Rounding:
    """Exact points of one relaxation, none evaluated twice."""

    def __init__(self, relaxation: Relaxation) -> None:
        self.relaxation = relaxation
        self.grids = [
            None if variable.values is None else variable.to_unit(variable.values)
            for variable in (relaxation.variables[name] for name in relaxation.free)
        ]
        self.discrete = [i for i, grid in enumerate(self.grids) if grid is not None]
        self.real = [i for i, grid in enumerate(self.grids) if grid is None]
        self._known: dict[tuple[int, bytes], Candidate] = {}

    def evaluate(self, branch: int, rows: Iterable[Coordinates]) -> list[Candidate]:
        """Returns the exact points at coordinates that are snapped to the nearest values."""
        snapped = [self.nearest(row) for row in rows]
        keys = [(branch, row.tobytes()) for row in snapped]
        new = {
            key: row
            for key, row in zip(keys, snapped, strict=True)
            if key not in self._known
        }
        if new:
            coordinates = np.array(list(new.values()))
            lanes = np.full(len(new), branch)
            found = self.relaxation.quantities(coordinates, lanes)
            for key, candidate in zip(
                new, self._candidates(branch, coordinates, found), strict=True
            ):
                self._known[key] = candidate
        return [self._known[key] for key in dict.fromkeys(keys)]

    def evaluate_all(
        self, lanes: Int[np.ndarray, " lane"], rows: Float[np.ndarray, "lane free"]
    ) -> list[list[Candidate]]:
        """Returns the exact points near coordinates, by branch, in one evaluation."""
        snapped = np.array([self.nearest(row) for row in rows])
        found = self.relaxation.quantities(snapped, lanes)
        by_branch: list[list[Candidate]] = []
        for branch in range(int(lanes.max()) + 1):
            own = lanes == branch
            candidates = self._candidates(branch, snapped[own], found[own])
            for candidate in candidates:
                key = (branch, candidate.coordinates.tobytes())
                self._known[key] = candidate
            by_branch.append(candidates)
        return by_branch

    def judge_again(self) -> None:
        """Compares all known points anew, after the objective has changed its scale."""
        for (branch, key), candidate in list(self._known.items()):
            rows, found = candidate.coordinates[None], candidate.found[None]
            self._known[branch, key] = self._candidates(branch, rows, found)[0]

    def best_known(self, branch: int) -> Candidate | None:
        """Returns the best point of a branch so far."""
        own = [c for (of, _), c in self._known.items() if of == branch]
        return min(own, key=lambda c: c.rank, default=None)

    def _candidates(self, branch, coordinates, found) -> list[Candidate]:
        relaxation = self.relaxation
        objective, slacks = relaxation.judge(found)
        soft = ~relaxation.hard
        beyond = np.maximum(-slacks[:, soft], 0.0)
        objective = objective + beyond @ relaxation.weights[soft]
        missed = excess(slacks, relaxation.hard)
        missed = np.where(missed <= MET, 0.0, missed)
        known = relaxation.evaluator.quantities
        column = known.index("gpus") if "gpus" in known else None
        undefined = ~np.isfinite(objective)
        return [
            Candidate(
                branch=branch,
                coordinates=row,
                found=quantities,
                objective=math.inf if bad else float(value),
                excess=math.inf if bad else float(by),
                gpus=0.0 if column is None else float(quantities[column]),
            )
            for row, quantities, value, by, bad in zip(
                coordinates, found, objective, missed, undefined, strict=True
            )
        ]

    def nearest(self, row: Coordinates) -> Coordinates:
        """Returns coordinates with every discrete one at its nearest value."""
        found = np.clip(np.array(row, float), 0.0, 1.0)
        for axis in self.discrete:
            grid = self._grid(axis)
            below = self._below(axis, found[axis])
            above = min(below + 1, grid.size - 1)
            nearer = found[axis] - grid[below] <= grid[above] - found[axis]
            found[axis] = grid[below] if nearer else grid[above]
        return found

    def rounded(
        self,
        branch: int,
        centres: Float[np.ndarray, "centre free"],
        multipliers: Float[np.ndarray, "centre limit"],
        bound: tuple[float, float],
    ) -> Candidate:
        """Returns the best point that is found around relaxed optima of one branch.

        Args:
            branch: The branch.
            centres: Relaxed optima.
            multipliers: Theirs.
            bound: Excess and objective that the best of them promises. Nothing is sought
                once it is reached, or where limits are missed without rounding already.
        """
        rows = [row for centre in centres for row in self._corners(centre)]
        self.evaluate(branch, rows)
        hopeless = bound[0] > MISSED or self._reached(branch, bound[1])
        if len(self.grids) > 1 and not hopeless:
            for centre, prices in zip(centres, multipliers, strict=True):
                self._dive(branch, centre, prices)
        best = self.best_known(branch)
        assert best is not None
        best = self._polish(best)
        return self._refine(branch, best) if self.real and self.discrete else best

    def _reached(self, branch: int, bound: float) -> bool:
        best = self.best_known(branch)
        return best is not None and best.rank[:2] <= (0.0, bound + CLOSE)

    def solved(
        self, branch: int, centres: Float[np.ndarray, "centre free"]
    ) -> Candidate:
        """Returns the best point where all variables are real: solved within a margin."""
        count = len(centres)
        found = relax(
            self._tighter,
            centres,
            np.full(count, branch),
            np.zeros_like(centres),
            np.ones_like(centres),
            self.relaxation.weights,
        )
        return min(
            self.evaluate(branch, [*centres, *found.coordinates]), key=lambda c: c.rank
        )

    def _grid(self, axis: int) -> Float[np.ndarray, " value"]:
        grid = self.grids[axis]
        assert grid is not None
        return grid

    def _below(self, axis: int, coordinate: float) -> int:
        grid = self._grid(axis)
        place = int(np.searchsorted(grid, coordinate + 1e-12, side="right")) - 1
        return min(max(place, 0), grid.size - 1)

    def _corners(self, centre: Coordinates) -> list[Coordinates]:
        """The nearest point, and all roundings up and down."""
        rows = [self.nearest(centre)]
        both = []
        for axis in self.discrete:
            grid, below = self._grid(axis), self._below(axis, centre[axis])
            both.append(sorted({below, min(below + 1, grid.size - 1)}))
        if len(self.discrete) <= MOST_PRODUCT:
            choices: Iterable[tuple[int, ...]] = product(*both)
        else:  # one at a time
            middle = [round(float(np.mean(pair))) for pair in both]
            choices = [
                (*middle[:i], digit, *middle[i + 1 :])
                for i, pair in enumerate(both)
                for digit in pair
            ]
        for digits in choices:
            row = rows[0].copy()
            for axis, digit in zip(self.discrete, digits, strict=True):
                row[axis] = self._grid(axis)[digit]
            rows.append(row)
        return rows

    def _dive(self, branch: int, centre: Coordinates, prices) -> None:
        """Fixes one variable at values around the centre, relaxes the others again."""
        starts, low, high = [], [], []
        for axis in self.discrete:
            grid, below = self._grid(axis), self._below(axis, centre[axis])
            places = {min(max(below + move, 0), grid.size - 1) for move in WINDOW}
            for place in sorted(places):
                start, least, most = centre.copy(), centre * 0.0, centre * 0.0 + 1.0
                start[axis] = least[axis] = most[axis] = grid[place]
                starts.append(start)
                low.append(least)
                high.append(most)
        count = len(starts)
        if not count:
            return
        found = relax(
            self.relaxation.slopes,
            np.array(starts),
            np.full(count, branch),
            np.array(low),
            np.array(high),
            self.relaxation.weights,
            DIVE_STEPS,
            np.repeat(prices[None], count, axis=0),
        )
        # A relaxed optimum bounds its roundings.
        best = self.best_known(branch)
        rank = (math.inf, math.inf) if best is None else best.rank[:2]
        missed = found.excess(self.relaxation.hard)
        missed = np.where(missed <= MISSED, 0.0, missed)
        rows = [
            row
            for centre, by, promised in zip(
                found.coordinates, missed, found.objective, strict=True
            )
            if (by, promised) < rank
            for row in self._corners(centre)
        ]
        self.evaluate(branch, rows)

    def _polish(self, best: Candidate) -> Candidate:
        for _ in range(ROUNDS):
            found = self.evaluate(best.branch, self._neighbours(best.coordinates))
            better = min(found, key=lambda c: c.rank, default=best)
            if not better.rank < best.rank:
                break
            best = better
        return best

    def _neighbours(self, row: Coordinates) -> list[Coordinates]:
        """One or two steps in one variable, or in two at once."""
        moves: list[dict[int, int]] = []
        for axis in self.discrete:
            moves += [{axis: by} for by in (-2, -1, 1, 2)]
        for first, second in combinations(self.discrete, 2):
            for one, other in PAIRS:
                moves += [{first: s * one, second: s * other} for s in (1, -1)]
        found = []
        for move in moves:
            moved = row.copy()
            inside = True
            for axis, by in move.items():
                place = self._below(axis, row[axis]) + by
                inside &= 0 <= place < self._grid(axis).size
                moved[axis] = self._grid(axis)[place] if inside else 0.0
            if inside:
                found.append(moved)
        return found

    def _refine(self, branch: int, best: Candidate) -> Candidate:
        """Solves the real variables of the best points again, the others fixed."""
        own = sorted(
            (c for (of, _), c in self._known.items() if of == branch),
            key=lambda c: c.rank,
        )
        chosen: dict[bytes, Candidate] = {}
        for candidate in [best, *own]:
            key = candidate.coordinates[self.discrete].tobytes()
            if len(chosen) < REFINED:
                chosen.setdefault(key, candidate)
        starts = np.array([c.coordinates for c in chosen.values()])
        low, high = starts.copy(), starts.copy()
        low[:, self.real], high[:, self.real] = 0.0, 1.0
        found = relax(
            self._tighter,
            starts,
            np.full(len(starts), branch),
            low,
            high,
            self.relaxation.weights,
        )
        refined = self.evaluate(branch, found.coordinates)
        return min([best, *refined], key=lambda c: c.rank)

    def _tighter(self, coordinates, lanes, moves):
        at = self.relaxation.slopes(coordinates, lanes, moves)
        at.slacks[:, self.relaxation.hard] -= MARGIN
        return at
