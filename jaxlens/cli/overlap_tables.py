"""Tables of what `jaxlens overlap` found."""

from typing import TYPE_CHECKING, Any

from jaxlens.cli.tables import (
    print_line,
    print_notes,
    print_table,
    scaled,
    share,
    signed_share,
)

if TYPE_CHECKING:
    from jaxlens.optimize.overlap_advice import Advice, Setting
    from jaxlens.optimize.overlap_plans import Plan


def show(advice: "Advice", plan: "Plan | None", content: dict[str, Any]) -> None:
    """Prints the front, the rules of thumb and, if there is one, the plan."""
    phase = content["phase"]
    what = "prompts of" if phase == "prefill" else "a step of sequences with"
    print_line(
        f"{content['model']} on {content['chip']} under {content['stack']}: {phase}, "
        f"{what} {content['tokens']:g} tokens",
        style="bold",
    )
    columns = (
        "",
        "tp",
        "batch",
        "stages",
        "comm SMs",
        "ms",
        "J/token",
        "W/GPU",
        "links",
    )
    rows = [
        ("recommended" if s is advice.recommended else "front", *_cells(s))
        for s in _thinned(advice)
    ]
    print_table(columns, rows)
    print_line(
        f"{len(advice.front)} settings are on the front, found with "
        f"{advice.evaluations:,} evaluations ({advice.relaxed_evaluations:,} along "
        f"gradients) of {advice.space.size:,} settings, in {advice.seconds:.1f} s with "
        f"compilation. Recommended: the least energy within {advice.slowdown:g} x the "
        f"fastest."
    )
    print_line()
    print_table(
        (
            "what intuition says",
            "stages",
            "comm SMs",
            "time",
            "energy",
            "finds of front",
        ),
        [
            (
                rule.name,
                rule.setting.stages,
                rule.setting.communication_sms,
                signed_share(rule.extra_seconds),
                signed_share(rule.extra_joules),
                share(rule.recall),
            )
            for rule in advice.rules
        ],
        title=f"against the recommended one, at tp {advice.recommended.tensor_parallel} "
        f"and batch {advice.recommended.batch}",
    )
    if plan is not None:
        _show_plan(plan, content["per"])
    if content["plot"]:
        print_line(f"picture: {content['plot']}")
    print_notes(content["notes"])


def _show_plan(plan: "Plan", per: str) -> None:
    clocks = ", ".join(
        f"{name} at {clock * 1e-6:.0f} MHz" for name, clock in plan.clock_hz.items()
    )
    print_line(f"A split for each {per}: {clocks}", style="bold")
    print_table(
        ("phase", "operation", "layers", "stages", "comm SMs"),
        [
            (c.phase, c.operation, c.layers, c.stages, c.communication_sms)
            for c in plan.choices
        ],
        left=2,
    )
    print_line(
        f"{scaled(plan.joules, 'J')} in {scaled(plan.seconds, 's')} "
        f"(limit {scaled(plan.limit_seconds, 's')}): at most {100 * plan.gap:.3f} % above "
        f"the optimum (Lagrangian bound); {scaled(plan.shadow_price_watts, 'J')} saved per "
        f"extra second; {plan.evaluations:,} prices, {plan.elapsed_seconds:.1f} s"
    )
    for name, own in plan.uniform.items():
        if len(plan.clock_hz) == 1 and name in ("one split", "one clock"):
            continue  # the same as a split per phase
        which = "fastest with one split in a phase" if name == "fastest" else name
        print_line(
            f"  against the {'' if name == 'fastest' else 'best with '}{which}: "
            f"{signed_share(plan.joules / own.joules - 1)} energy, "
            f"{signed_share(plan.seconds / own.seconds - 1)} time"
        )
    above = sum(plan.clocks_above_cap.values())
    watts = ", ".join(f"{n} {w:.0f} W" for n, w in plan.watts_per_gpu.items())
    felt = f"{above} clocks are above it and left out" if above else "it does not bind"
    print_line(f"power cap: {felt}; mean per GPU: {watts}")


def _thinned(advice: "Advice") -> list[Any]:
    """At most a screen of the front, the recommended setting among it."""
    front = list(advice.front)
    step = max(1, round(len(front) / 24))
    return [s for i, s in enumerate(front) if i % step == 0 or s is advice.recommended]


def _cells(setting: "Setting") -> tuple[str, ...]:
    return (
        f"{setting.tensor_parallel}",
        f"{setting.batch}",
        f"{setting.stages}",
        f"{setting.communication_sms}" if setting.stages > 1 else "all",
        f"{setting.seconds * 1e3:.1f}",
        f"{setting.joules_per_token:.4g}",
        f"{setting.watts_per_gpu:.0f}",
        share(setting.link_share),
    )
