"""Latency at a rate of arrivals: options that commands share, and the table they print."""

from typing import Annotated, Any

from jaxlens.cli.options import number
from jaxlens.cli.tables import print_line, print_table, scaled, share
from jaxlens.predictions import Estimate
from jaxlens.queueing import Arrivals, at_load, check_arrivals
from jaxlens.requests import Request

LOAD = "Load"
Rate = Annotated[
    float | None,
    number(
        "--arrivals",
        help="Requests per second over all replicas: adds latency at that load. The "
        "batch is then the limit of sequences in flight.",
        panel=LOAD,
        metavar="RATE",
    ),
]
Burstiness = Annotated[
    float,
    number(
        "--burstiness",
        help="Squared coefficient of variation of the gaps between requests.",
        panel=LOAD,
        metavar="RATIO",
        default="1, Poisson",
    ),
]
PromptSpread = Annotated[
    float,
    number(
        "--prompt-cv",
        help="Coefficient of variation of prompt lengths, for queueing.",
        panel=LOAD,
        metavar="RATIO",
        default="0",
    ),
]
HEADLINES = (
    ("TTFT at load, p50", "seconds_to_first_token_p50"),
    ("TTFT at load, p99", "seconds_to_first_token_p99"),
    ("TTFT at load, mean", "seconds_to_first_token"),
    ("  of which its own prefill", "seconds_own_prefill"),
    ("  of which the step in progress", "seconds_step_wait"),
    ("  of which prompts before it", "seconds_prefill_wait"),
    ("  of which a free slot", "seconds_slot_wait"),
    ("TPOT at load, mean", "seconds_per_output_token"),
    ("TPOT at load, p99 of requests", "seconds_per_output_token_p99"),
    ("time between tokens, p99", "seconds_between_tokens_p99"),
)


def load_numbers(
    asked: Request, estimate: Estimate, rate: float, burstiness: float, spread: float
) -> dict[str, Any]:
    """Returns the estimate of a request at load as plain numbers in SI."""
    arrivals = check_arrivals(
        Arrivals(
            requests_per_second=rate, burstiness=burstiness, prompt_tokens_cv=spread
        )
    )
    found = at_load(
        asked.model,
        asked.profile,
        asked.deployment,
        asked.workload,
        arrivals,
        estimate,
    )
    numbers = {name: float(value) for name, value in vars(found).items()}
    return {**vars(arrivals), **numbers}


def print_load(numbers: dict[str, Any]) -> None:
    """Prints latency at load, and what to know about it."""
    rate = f"{numbers['requests_per_second']:g}"
    most = numbers["capacity_requests_per_second"]
    rows = [(label, scaled(numbers[name], "s")) for label, name in HEADLINES]
    rows += [
        ("utilisation", share(numbers["utilisation"])),
        ("sequences that decode", f"{numbers['running_sequences']:.3g}"),
        ("power per GPU", scaled(numbers["watts_per_gpu"], "W")),
        ("energy per output token", scaled(numbers["joules_per_output_token"], "J")),
    ]
    print_table((f"at {rate} requests/s", ""), rows)
    if numbers["load_slack"] < 0.0:
        print_line(
            f"  overload: requests pile up beyond {most:.3g} per second; waits are those "
            f"of a search that must know by how much, not of a steady state",
            style="red",
        )
