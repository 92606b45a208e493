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

CAPS = 63  # power caps that are tried, equally spaced
LEAST_CAP, LEAST_OVER_IDLE = (
    0.2,
    1.5,
)  # the lowest of them, over the highest and over idle
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
    caps: "Caps"


@dataclass(frozen=True, kw_only=True, eq=False)
class Caps:
    """The same without a lock, under power caps: means over steps."""

    watts: Values
    seconds: Values
    joules: Values
    reached_hz: Mapping[str, Values]  # by phase


def clock_table(request: Request, *, forward: bool) -> ClockTable:
    """Returns the steps of continuous batching, or one forward pass, at each clock."""
    return forward_table(request) if forward else serving_table(request)


def serving_table(request: Request) -> ClockTable:
    """Returns the steps of continuous batching at each clock."""
    found = _evaluated(served, request)
    phases = {name: _phase(found, name) for name in ("decode", "mixed", "prefill")}
    free = {name: _phase(found, name, capped=True) for name in ("decode", "mixed")}
    share = float(found["mixed_share"][0, 0])
    capped = _blend(free["decode"], free["mixed"], share)
    return ClockTable(
        mean=_blend(phases["decode"], phases["mixed"], share),
        phases=phases,
        mixed_share=share,
        caps=Caps(
            watts=found["caps"],
            seconds=capped.seconds,
            joules=capped.joules,
            reached_hz={name: phase.reached_hz for name, phase in free.items()},
        ),
    )


def forward_table(request: Request) -> ClockTable:
    """Returns one forward pass over a batch of whole prompts at each clock."""
    found = _evaluated(passed, request)
    capped = _phase(found, "pass", capped=True)
    return ClockTable(
        mean=_phase(found, "pass"),
        phases={},
        mixed_share=1.0,
        caps=Caps(
            watts=found["caps"],
            seconds=capped.seconds,
            joules=capped.joules,
            reached_hz={"pass": capped.reached_hz},
        ),
    )


def served(asked: Question, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns what each kind of step of continuous batching takes at a clock."""
    chip, stack = asked.profile.chip, asked.profile.stack
    deployment = replace(asked.base, **values)
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
    deployment = replace(asked.base, **values)
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
    """Columns by cap and clock; the first cap is the one that holds anyway."""
    chip, own = request.profile.chip, float(request.deployment.power_cap_watts)
    table = clocks(chip)
    highest = min(own, float(chip.tdp_watts))
    lowest = min(
        max(LEAST_CAP * highest, LEAST_OVER_IDLE * float(chip.idle_watts)), highest
    )
    caps = np.linspace(lowest, highest, CAPS)
    asked = Question(
        model=request.model,
        profile=request.profile,
        base=request.deployment,
        workload=request.workload,
    )
    space = spaces.space(
        spaces.choices("power_cap_watts", [own, *caps.tolist()]),
        spaces.choices("clock_hz", table),
    )
    found = batch.evaluate(function, asked, space)
    shape = CAPS + 1, len(table)
    columns = {n: np.asarray(v, float).reshape(shape) for n, v in found.items()}
    return {**columns, "clocks": np.asarray(table, float), "caps": caps}


def _phase(
    found: Mapping[str, np.ndarray], name: str, *, capped: bool = False
) -> Phase:
    """By clock under the cap that holds anyway; or at the highest clock, by cap."""

    def column(quantity: str) -> Values:
        values = found[f"{name} {quantity}"]
        return values[1:, -1] if capped else values[0]

    clock = found["clocks"]
    return Phase(
        clock_hz=np.full(CAPS, clock[-1]) if capped else clock,
        reached_hz=column("clock"),
        seconds=column("seconds"),
        joules=column("joules"),
        causes={cause: column(cause) for cause in CAUSES},
    )


def _blend(decode: Phase, mixed: Phase, share: float) -> Phase:
    """The mean of steps of which a share is mixed."""

    def mean(one: Values, other: Values) -> Values:
        return one + share * (other - one)

    return Phase(
        clock_hz=decode.clock_hz,
        reached_hz=mean(decode.reached_hz, mixed.reached_hz),
        seconds=mean(decode.seconds, mixed.seconds),
        joules=mean(decode.joules, mixed.joules),
        causes={n: mean(decode.causes[n], mixed.causes[n]) for n in CAUSES},
    )
