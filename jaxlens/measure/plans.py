"""Which cases a run measures: a suite, cut to its time."""

from jaxlens.measure.cases import Case
from jaxlens.measure.coresets import coreset
from jaxlens.measure.devices import Device
from jaxlens.measure.gradients import features
from jaxlens.measure.provenance import chip_id
from jaxlens.measure.requests import Request
from jaxlens.measure.rounds import visit_seconds
from jaxlens.measure.suites import (
    collectives,
    full,
    overlap_pairs,
    serving,
    sm_shares,
)
from jaxlens.measure.windows import Rules
from jaxlens.profiles import known_chips, load_profile

# Of the budget: imports, the draw at rest, the choice of cases, the harness's own cost; and
# of each case: allocation, compilation and sizing of windows, beside what the rules ask for.
SETUP_SECONDS = {"cpu": 10.0, "cuda": 30.0}
PREPARATION_SECONDS = {"cpu": 0.1, "cuda": 0.8}
REPEAT_SHARE = {"cpu": 2.0, "cuda": 1.3}  # windows over the fewest, mean over cases
REFERENCE_CHIP = "h100-sxm"  # whose gradients stand in for devices without a profile


def plan(request: Request, device: Device, rules: Rules, ranks: int) -> list[Case]:
    """Returns the cases to measure, in order. Several ranks measure collectives only."""
    if ranks > 1:
        return collectives(ranks, device)
    if request.suite == "overlap":
        return [*overlap_pairs(device), *sm_shares(device)]
    if request.suite == "serving":
        return serving(device)
    cases = full(device, request.operations)
    if request.suite == "full" or request.seconds is None:
        return cases
    size = coreset_size(request, device, rules)
    if size >= len(cases):
        return cases
    chip = chip_id(device.name)
    profile = load_profile(chip if chip in known_chips() else REFERENCE_CHIP)
    return coreset(cases, features(cases, profile), size)


def coreset_size(request: Request, device: Device, rules: Rules) -> int:
    """Returns how many cases fit into the budget of `request`, at least one."""
    assert request.seconds is not None
    kind = device.kind
    if kind == "cpu":
        visits = REPEAT_SHARE[kind] * rules.fewest_windows
        measuring = visits * visit_seconds(rules)
    else:
        windows = REPEAT_SHARE[kind] * rules.fewest_windows
        measuring = 1.25 * rules.warmup_seconds + 1.1 * windows * rules.window_seconds
    left = max(request.seconds - SETUP_SECONDS[kind], 0.5 * request.seconds)
    return max(1, int(left / (request.runs * (PREPARATION_SECONDS[kind] + measuring))))
