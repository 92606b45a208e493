"""A few cases that stand for many: medoids in the space of the model's own gradients.

A case is worth measuring for what it says about the coefficients, that is by the gradient of
its predicted log-time in the logarithms of the coefficients. Cases with like gradients say
the same, so one of them, the medoid, is measured in place of all.

Source: E. Schubert and L. Lenssen, "Fast k-medoids Clustering in Rust and Python", JOSS 7(75),
2022; choice of a coreset in gradient space: B. Mirzasoleiman et al., ICML 2020 (CRAIG).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxlens.measure.cases import Case
from jaxlens.measure.refusals import Unavailable


def coreset(cases: Sequence[Case], features: np.ndarray, size: int) -> list[Case]:
    """Returns `size` medoids, heaviest first; weights are the sizes of their clusters.

    Every kind of operation gets medoids in proportion to the root of its number of cases, at
    least one where `size` allows.
    """
    if size >= len(cases):
        return list(cases)
    shares = _shares([one.kind for one in cases], size)
    chosen: list[Case] = []
    for kind, count in shares.items():
        positions = [i for i, one in enumerate(cases) if one.kind == kind]
        labels, medoids = _medoids(features[positions], count)
        chosen += [
            replace(cases[positions[m]], weight=float((labels == cluster).sum()))
            for cluster, m in enumerate(medoids)
        ]
    order = {one.name: position for position, one in enumerate(cases)}
    chosen.sort(key=lambda one: (-one.weight, order[one.name]))
    return _interleaved(chosen)


def _shares(kinds: Sequence[str], size: int) -> dict[str, int]:
    """Returns how many medoids each kind gets, adding up to `size` or the kinds' number."""
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    roots = {kind: count**0.5 for kind, count in counts.items()}
    shares = {kind: 1 for kind in counts}
    while sum(shares.values()) < size:
        open_kinds = [kind for kind in counts if shares[kind] < counts[kind]]
        neediest = max(open_kinds, key=lambda kind: roots[kind] / shares[kind])
        shares[neediest] += 1
    return shares


def _medoids(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        import kmedoids  # an extra
    except ImportError as error:
        raise Unavailable(
            "--suite quick: expected the package kmedoids, got none; "
            "pip install kmedoids."
        ) from error
    if count >= len(features):
        return np.arange(len(features)), np.arange(len(features))
    apart = np.linalg.norm(features[:, None, :] - features[None, :, :], axis=-1)
    found = kmedoids.fasterpam(apart, count, init="build", random_state=0)
    return np.asarray(found.labels), np.asarray(found.medoids)


def _interleaved(chosen: Sequence[Case]) -> list[Case]:
    """Returns kinds in turn, so that a run that ends early has some of each."""
    queues: dict[str, list[Case]] = {}
    for one in chosen:
        queues.setdefault(one.kind, []).append(one)
    result: list[Case] = []
    while any(queues.values()):
        result += [queue.pop(0) for queue in queues.values() if queue]
    return result
