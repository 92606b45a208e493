"""The SM clock, or one per phase, of least energy within a bound on the slowdown.

    f_opt = argmin E(f)    with t(f) <= slowdown t(fastest), f a clock the chip can be locked to

Switching energy goes with V^2 and static energy with time: as the clock falls, the first
shrinks until the voltage is flat, the second grows. A power cap slows each step to the clock
at which it draws what the cap allows, P(f) = cap_share cap; the cap that is equivalent to a
lock is the one under which the mean step takes as long. Steps of one kind then run at that
very clock; of two kinds, the hungrier runs below and the other above it.

Two clocks cost a switch whenever decode-only and prompt-carrying steps take turns: 2 phi (1 -
phi) a step of continuous batching with a share phi of mixed steps in random order, two for a
batch that is served as one, none where prefill and decode have pools of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxlens.commands.gpus import gpu_commands, reset_commands
from jaxlens.deployments import UNLIMITED
from jaxlens.optimize.clock_tables import ClockTable, Phase, clock_table
from jaxlens.power import static_watts, voltage
from jaxlens.requests import Request

Values = Float[np.ndarray, " clock"]

SLOWDOWN = 1.1
SWITCH_SECONDS = 0.01
NEAR = 1e-3  # of the least energy: the fastest clock within it is advised
VOLTAGE = ("knee_hz", "voltage_rise", "voltage_bend")
SCHEDULES = ("interleaved", "one batch at a time", "separate pools")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one clock gives: a step or pass, and the same against the fastest clock."""

    clock_hz: float
    seconds: float
    joules: float  # per output token, or per pass
    watts: float  # mean of one GPU
    slowdown: float
    saving: float  # of the joules


@dataclass(frozen=True, kw_only=True)
class Cap:
    """The power cap under which steps are as fast as at a locked clock, without the lock."""

    watts: float
    reached_hz: Mapping[str, float]  # by steps of each kind, under the cap
    seconds: float
    joules: float


@dataclass(frozen=True, kw_only=True)
class Knee:
    """Where the voltage stops falling, and what energy does on the way there."""

    knee_hz: float
    voltage_ratio: float  # at the advised clock over that at the fastest
    flat_share: float  # V(flat) / V(fastest)
    switching_saved: float  # share of the joules at the fastest clock
    static_added: float
    text: str


@dataclass(frozen=True, kw_only=True)
class PhaseClocks:
    """One clock for prefill and one for decode, under one way of serving."""

    schedule: str
    prefill_hz: float
    decode_hz: float
    switches_per_token: float  # of one GPU, per output token of a sequence
    seconds: float  # per output token
    joules: float  # per output token
    single_hz: float  # the best single clock under the same bounds
    single_joules: float
    saving: float  # over that clock
    pays: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class ClockAdvice:
    """The clock to lock, what it gives, and what else would do the same."""

    request: Request  # with the advised clock
    forward: bool  # a forward pass, or else serving
    slowdown: float  # bound
    table: ClockTable
    settings: tuple[Setting, ...]  # by clock, lowest first
    fastest: Setting
    advised: Setting
    unbounded: Setting  # of least energy whatever the time
    cap: Cap | None  # none where the fastest clock is advised
    knee: Knee
    phases: tuple[PhaseClocks, ...]
    commands: tuple[str, ...]
    cap_commands: tuple[str, ...]
    reset: tuple[str, ...]
    notes: tuple[str, ...]


def advise_clock(
    request: Request,
    *,
    slowdown: float = SLOWDOWN,
    forward: bool | None = None,
    per_phase: bool = False,
    switch_seconds: float = SWITCH_SECONDS,
) -> ClockAdvice:
    """Returns the clock of least energy within a slowdown, and the equivalent power cap.

    Args:
        request: Deployment and traffic; its power cap holds, its clock is not used.
        slowdown: Longest time over that of the fastest clock, at least 1.
        forward: One pass over a batch of prompts; by default what an eager stack runs, and
            serving for all others.
        per_phase: Also look for a clock of its own for prefill and for decode.
        switch_seconds: How long the GPU waits for a change of its clock.

    Raises:
        ValueError: where, what was expected, what came; also where no clock is known.
    """
    _check(slowdown, switch_seconds)
    free = replace(request, deployment=replace(request.deployment, clock_hz=UNLIMITED))
    whole = not free.deployment.fused if forward is None else forward
    table = clock_table(free, forward=whole)
    settings = _settings(free, table, whole)
    fastest = settings[int(np.argmin([s.seconds for s in settings]))]
    advised = _least(settings, slowdown)
    locked = replace(free.deployment, clock_hz=advised.clock_hz)
    chip, vendor = free.profile.chip, free.card.vendor
    cap = None
    if advised.clock_hz < fastest.clock_hz:
        cap = _cap(free, table, advised, whole)
    capped = free.deployment
    if cap is not None:
        capped = replace(capped, power_cap_watts=cap.watts)
    phases = ()
    if per_phase and not whole:
        phases = tuple(
            _phase_clocks(free, table, schedule, slowdown, switch_seconds)
            for schedule in SCHEDULES
        )
    return ClockAdvice(
        request=replace(free, deployment=locked),
        forward=whole,
        slowdown=slowdown,
        table=table,
        settings=settings,
        fastest=fastest,
        advised=advised,
        unbounded=_least(settings, np.inf),
        cap=cap,
        knee=_knee(free, table, settings, advised, fastest),
        phases=phases,
        commands=tuple(gpu_commands(vendor, chip, locked)),
        cap_commands=() if cap is None else tuple(gpu_commands(vendor, chip, capped)),
        reset=tuple(reset_commands(vendor, chip, locked)),
        notes=_notes(free, cap),
    )


def _settings(request: Request, table: ClockTable, whole: bool) -> tuple[Setting, ...]:
    mean, scale = table.mean, _per_unit(request, whole)
    quickest = int(np.argmin(mean.seconds))
    return tuple(
        Setting(
            clock_hz=float(mean.clock_hz[row]),
            seconds=float(mean.seconds[row]),
            joules=scale * float(mean.joules[row]),
            watts=float(mean.watts[row]),
            slowdown=float(mean.seconds[row] / mean.seconds[quickest]),
            saving=1.0 - float(mean.joules[row] / mean.joules[quickest]),
        )
        for row in range(len(mean.clock_hz))
    )


def _per_unit(request: Request, whole: bool) -> float:
    """Joules per output token, or per pass of all GPUs, for a joule of a step and GPU."""
    layout = request.deployment
    gpus = float(layout.tensor_parallel) * float(layout.pipeline_parallel)
    gpus *= float(layout.data_parallel)
    return gpus if whole else gpus / float(layout.batch)


def _least(settings: tuple[Setting, ...], slowdown: float) -> Setting:
    """The fastest of those that are within a thousandth of the least energy."""
    allowed = [s for s in settings if s.slowdown <= slowdown]
    least = min(s.joules for s in allowed)
    near = [s for s in allowed if s.joules <= (1.0 + NEAR) * least]
    quickest = min(s.seconds for s in near)
    return min((s for s in near if s.seconds == quickest), key=lambda one: one.clock_hz)


def _cap(
    request: Request, table: ClockTable, advised: Setting, whole: bool
) -> Cap | None:
    """The lowest cap that is as fast as the lock; time falls as the cap rises."""
    caps = table.caps
    slower = np.flatnonzero(caps.seconds > advised.seconds)
    if not len(slower) or slower[-1] + 1 == len(caps.watts):
        return None
    after = int(slower[-1]) + 1
    pair = slice(after - 1, after + 1)

    def between(values: Values) -> float:
        return float(np.interp(-advised.seconds, -caps.seconds[pair], values[pair]))

    return Cap(
        watts=between(caps.watts),
        reached_hz={name: between(hz) for name, hz in caps.reached_hz.items()},
        seconds=between(caps.seconds),
        joules=_per_unit(request, whole) * between(caps.joules),
    )


def _row(phase: Phase, clock_hz: float) -> int:
    return int(np.argmin(np.abs(phase.clock_hz - clock_hz)))


def _knee(
    request: Request,
    table: ClockTable,
    settings: tuple[Setting, ...],
    advised: Setting,
    fastest: Setting,
) -> Knee:
    chip, mean = request.profile.chip, table.mean
    at, full = (_row(mean, setting.clock_hz) for setting in (advised, fastest))
    # The clock that steps reach is what their voltage goes with.
    volts, top = (float(voltage(mean.reached_hz[row], chip)) for row in (at, full))
    whole = float(mean.joules[full])
    switched = [
        float(sum(mean.causes[name][row] for name in ("busy", "compute")))
        for row in (at, full)
    ]
    static = [float(mean.causes["static"][row]) for row in (at, full)]
    saved = (switched[1] - switched[0]) / whole
    added = (static[0] - static[1]) / whole
    knee = float(chip.knee_hz)
    text = (
        f"voltage is flat up to {knee / 1e6:.0f} MHz and {100.0 * (top - 1.0):.0f} % "
        f"higher at the fastest clock; from there to {advised.clock_hz / 1e6:.0f} MHz it "
        f"falls by {100.0 * (1.0 - volts / top):.0f} %: switching saves "
        f"{100.0 * saved:.1f} % of the energy; static power, for longer but at less "
        f"voltage, changes it by {100.0 * added:+.1f} %. "
        f"{_beyond(settings, advised, knee)}"
    )
    return Knee(
        knee_hz=knee,
        voltage_ratio=volts / top,
        flat_share=1.0 / top,
        switching_saved=saved,
        static_added=added,
        text=text,
    )


def _beyond(settings: tuple[Setting, ...], advised: Setting, knee_hz: float) -> str:
    """Why the clock is not lower."""
    lower = [s for s in settings if s.clock_hz < advised.clock_hz]
    if not lower:
        return "It is the lowest clock of the chip."
    below = lower[-1]
    if below.joules < advised.joules:
        return "A lower clock would save more, but the bound on the slowdown holds it."
    if advised.clock_hz <= 1.05 * knee_hz:
        return (
            "Below the knee a lower clock only takes longer, at the same voltage: energy "
            "rises again."
        )
    return (
        "A lower clock would still lower the voltage, but static energy over a longer "
        "time outweighs it."
    )


def _phase_clocks(
    request: Request,
    table: ClockTable,
    schedule: str,
    slowdown: float,
    switch_seconds: float,
) -> PhaseClocks:
    """The best pair of clocks by trying all pairs, and the best single clock."""
    chip = request.profile.chip
    decode = table.phases["decode"]
    other = table.phases["mixed" if schedule == "interleaved" else "prefill"]
    weights, switches = _turns(request, table, schedule)
    differs = ~np.eye(len(decode.clock_hz), dtype=bool)
    waits = switches * switch_seconds * differs
    faster = np.maximum(decode.clock_hz[:, None], other.clock_hz)
    seconds = weights[0] * decode.seconds[:, None] + weights[1] * other.seconds + waits
    joules = weights[0] * decode.joules[:, None] + weights[1] * other.joules
    joules = joules + waits * np.asarray(static_watts(jnp.asarray(faster), chip))
    if schedule == "separate pools":
        slow = np.maximum(
            (decode.seconds / decode.seconds.min())[:, None],
            other.seconds / other.seconds.min(),
        )
        seconds = np.broadcast_to(decode.seconds[:, None], joules.shape)
    else:
        slow = seconds / np.diagonal(seconds).min()
    allowed = np.where(slow <= slowdown, joules, np.inf)
    at_decode, at_other = np.unravel_index(int(np.argmin(allowed)), allowed.shape)
    single = int(np.argmin(np.diagonal(allowed)))
    scale = _per_unit(request, False)
    best, alone = allowed[at_decode, at_other], allowed[single, single]
    return PhaseClocks(
        schedule=schedule,
        prefill_hz=float(other.clock_hz[at_other]),
        decode_hz=float(decode.clock_hz[at_decode]),
        switches_per_token=float(switches * differs[at_decode, at_other]),
        seconds=float(seconds[at_decode, at_other]),
        joules=scale * float(best),
        single_hz=float(decode.clock_hz[single]),
        single_joules=scale * float(alone),
        saving=1.0 - float(best / alone),
        pays=bool(best < (1.0 - NEAR) * alone),
    )


def _turns(
    request: Request, table: ClockTable, schedule: str
) -> tuple[tuple[float, float], float]:
    """How often a step is of either kind, and how often the clock changes, per step."""
    share = table.mixed_share
    if schedule == "interleaved":
        return (1.0 - share, share), 2.0 * share * (1.0 - share)
    layout, workload = request.deployment, request.workload
    replicas = float(layout.data_parallel) * float(layout.pipeline_parallel)
    sequences = float(layout.batch) / replicas
    budget = min(float(layout.chunk_tokens), float(request.profile.stack.chunk_tokens))
    chunks = max(1.0, float(workload.prompt_tokens) / budget)
    outputs = float(workload.output_tokens)
    switches = 2.0 / outputs if schedule == "one batch at a time" else 0.0
    return (1.0, sequences * chunks / outputs), switches


def _notes(request: Request, cap: Cap | None) -> tuple[str, ...]:
    """Which of the advice rests on guesses."""
    card = request.card

    def said(word: str, *names: str) -> list[str]:
        known = {name: card.coefficients[f"chip.{name}"] for name in names}
        return [
            name
            for name, c in known.items()
            if c.origin == "prior" and c.source.startswith(word)
        ]

    found = []
    for word, words in (("prior", "a guess"), ("inferred", "inferred, not measured")):
        guessed = said(word, *VOLTAGE)
        if guessed:
            found.append(
                f"the clock rests on a voltage curve of {card.chip} that is {words}: "
                f"{', '.join(guessed)}"
            )
    floor = said("prior", "idle_watts", "busy_watts")
    if floor:
        found.append(f"joules rest on priors of {card.chip}: {', '.join(floor)}")
    if cap is not None and said("prior", "cap_share"):
        found.append("the power cap rests on a prior: cap_share")
    if cap is not None and cap.watts < 0.5 * float(request.profile.chip.tdp_watts):
        found.append(
            f"a cap of {cap.watts:.0f} W is below half of the TDP: `nvidia-smi -q -d POWER` "
            f"shows the lowest that the board takes"
        )
    return tuple(found)


def _check(slowdown: float, switch_seconds: float) -> None:
    if not slowdown >= 1.0:
        raise ValueError(
            f"slowdown: expected at least 1, got {slowdown:g}; 1.1 allows 10 % more time "
            f"than at the fastest clock."
        )
    if not 0.0 <= switch_seconds < np.inf:
        raise ValueError(
            f"clock switch: expected seconds, got {switch_seconds:g}; "
            f"locking a clock takes about 10 ms."
        )
