"""The best of many points: Pareto fronts, top-k, best of each group. All are minimised.

Points with a NaN are never among the best. Of equal points the first is taken.
"""

import numpy as np
from jaxtyping import Float, Int, Shaped

Indices = Int[np.ndarray, " chosen"]


def pareto_front(objectives: Float[np.ndarray, "point objective"]) -> Indices:
    """Returns the points that no other point beats, ordered by the first objective.

    A point is beaten by one that is nowhere worse and somewhere better.
    """
    if objectives.ndim != 2 or not 2 <= objectives.shape[1] <= 4:
        raise ValueError(
            f"front: expected 2 to 4 objectives per point, got {objectives.shape}."
        )
    usable = np.flatnonzero(~np.isnan(objectives).any(axis=1))
    values = objectives[usable]
    # A point is only beaten by ones before it in this order.
    order = np.lexsort(values.T[::-1])
    survivors = _two(values[order]) if values.shape[1] == 2 else _many(values[order])
    return usable[order[survivors]]


def top_k(values: Float[np.ndarray, " point"], k: int) -> Indices:
    """Returns the `k` smallest values, smallest first; fewer if there are fewer."""
    usable = np.flatnonzero(~np.isnan(values))
    if k < usable.size:
        limit = np.partition(values[usable], k - 1)[k - 1] if k > 0 else -np.inf
        usable = usable[values[usable] <= limit]
    return usable[np.argsort(values[usable], kind="stable")][: max(k, 0)]


def best_of_each(
    values: Float[np.ndarray, " point"], groups: Shaped[np.ndarray, "point key"]
) -> Indices:
    """Returns the point of smallest value in each group, smallest first.

    A group is a row of `groups` that several points share.
    """
    order = top_k(values, values.size)
    if order.size == 0:
        return order
    _, first = np.unique(groups[order], axis=0, return_index=True)
    return order[np.sort(first)]


def _two(values: Float[np.ndarray, "point 2"]) -> Indices:
    """Sorted by the first objective: those lower in the second than all before."""
    lowest = np.minimum.accumulate(values[:, 1])
    earlier = np.concatenate([[np.inf], lowest[:-1]])
    better = values[:, 1] < earlier
    better[:1] = True
    return np.flatnonzero(better)


def _many(values: Float[np.ndarray, "point objective"]) -> Indices:
    """Takes the first point left, drops what it beats or equals, and so on."""
    left = np.arange(values.shape[0])
    chosen = []
    while left.size:
        head, left = left[0], left[1:]
        chosen.append(head)
        left = left[(values[left] < values[head]).any(axis=1)]
    return np.array(chosen, int)
