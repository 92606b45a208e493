"""What every collective of one step takes under each split of its own, clock by clock.

At a locked clock below the power cap the energy of a step is a sum over its operations: static
and busy power go with time, and time adds up. So each staged product is priced alone, under
every (stages, SMs), and what nobody splits is a constant of the clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens import serving, steps
from jaxlens.optimize.staging import (
    QUICK,
    Question,
    Split,
    deployment,
    load,
)
from jaxlens.power import static_watts, switching
from jaxlens.pytrees import pytree
from jaxlens.rooflines import Machine
from jaxlens.steps import Item, Line, Staged

Scalar = Float[Array, ""] | float


@pytree
class Costs:
    """Seconds and joules of one GPU: of the rest of a step, and by kind and option."""

    rest_seconds: Scalar
    rest_joules: Scalar
    seconds: tuple[Scalar, ...]  # of one layer, for each kind
    joules: tuple[Scalar, ...]
    host_seconds: Scalar
    host_exposed: Scalar
    waiting_watts: Scalar  # while a GPU waits for the host


@dataclass(frozen=True, kw_only=True, eq=False)
class OpTable:
    """Prices of all options of one phase at many clocks, per GPU."""

    kinds: tuple[str, ...]
    copies: tuple[int, ...]  # layers of each kind
    gpus: int
    clock_hz: Float[np.ndarray, " clock"]
    stages: Float[np.ndarray, " option"]
    communication_sms: Float[np.ndarray, " option"]
    rest_seconds: Float[np.ndarray, " clock"]
    rest_joules: Float[np.ndarray, " clock"]
    seconds: Float[np.ndarray, "clock kind option"]
    joules: Float[np.ndarray, "clock kind option"]
    host_seconds: float
    host_exposed: float
    waiting_watts: Float[np.ndarray, " clock"]

    @property
    def evaluations(self) -> int:
        """Splits that were priced."""
        return self.seconds.size


def op_table(
    asked: Question,
    tensor_parallel: int,
    batch: int,
    clock_hz: Sequence[float],
    stages: Sequence[int],
    communication_sms: Sequence[int],
) -> OpTable:
    """Returns the table of one phase under one layout.

    Options are all pairs of stages and SMs; one stage comes once, with the most SMs.
    """
    kinds = staged_kinds(asked, tensor_parallel, batch)
    if not kinds:
        raise ValueError(
            "overlap: expected a product with a collective after it, got none; "
            "split the model over more GPUs."
        )
    rows = asked.tokens * batch if asked.phase == "prefill" else batch
    most = communication_sms[-1]
    options = np.array(
        [
            (s, n)
            for s in stages
            for n in communication_sms
            if s <= rows and (s > 1 or n == most)
        ],
        float,
    )
    with jax.enable_x64(True):
        traced = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), asked)
        found = jax.device_get(
            _compiled()(
                traced,
                float(tensor_parallel),
                float(batch),
                jnp.asarray(clock_hz, float),
                jnp.asarray(options[:, 0]),
                jnp.asarray(options[:, 1]),
            )
        )
    return OpTable(
        kinds=tuple(item.name for item in kinds),
        copies=tuple(round(float(item.layers)) for item in kinds),
        gpus=tensor_parallel,
        clock_hz=np.asarray(clock_hz, float),
        stages=options[:, 0],
        communication_sms=options[:, 1],
        rest_seconds=found.rest_seconds,
        rest_joules=found.rest_joules,
        seconds=np.stack(found.seconds, axis=1),
        joules=np.stack(found.joules, axis=1),
        host_seconds=float(found.host_seconds[0]),
        host_exposed=float(found.host_exposed[0]),
        waiting_watts=found.waiting_watts,
    )


def staged_kinds(asked: Question, tensor_parallel: int, batch: int) -> list[Item]:
    """Returns the staged products of a step, one for each kind of layer that has it."""
    layout = Split(
        tensor_parallel=float(tensor_parallel),
        batch=float(batch),
        stages=1.0,
        communication_sms=1.0,
    )
    return [item for item in _items(asked, layout) if isinstance(item.asks, Staged)]


def waiting_seconds(
    seconds: np.ndarray | float, table: OpTable
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the host adds to a step of GPU `seconds`, and the slope of that.

    max_w(T, h) - T: convex in T and falling.
    """
    gpu, host, softness = np.asarray(seconds), table.host_seconds, table.host_exposed
    root = np.sqrt((gpu - host) ** 2 + 4.0 * softness * gpu * host)
    longest = 0.5 * (gpu + host + root)
    slope = 0.5 * (1.0 + (gpu - host + 2.0 * softness * host) / np.maximum(root, 1e-30))
    return longest - gpu, slope - 1.0


def _items(asked: Question, layout: Split) -> list[Item]:
    carried = load(asked.phase, layout.batch, asked.tokens)
    return steps.items(asked.model, deployment(asked, layout), carried, (asked.phase,))


@cache
def _compiled() -> Any:
    many = jax.vmap(_costs, (None, None, None, 0, None, None))
    return jax.jit(many, compiler_options=QUICK)


def _costs(
    asked: Question,
    degree: Array,
    batch: Array,
    clock: Array,
    stages: Array,
    sms: Array,
) -> Costs:
    chip, stack = asked.profile.chip, asked.profile.stack
    layout = Split(
        tensor_parallel=degree, batch=batch, stages=1.0, communication_sms=1.0
    )
    share = clock / chip.boost_hz
    machine = Machine(chip=chip, stack=stack, clock_share=share, sm_share=1.0)
    factor, static = switching(clock, chip), static_watts(clock, chip)
    busy = chip.busy_watts * factor * share

    def joules(line: Line) -> Scalar:
        need = steps.draw(line, stack.gap_power)
        switched = need.flop_joules * factor + need.memory_joules + need.link_joules
        return static * need.seconds + busy * need.active_seconds + switched

    def option(asks: Staged, count: Array, given: Array) -> tuple[Scalar, Scalar]:
        line = steps.line(replace(asks, stages=count), machine, given)
        return line.seconds, joules(line)

    items = _items(asked, layout)
    staged = [item.asks for item in items if isinstance(item.asks, Staged)]
    others = [item for item in items if not isinstance(item.asks, Staged)]
    # Collectives that nothing overlaps take all the SMs they can: they are idle anyway.
    rest = steps.total(steps.lines(others, machine, jnp.max(sms)).values())
    priced = [
        jax.vmap(lambda s, n, own=own: option(own, s, n))(stages, sms) for own in staged
    ]
    carried = load(asked.phase, batch, asked.tokens)
    chosen = deployment(asked, layout)
    return Costs(
        rest_seconds=rest.seconds,
        rest_joules=joules(rest),
        seconds=tuple(t for t, _ in priced),
        joules=tuple(e for _, e in priced),
        host_seconds=serving.host_seconds(stack, chosen, carried),
        host_exposed=stack.host_exposed,
        waiting_watts=static + stack.gap_power * busy,
    )
