"""What the options of `jaxlens explore` ask, as the library takes it."""

from typing import Any

from jaxlens.cli.explore_options import SHORT, ExploreOptions
from jaxlens.comparisons import OBJECTIVES
from jaxlens.declarations import SearchSpace
from jaxlens.deployments import UNLIMITED, Workload
from jaxlens.economics import Tariff, tariff
from jaxlens.limits import BUDGETS, Limits
from jaxlens.quantities import quantity
from jaxlens.queueing import Arrivals
from jaxlens.space_files import read_space, settings_space


def declared(options: ExploreOptions) -> SearchSpace:
    """Returns the space that the options declare; a flag and the space are not both."""
    kinds = {
        "model": options.model,
        "gpu": options.gpu,
        "weights": options.weights,
        "kv": options.kv,
        "stack": options.stack,
    }
    own = settings_space(options.settings or [], options.where or [], options.max_gpus)
    flags = settings_space([f"{n}={v}" for n, v in kinds.items() if v is not None], [])
    for name in flags.kinds:
        if name in own.kinds:
            raise ValueError(
                f"{name}: expected it once, got it with --set and without; drop one."
            )
    filed = SearchSpace() if options.space is None else read_space(options.space)
    return filed.joined(flags).joined(own)


def pool_gpus(options: ExploreOptions) -> tuple[list[str], list[str]]:
    """Returns the chips of the pools that prefill and decode; empty for all."""
    given = options.prefill_gpu, options.decode_gpu
    if any(given) and not options.pools:
        raise ValueError(
            "prefill and decode GPUs: expected --pools beside them; add it."
        )
    first, second = (
        [name.strip() for name in (text or "").split(",") if name.strip()]
        for text in given
    )
    return first, second


def workload(options: ExploreOptions) -> Workload:
    """Returns the traffic that the options state."""
    return Workload(
        prompt_tokens=options.prompt,
        output_tokens=options.output,
        output_tokens_cv=options.output_cv,
    )


def arrivals(options: ExploreOptions) -> Arrivals | None:
    """Returns how requests come in, if that is stated."""
    if options.rate is None:
        if options.burstiness != 1.0:
            raise ValueError(
                "burstiness: expected --arrivals beside it, got none; state it."
            )
        return None
    return Arrivals(requests_per_second=options.rate, burstiness=options.burstiness)


def limits(options: ExploreOptions) -> Limits:
    """Returns the limits that the options state."""
    given: dict[str, Any] = {
        "prefill_seconds": _limit(options.prefill, "seconds", "prefill"),
        "ttft_seconds": _limit(options.ttft, "seconds", "ttft"),
        "ttft_p99_seconds": _limit(options.ttft_p99, "seconds", "ttft p99"),
        "tpot_seconds": _limit(options.tpot, "seconds", "tpot"),
        "gpu_watts": _limit(options.gpu_power, "watts", "gpu power"),
        "node_watts": _limit(options.node_power, "watts", "node power"),
        "rack_watts": _limit(options.rack_power, "watts", "rack power"),
        "rack_nodes": UNLIMITED if options.rack_nodes is None else options.rack_nodes,
    }
    return Limits(**given)


def soft(options: ExploreOptions) -> tuple[str, ...]:
    """Returns the power budgets that exclude nothing."""
    return BUDGETS if options.soft_power else ()


def rates(options: ExploreOptions) -> Tariff | dict[str, Tariff]:
    """Returns prices: the same for all GPUs, or by id."""

    def at(price: float) -> Tariff:
        return tariff(
            dollars_per_gpu_hour=price,
            dollars_per_kwh=options.kwh_price,
            grams_co2_per_kwh=options.carbon,
            host_watts=options.host_watts,
            pue=options.pue,
        )

    prices = _prices(options.gpu_price)
    if not isinstance(prices, dict):
        return at(prices)
    return {name: at(price) for name, price in prices.items()}


def objective(options: ExploreOptions) -> str:
    """Returns the quantity to rank by."""
    name = SHORT.get(options.objective.lower(), options.objective)
    if name not in OBJECTIVES:
        raise ValueError(
            f"objective: expected one of {', '.join(SHORT)}, got {options.objective!r}."
        )
    return name


def _prices(text: str | None) -> float | dict[str, float]:
    if text is None:
        return 0.0
    if "=" not in text:
        return quantity(text, "", where="gpu price")
    found = {}
    for part in text.split(","):
        name, _, price = part.partition("=")
        found[name.strip()] = quantity(price, "", where=f"gpu price {name.strip()}")
    return found


def _limit(text: str | None, unit: str, where: str) -> float:
    return UNLIMITED if text is None else quantity(text, unit, where=where)
