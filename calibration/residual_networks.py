"""A small, bounded correction of roofline efficiencies, learned jointly with the physics.

    efficiency' = efficiency exp(b tanh(f(x))),    f: x -> 8 tanh units -> 2,

with x the logarithms of a product's shape and of its FLOPs per byte, and its role. The two
outputs correct the FLOP and the byte efficiency. A correction changes times alone: FLOPs
and bytes cost the same energy at any speed. b = 0, or weights of zero, is the physics.

    minimise  sum_i w_i rho(r_i(z, v) / s) + |z|^2 / 2 + |v / sigma|^2 / 2

over scores z and network weights v, by Adam from the optimum of the physics. Nothing that
predicts imports this module: it needs flax.

Measured: ML.ENERGY leaderboard v3 (2025), one architecture left out at a time. Only the latency
on H100 gains by more than two standard errors (7.7 to 6.8 %); its energy, and both on B200,
do not. A correction takes four logarithms and some 180 multiplications for every operation,
several times what the operation's price does, and every chip of a sweep would pay for it. So
predictions leave it out.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from jaxtyping import Array, Float

from jaxlens import rooflines
from jaxlens.calibration import fits, stacked_steps
from jaxlens.calibration.calibrating import QUICK_COMPILE, Evidence, Problem
from jaxlens.calibration.parameters import coefficients, row_scores
from jaxlens.calibration.serving_rows import ServingRows
from jaxlens.calibration.stacked_steps import REPEATS, ROLES, StackedStep
from jaxlens.hardware import Chip, Stack
from jaxlens.rooflines import KernelCost, Limits, Machine
from jaxlens.serving import host_seconds, machine, settle
from jaxlens.steps import Line

Features = Float[Array, "row item feature"]
Corrections = Float[Array, "row item efficiency"]

# Rows, columns, depth, FLOP/byte: logarithms around which features are centred, and their
# spread. Fixed, so that no fold sees the others through its features.
CENTRES = (4.0, 8.0, 8.0, 3.0)
SPREADS = (3.0, 3.0, 3.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Size, bound and training of a correction."""

    units: int = 8
    bound: float = 0.15  # of the logarithm of a correction
    deviation: float = 0.3  # sigma: prior deviation of a weight
    steps: int = 150
    learning_rate: float = 0.01
    seed: int = 0


class ResidualNetwork(linen.Module):
    """Two unbounded logits of each operation; zero before training."""

    units: int

    @linen.compact
    def __call__(self, features: Features) -> Array:
        """Returns logits of the FLOP and of the byte efficiency."""
        kind = jnp.result_type(float)
        hidden = jnp.tanh(linen.Dense(self.units, param_dtype=kind)(features))
        silent = linen.initializers.zeros_init()
        return linen.Dense(2, param_dtype=kind, kernel_init=silent)(hidden)


def features(step: StackedStep) -> Features:
    """Returns log(1 + size) of every operation, centred, and its role as one-hot."""
    work = step.work
    moved = work.hbm_bytes + work.kv_bytes
    sizes = (work.rows, work.columns, work.depth, work.flop / (moved + 1.0))
    scaled = [
        (jnp.log1p(jnp.asarray(size)) - centre) / spread
        for size, centre, spread in zip(sizes, CENTRES, SPREADS, strict=True)
    ]
    return jnp.concatenate([jnp.stack(scaled, axis=-1), step.roles], axis=-1)


def initial(options: NetworkOptions) -> Any:
    """Returns weights with which every correction is exactly one."""
    blank = jnp.zeros((1, 1, len(CENTRES) + len(ROLES)))
    key = jax.random.PRNGKey(options.seed)
    return ResidualNetwork(units=options.units).init(key, blank)


def corrections(
    options: NetworkOptions, weights: Any, asked: Features, bound: Array | float
) -> Corrections:
    """Returns factors on FLOP and byte efficiency, within exp(-bound) and exp(bound)."""
    logits: Any = ResidualNetwork(units=options.units).apply(weights, asked)
    return jnp.exp(bound * jnp.tanh(logits))


def line(
    step: StackedStep, at: Machine, communication_sms: Array, factors: Corrections
) -> Line:
    """Returns the line of every row's step, with the times of corrected operations."""
    physics = stacked_steps.line(step, at, communication_sms)
    plain = _kernel_costs(step, at, jnp.ones_like(factors))
    other = _kernel_costs(step, at, factors)
    longer = (other.seconds - plain.seconds) * step.layers
    clocked = (other.clocked_seconds - plain.clocked_seconds) * step.layers
    of_experts = jnp.sum(longer * step.roles[..., ROLES.index("experts")], axis=1)
    waiting = at.stack.experts_wait * step.excess_load * of_experts
    return replace(
        physics,
        seconds=physics.seconds + jnp.sum(longer, axis=1) + waiting,
        clocked_seconds=physics.clocked_seconds + jnp.sum(clocked, axis=1),
    )


def _kernel_costs(step: StackedStep, at: Machine, factors: Corrections) -> KernelCost:
    wide = jax.tree.map(lambda leaf: leaf[:, None], at)
    repeats: Any = 1.0
    for index, name in enumerate(REPEATS):
        extra = getattr(wide.stack, name) - 1.0
        repeats = repeats + step.repeats[..., index] * extra
    limits = _limits(step.roles, wide.stack)
    corrected = replace(
        limits,
        flop_efficiency=limits.flop_efficiency * factors[..., 0],
        byte_efficiency=limits.byte_efficiency * factors[..., 1],
    )
    sampling = step.sampled * wide.stack.sampling_seconds_per_logit
    return rooflines.price(step.work, corrected, sampling, repeats, wide)


def _limits(roles: Array, stack: Stack) -> Limits:
    def mixed(*values: Any) -> Any:
        return sum(roles[..., index] * value for index, value in enumerate(values))

    return jax.tree.map(mixed, *[rooflines.limits(role, stack) for role in ROLES])


def log_predictions(
    rows: ServingRows, chip: Chip, stack: Stack, factors: Corrections
) -> Array:
    """Returns log J/token and log s/step of every row, with corrected operations."""
    chips, stacks = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf] * 2), (chip, stack)
    )
    layout: Any = rows.deployments
    shape = layout.batch.shape
    at = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, shape), machine(chips, stacks, layout)
    )
    summed = line(rows.steps, at, layout.communication_sms, factors)
    host = host_seconds(stacks, layout, rows.loads)
    both: Any = settle(summed, {}, host, chips, stacks, layout)
    count, share = rows.mixed_share.shape[0], rows.mixed_share
    seconds, joules = (
        values[:count] + share * (values[count:] - values[:count])
        for values in (both.seconds, both.joules)
    )
    gpus = layout.tensor_parallel * layout.pipeline_parallel * layout.data_parallel
    per_token = joules * (gpus / layout.batch)[:count]
    return jnp.log(jnp.stack([per_token, seconds], axis=1))


def residuals(evidence: Evidence, u: Array, factors: Corrections) -> Array:
    """Returns log(predicted / measured), row x target; 0 where nothing is known."""
    said = log_predictions(
        evidence.rows, *coefficients(evidence.parameters, u), factors
    )
    known = jnp.isfinite(evidence.measured)
    measured = jnp.where(known, evidence.measured, 1.0)
    return jnp.where(known, said - jnp.log(measured), 0.0)


def left_out(
    task: Problem,
    folds: np.ndarray,
    start: Array,
    options: fits.Options,
    network: NetworkOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns residuals of unseen rows without and with the correction, row x target.

    Each fold first refits the physics from `start`; both arms then descend as many steps.
    """
    labels = list(dict.fromkeys(folds))
    masks = jnp.asarray(np.stack([folds != label for label in labels]), float)
    every = np.asarray(_left_out(task.evidence, masks, start, options, network))
    own = np.array([labels.index(label) for label in folds])
    found = every[own, :, np.arange(len(folds))]
    return found[:, 0], found[:, 1]


@partial(jax.jit, static_argnums=(3, 4), compiler_options=QUICK_COMPILE)
def _left_out(
    evidence: Evidence,
    masks: Array,
    start: Array,
    options: fits.Options,
    network: NetworkOptions,
) -> Array:
    asked = features(evidence.rows.steps)

    def one(mask: Array) -> Array:
        weights = evidence.weights * mask[:, None]
        physics = fits.refit(
            evidence.residuals, evidence.parameters, weights, options, start
        ).scores

        def arm(bound: Array) -> Array:
            def unexplained(point: Any) -> Array:
                factors = corrections(network, point[1], asked, bound)
                u = row_scores(evidence.parameters, point[0])
                return residuals(evidence, u, factors)

            def loss(point: Any) -> Array:
                scaled = unexplained(point) / options.noise
                robust = 2.0 * (jnp.sqrt(1.0 + 0.5 * scaled * scaled) - 1.0)
                return jnp.sum(weights * robust) + _penalty(network, *point)

            return unexplained(_descend(loss, network, (physics, initial(network))))

        return jax.lax.map(arm, jnp.asarray([0.0, network.bound]))

    return jax.lax.map(one, masks)


def _penalty(network: NetworkOptions, scores: Array, weights: Any) -> Array:
    squares = sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(weights))
    return 0.5 * jnp.sum(scores * scores) + 0.5 * squares / network.deviation**2


def _descend(loss: Any, network: NetworkOptions, start: Any) -> Any:
    """The point that Adam reaches from `start`."""
    schedule = optax.cosine_decay_schedule(network.learning_rate, network.steps, 0.1)
    optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))

    def advance(carry, _):
        point, state = carry
        gradient = jax.grad(loss)(point)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            update, state = optimiser.update(gradient, state)
        return (optax.apply_updates(point, update), state), None

    carry: Any = (start, optimiser.init(start))
    return jax.lax.scan(advance, carry, length=network.steps)[0][0]
