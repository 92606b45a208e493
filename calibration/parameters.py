"""Which coefficients a fit may move, and which rows share them.

A coefficient is fitted as a standard score u of its prior: value = prior exp(spread u), or on
the logit scale where it is a share of one. Each row sees

    u = z_chip + z_stack + z_pair,

a sum of scores of the owners that it belongs to: its chip, its stack, and the pair of both.
All scores have a standard normal prior, and each owner its own weight, so that values are
pooled across chips and stacks as far as the data agree (a hierarchical fit).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.hardware import Chip, Stack
from jaxlens.profiles import load_profile_card
from jaxlens.pytrees import pytree, static

Scores = Float[Array, " score"]
RowScores = Float[Array, "row coefficient"]

SHARES = frozenset(
    {
        "gemm_byte_efficiency",
        "attention_byte_efficiency",
        "experts_byte_efficiency",
        "scan_byte_efficiency",
        "elementwise_byte_efficiency",
        "gemm_flop_efficiency",
        "attention_flop_efficiency",
        "experts_flop_efficiency",
        "collective_byte_efficiency",
        "softness",
        "host_exposed",
        "gap_power",
        "padding_power",
        "experts_wait",
        "cap_share",
        "l2_saving",
        "launch_clocked",
    }
)

# Energies of all formats move with that of bf16: what differs between chips is shared by
# them, and each keeps its own deviation.
FOLLOWERS = {
    "chip.bf16_j_per_flop": (
        "chip.fp32_j_per_flop",
        "chip.tf32_j_per_flop",
        "chip.fp8_j_per_flop",
        "chip.fp4_j_per_flop",
    )
}


@dataclass(frozen=True)
class Freedom:
    """How far a coefficient may move, as multiples of its prior spread, by owner."""

    chip: float = 0.0
    stack: float = 0.0
    pair: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number that a fit moves."""

    coefficient: str  # "chip.busy_watts" or "stack.kernel_seconds"
    owner: str  # "h100-sxm", "vllm-0.11" or "vllm-0.11 on h100-sxm"
    weight: float  # of the score in u


@pytree
class Parameters:
    """The scores of a fit, and the priors of every row."""

    scores: tuple[Score, ...] = static()
    coefficients: tuple[str, ...] = static()
    owners: Array  # score x group: weight of the score in the u of the group's rows
    groups: Int[Array, " row"]  # rows of one group have the same owners
    selector: Array  # score x coefficient: which coefficients it moves
    prior: RowScores
    spread: RowScores  # of the logarithm
    fixed: dict[str, Array]  # all coefficients of all rows, at their priors

    @property
    def membership(self) -> Array:
        """Weight of each score in the u of each row, score x row."""
        return self.owners[:, self.groups]


def parameters(
    gpus: Sequence[str], stacks: Sequence[str], freedom: Mapping[str, Freedom]
) -> Parameters:
    """Returns the parameters of rows on `gpus` under `stacks`, at their package priors."""
    pairs = list(zip(map(str, gpus), map(str, stacks), strict=True))
    cards = {
        pair: load_profile_card(*pair, shipped=False) for pair in dict.fromkeys(pairs)
    }
    names = tuple(freedom)
    fixed: Any = {
        name: np.array([cards[pair].coefficients[name].value for pair in pairs])
        for name in next(iter(cards.values())).coefficients
    }
    spread: Any = np.array(
        [
            [cards[pair].coefficients[name].spread or 0.0 for name in names]
            for pair in pairs
        ]
    )
    known = list(cards)
    scores, owners = _scores(known, freedom)
    groups: Any = np.array([known.index(pair) for pair in pairs])
    prior: Any = np.stack([fixed[name] for name in names], axis=1)
    return Parameters(
        scores=scores,
        coefficients=names,
        owners=owners,
        groups=groups,
        selector=_selector(scores, names, spread.mean(axis=0)),
        prior=prior,
        spread=spread,
        fixed=fixed,
    )


def _scores(
    pairs: list[tuple[str, str]], freedom: Mapping[str, Freedom]
) -> tuple[tuple[Score, ...], Any]:
    """The scores, and their weights in the u of each pair's rows."""
    owners = {
        "chip": [gpu for gpu, _ in pairs],
        "stack": [stack for _, stack in pairs],
        "pair": [f"{stack} on {gpu}" for gpu, stack in pairs],
    }
    scores, rows = [], []
    for coefficient, free in freedom.items():
        for kind, labels in owners.items():
            weight = getattr(free, kind)
            for owner in dict.fromkeys(labels) if weight > 0.0 else ():
                scores.append(
                    Score(coefficient=coefficient, owner=owner, weight=weight)
                )
                rows.append([weight * (label == owner) for label in labels])
    return tuple(scores), np.array(rows, float)


def _selector(
    scores: tuple[Score, ...], names: tuple[str, ...], spread: np.ndarray
) -> Any:
    chosen = np.zeros((len(scores), len(names)))
    for row, score in enumerate(scores):
        own = names.index(score.coefficient)
        chosen[row, own] = 1.0
        for follower in FOLLOWERS.get(score.coefficient, ()):
            if follower in names:
                column = names.index(follower)
                chosen[row, column] = spread[own] / spread[column]
    return chosen


def row_scores(parameters: Parameters, scores: Scores) -> RowScores:
    """Returns u of every row and coefficient: linear in the scores."""
    moved = parameters.owners * scores[:, None]
    return (moved.T @ parameters.selector)[parameters.groups]


def coefficients(parameters: Parameters, u: RowScores) -> tuple[Chip, Stack]:
    """Returns chip and stack of every row, leaves of one number per row."""
    values = dict(parameters.fixed)
    for position, name in enumerate(parameters.coefficients):
        prior = parameters.prior[:, position]
        spread = parameters.spread[:, position]
        values[name] = moved(name, prior, spread * u[:, position])
    chip = Chip(**{f.name: values[f"chip.{f.name}"] for f in fields(Chip)})
    stack = Stack(**{f.name: values[f"stack.{f.name}"] for f in fields(Stack)})
    return chip, stack


def moved(name: str, prior: Array, shift: Array) -> Array:
    """Returns a coefficient `shift` away from its prior, on its own scale.

    Shares move on the logit scale, with the same slope at the prior as on the log scale.
    """
    if name.partition(".")[2] not in SHARES:
        return prior * jnp.exp(shift)
    odds = prior / (1.0 - prior) * jnp.exp(shift / (1.0 - prior))
    return odds / (1.0 + odds)
