"""What a step takes at every clock that a chip can be locked to, phase by phase."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Array, Float

from jaxlens import batch, spaces
from jaxlens.deployments import Deployment, Workload
from jaxlens.loads import Load
from jaxlens.optimize.variables import clocks
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.requests import Request
from jaxlens.serving import StepCost, serve, step
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float
Values = Float[np.ndarray, " clock"]

# Joules of a step by what they do as the clock falls.
CAUSES = ("static", "busy", "compute", "hbm", "kv", "link")


@pytree
class Question:
    """What all clocks have in common."""

    model: Model
    profile: Profile
    base: Deployment
    workload: Workload


@dataclass(frozen=True, kw_only=True, eq=False)
class Phase:
    """One kind of step on one GPU, by the clock that was asked for."""

    clock_hz: Values  # as locked
    reached_hz: Values  # under the power cap
    seconds: Values
    joules: Values
    causes: Mapping[str, Values]  # joules, which add up

    @property
    def watts(self) -> Values:
        """Returns mean watts."""
        return self.joules / self.seconds


@dataclass(frozen=True, kw_only=True, eq=False)
class ClockTable:
    """Steps of a deployment by clock: `mean` is what the energy is minimised of.

    `phases` has decode, mixed and prefill (one prompt alone) of a serving deployment, and
    none of a forward pass.
    """

    mean: Phase
    phases: Mapping[str, Phase]
    mixed_share: float  # of the steps


def clock_table(request: Request, *, forward: bool) -> ClockTable:
    """Returns the steps of continuous batching, or one forward pass, at each clock."""
    return forward_table(request) if forward else serving_table(request)


def serving_table(request: Request) -> ClockTable:
    """Returns the steps of continuous batching at each clock."""
    found = _evaluated(served, request)
    decode, mixed, prefill = (
        _phase(found, name) for name in ("decode", "mixed", "prefill")
    )
    share = found["mixed_share"]

    def blend(one: Values, other: Values) -> Values:
        return one + share * (other - one)

    mean = Phase(
        clock_hz=decode.clock_hz,
        reached_hz=blend(decode.reached_hz, mixed.reached_hz),
        seconds=blend(decode.seconds, mixed.seconds),
        joules=blend(decode.joules, mixed.joules),
        causes={
            name: blend(decode.causes[name], mixed.causes[name]) for name in CAUSES
        },
    )
    return ClockTable(
        mean=mean,
        phases={"decode": decode, "mixed": mixed, "prefill": prefill},
        mixed_share=float(share[0]),
    )


def forward_table(request: Request) -> ClockTable:
    """Returns one forward pass over a batch of whole prompts at each clock."""
    found = _evaluated(passed, request)
    return ClockTable(mean=_phase(found, "pass"), phases={}, mixed_share=1.0)


def under_cap(request: Request, cap_watts: float, *, forward: bool) -> ClockTable:
    """Returns the steps with a power cap and no lock: the last row boosts freely."""
    layout = replace(request.deployment, power_cap_watts=float(cap_watts))
    return clock_table(replace(request, deployment=layout), forward=forward)


def served(asked: Question, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns what each kind of step of continuous batching takes at a clock."""
    chip, stack = asked.profile.chip, asked.profile.stack
    deployment = replace(asked.base, clock_hz=values["clock_hz"])
    found = serve(asked.model, chip, stack, deployment, asked.workload)
    return {
        **_numbers("decode", found.decode),
        **_numbers("mixed", found.mixed),
        **_numbers("prefill", found.prefill),
        "mixed_share": found.traffic.mixed_share,
    }


def passed(asked: Question, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns what one pass over `batch` prompts takes at a clock."""
    chip, stack = asked.profile.chip, asked.profile.stack
    deployment = replace(asked.base, clock_hz=values["clock_hz"])
    load = Load(
        decode_sequences=0.0,
        decode_context=0.0,
        prefill_sequences=deployment.batch,
        prefill_tokens=asked.workload.prompt_tokens,
        prefill_past=0.0,
        emitting=deployment.batch,
    )
    found = step(asked.model, chip, stack, deployment, load, ("prefill",))
    return _numbers("pass", found)


def _numbers(name: str, cost: StepCost) -> dict[str, Scalar]:
    return {
        f"{name} seconds": cost.seconds,
        f"{name} joules": cost.joules,
        f"{name} clock": cost.clock_hz,
        **{f"{name} {cause}": getattr(cost, f"{cause}_joules") for cause in CAUSES},
    }


def _evaluated(function: batch.Function, request: Request) -> dict[str, np.ndarray]:
    table = clocks(request.profile.chip)
    asked = Question(
        model=request.model,
        profile=request.profile,
        base=request.deployment,
        workload=request.workload,
    )
    space = spaces.space(spaces.choices("clock_hz", table))
    found = batch.evaluate(function, asked, space)
    columns = {name: np.asarray(value, float) for name, value in found.items()}
    return {**columns, "clock": np.asarray(table, float)}


def _phase(found: Mapping[str, np.ndarray], name: str) -> Phase:
    return Phase(
        clock_hz=found["clock"],
        reached_hz=found[f"{name} clock"],
        seconds=found[f"{name} seconds"],
        joules=found[f"{name} joules"],
        causes={cause: found[f"{name} {cause}"] for cause in CAUSES},
    )
