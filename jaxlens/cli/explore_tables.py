"""The answer of `jaxlens explore` as tables and sentences, for people."""

from typing import Any

from jaxlens import exploring
from jaxlens.cli.explore_content import DEGREES, row
from jaxlens.cli.tables import print_line, print_notes, print_table, scaled, share
from jaxlens.deployments import UNLIMITED
from jaxlens.exploring import ExploreResult
from jaxlens.limits import REASONS

BARE = "TTFT is the time of one bare prefill: no queueing."
LOAD = (
    "TTFT is the mean at {rate:g} requests per second, queueing included; so are the other "
    "numbers: the batch is a limit of sequences in flight."
)
COLUMNS = (
    "GPUs",
    "layout",
    "batch",
    "MHz",
    "J/token",
    "TPOT ms",
    "TTFT ms",
    "tok/s/GPU",
    "W/GPU",
    "binds",
)
PRICES = {
    "$/M": "dollars_per_million_output_tokens",
    "gCO2/M": "grams_co2_per_million_output_tokens",
}
EXTRAS = {
    "prompt_tokens": ("prompt", ""),
    "output_tokens": ("output", ""),
    "output_tokens_cv": ("cv", ""),
    "routing_skew": ("skew", ""),
    "chunk_tokens": ("chunk", ""),
    "stages": ("stages", ""),
    "communication_sms": ("SMs", ""),
    "power_cap_watts": ("cap", "W"),
}
WORDS = {
    "layout": "layout",
    "batch": "too few sequences for the pipeline",
    "chip": "range of the chip",
    "where": "bounds",
    "memory": "memory",
    "prefill": "prefill",
    "ttft": "TTFT",
    "ttft_p99": "TTFT p99",
    "tpot": "TPOT",
    "rate": "arrival rate",
    "gpu_watts": "GPU power",
    "node_watts": "node power",
    "rack_watts": "rack power",
}
FILES = {
    "plot": "picture",
    "full": "all deployments",
    "recommendation": "recommendation",
    "report": "report",
}
LIMITS = {
    "prefill_seconds": ("prefill", "s"),
    "ttft_seconds": ("TTFT", "s"),
    "ttft_p99_seconds": ("TTFT p99", "s"),
    "tpot_seconds": ("TPOT", "s"),
    "gpu_watts": ("GPU power", "W"),
    "node_watts": ("node power", "W"),
    "rack_watts": ("rack power", "W"),
}


def show(result: ExploreResult, rows: list[int], content: dict[str, Any]) -> None:
    """Prints the best deployments, how they compare, and how to run the first."""
    winner = content["winner"]
    stacks = ", ".join(dict.fromkeys(one.card.stack for one in result.requests))
    print_line(
        f"{content['model']} under {stacks}: {_traffic(result)}, {_limits(result)}",
        style="bold",
    )
    others = [i for i in exploring.best_of_each_gpu(result) if i not in rows]
    shown = [*content["best"], *(row(result, index) for index in others)]
    priced = [name for name, key in PRICES.items() if key in shown[0]]
    columns = (*COLUMNS[:-1], *priced, COLUMNS[-1])
    print_table(columns, [_cells(entry, priced) for entry in shown], left=2)
    print_line(_counts(result, content["seconds_elapsed"]))
    print_line(_why(content))
    print_line(_comparison(result))
    for name, word in FILES.items():
        if content[name]:
            print_line(f"{word}: {content[name]}")
    print_line()
    for line in [*content["gpu_commands"], content["serve_command"]]:
        print_line(line, style="green")
    print_line()
    remarks = [*_remarks(result, content), *winner["provenance"]["notes"]]
    print_notes(dict.fromkeys(remarks))


def no_answer(result: ExploreResult) -> str:
    """Returns one line: which limit leaves nothing, and what comes nearest."""
    index = exploring.nearest(result)
    entry = row(result, index)
    missed = ", ".join(
        f"{WORDS[reason]} by {-100.0 * slack:.0f} %"
        for reason, slack in entry["misses"].items()
    )
    bounds = exploring.missed_bounds(result, index)
    missed += f" ({'; '.join(bounds)})" if bounds else ""
    if "layout" in entry["misses"]:
        missed += f" ({_problem(result, index)})"
    alone = exploring.ruled_out_by_one(result)
    killers = sorted((r for r in REASONS if alone[r]), key=lambda r: -alone[r])
    cure = (
        f"without the limit on {WORDS[killers[0]]}, {alone[killers[0]]:,} would remain"
        if killers
        else "lifting any one limit would leave none either"
    )
    cells = _cells(entry, [])
    return (
        f"explore: none of {result.size:,} deployments is within limits; {cure}. "
        f"Nearest: {cells[0]}, {cells[1]}, batch {cells[2]}, {cells[3]} MHz, with "
        f"TPOT {cells[5]} ms and TTFT {cells[6]} ms, misses {missed}."
    )


def _problem(result: ExploreResult, index: int) -> str:
    """Why an engine refuses a layout."""
    kind, layout = (int(result.columns[name][index]) for name in ("gpu", "layout"))
    return result.layouts[kind][layout].problem.rstrip(".")


def _cells(entry: dict[str, Any], priced: list[str]) -> list[str]:
    degrees = [
        f"{short}{entry[name]:.0f}"
        for short, name in DEGREES.items()
        if entry[name] > 1.0
    ]
    extras = [_extra(name, entry[name]) for name in EXTRAS if name in entry]
    binding: list[str] = [str(WORDS.get(name, name)) for name in entry["binds"]]
    if entry["power_excess"] > 0.0:
        binding.append(f"power +{share(entry['power_excess'])}")
    return [
        f"{entry['gpus']:.0f} x {entry['kind']}",
        ", ".join([" ".join(degrees) or "tp1", *extras]),
        f"{entry['batch']:g}",
        f"{entry['clock_hz'] * 1e-6:.0f}",
        f"{entry['joules_per_output_token']:.3f}",
        f"{entry['seconds_per_output_token'] * 1e3:.1f}",
        f"{entry.get('seconds_to_first_token', entry['seconds_prefill']) * 1e3:.0f}",
        f"{entry['output_tokens_per_second_per_gpu']:,.0f}",
        f"{entry['watts_per_gpu']:.0f}",
        *(f"{entry[PRICES[name]]:.3f}" for name in priced),
        ", ".join(binding) or "nothing",
    ]


def _extra(name: str, value: float | None) -> str:
    word, unit = EXTRAS[name]
    if value is None:
        return f"no {word}"
    return f"{word} {value:g} {unit}".rstrip()


def _traffic(result: ExploreResult) -> str:
    words = []
    for name, word in (("prompt_tokens", "prompt"), ("output_tokens", "output")):
        found = result.columns[name]
        low, high = float(found.min()), float(found.max())
        words.append(
            f"{low:g} {word}" if low == high else f"{low:g} to {high:g} {word}"
        )
    return f"{' and '.join(words)} tokens"


def _limits(result: ExploreResult) -> str:
    stated = [
        f"{words} up to {scaled(float(getattr(result.limits, name)), unit)}"
        for name, (words, unit) in LIMITS.items()
        if float(getattr(result.limits, name)) < UNLIMITED
    ]
    return ", ".join(stated) or "no limits"


def _counts(result: ExploreResult, seconds: float) -> str:
    reasons = [
        f"{WORDS[reason]} {count:,}"
        for reason, count in exploring.ruled_out(result).items()
        if count
    ]
    return (
        f"{result.size:,} deployments compared in {seconds:.1f} s, "
        f"{result.feasible_count:,} within limits; "
        f"ruled out (some by several): {', '.join(reasons) or 'none'}"
    )


def _why(content: dict[str, Any]) -> str:
    """What keeps the first from doing better, who is second, and who cannot be told apart."""
    why, words = content["why"], content["objective"].replace("_", " ")
    binding = " and ".join(str(WORDS.get(name, name)) for name in why["binds"])
    text = f"the first is bound by {binding}" if binding else "nothing binds the first"
    if why["runner_up"] is None:
        return f"{text}; there is no runner-up"
    cells = _cells(why["runner_up"], [])
    text += (
        f"; runner-up: {cells[0]}, {cells[1]}, {100.0 * why['runner_up_worse_by']:.1f} % "
        f"worse in {words}"
    )
    ties = [n for n, entry in enumerate(content["best"], 1) if entry["tied_with_best"]]
    if why["tied"] is None:
        return f"{text} (no interval: the profile is not fitted)"
    if len(ties) > 1:
        listed = ", ".join(str(n) for n in ties)
        return f"{text}; a tie within the prediction's error: rows {listed}"
    return f"{text}; more than the prediction's error"


def _comparison(result: ExploreResult) -> str:
    """How the best kind compares with the next one."""
    leaders = exploring.best_of_each_gpu(result)
    names = [result.labels[int(result.columns["gpu"][i])] for i in leaders]
    if len(leaders) < 2:
        return f"only {names[0]} meets the limits" if len(result.plans) > 1 else ""
    values = [float(result.columns[result.objective][index]) for index in leaders[:2]]
    words = result.objective.replace("_", " ")
    tie = ", a tie" if exploring.tied(result, *leaders[:2]) else ""
    return (
        f"{names[0]} against {names[1]}, each at its best: "
        f"{100.0 * (values[0] / values[1] - 1.0):+.0f} % {words}{tie}"
    )


def _remarks(result: ExploreResult, content: dict[str, Any]) -> list[str]:
    found = [BARE]
    if result.arrivals is not None:
        found = [LOAD.format(rate=float(result.arrivals.requests_per_second))]
    for survey in result.surveys:
        if survey.overflow:
            found.append(
                f"the front outgrew its capacity: within {survey.front_epsilon:.2g} of it."
            )
    if result.interrupted:
        total = sum(plan.size for plan in result.plans)
        found.append(
            f"interrupted: {result.size:,} of {total:,} deployments were compared."
        )
    if result.soft:
        found.append(
            "power budgets are soft: what exceeds them is marked, not excluded."
        )
    varied = [
        name
        for name in ("prompt_tokens", "output_tokens")
        if name in content["best"][0]
    ]
    if varied:
        found.append(
            "lengths vary: short requests are cheaper, and no choice of the operator."
        )
    if any(key in content["best"][0] for key in PRICES.values()):
        found.append(
            "$ and gCO2 are per million output tokens, at your prices and carbon "
            "intensity; carbon is of operation only."
        )
    return found
