"""`jaxlens advise batch`: the batch that serves most, and replicas in the memory it frees."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlens.caveats import notes
from jaxlens.cli.jax_settings import stay_on_cpu
from jaxlens.cli.options import Json, ServingOptions, request, with_options
from jaxlens.cli.pictures import check_picture
from jaxlens.cli.quantities import quantity
from jaxlens.cli.tables import (
    print_json,
    print_line,
    print_notes,
    print_table,
    scaled,
    share,
    signed_share,
)

if TYPE_CHECKING:
    from jaxlens.optimize.batch_advice import BatchAdvice, Replicas
    from jaxlens.optimize.throughput_curves import MeasuredRun

REASONS = {
    "throughput": "a larger batch serves less",
    "efficiency": "a larger batch falls below the least efficiency",
    "TPOT": "a larger batch misses the TPOT limit",
    "memory": "a larger batch does not fit in memory",
    "most": "a larger batch was not asked about",
}
EXAMPLES = """
[bold]Examples[/bold]

jaxlens advise batch facebook/opt-1.3b -g h100-sxm-64gb --stack vllm-memory-gap
--prompt 111 --output 292 --efficiency 0.1 --plot batch.png

A limit on the time per output token, absolute or over that of a lone sequence:

jaxlens advise batch meta-llama/Llama-3.1-8B -g h100-sxm --tpot 30ms

jaxlens advise batch meta-llama/Llama-3.1-8B -g h100-sxm --tpot 2x --json

Replicas gain what the host wastes. A measured run of one replica pins that down (its mean
batch, time per output token and power):

jaxlens advise batch facebook/opt-2.7b -g h100-sxm-64gb --stack vllm-memory-gap
--measured 90:20.4ms:318W
"""


@with_options(ServingOptions)
def command(
    options: ServingOptions,
    tpot: Annotated[
        str | None,
        typer.Option(
            help="Longest mean time per output token: 50ms, or 2x that of one sequence."
        ),
    ] = None,
    efficiency: Annotated[
        float,
        typer.Option(help="Least throughput over that of as many lone sequences."),
    ] = 0.1,
    most: Annotated[
        int, typer.Option(help="Largest batch of a replica to consider.")
    ] = 1024,
    replicas: Annotated[int, typer.Option(help="Most replicas on one GPU.")] = 8,
    measured: Annotated[
        str | None,
        typer.Option(
            help="A run of one replica to start from, BATCH:TPOT or BATCH:TPOT:POWER.",
            metavar="RUN",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw throughput by batch to this file (png, svg, pdf)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The batch of most throughput within limits, and replicas in the memory it frees.

    B_opt maximises T(B) under the TPOT limit while T(B) / (B T(1)) stays above the least
    efficiency. Beyond it the KV cache and the latency grow, and little else. Further replicas
    on the same GPU work while the host of one prepares its next step.
    """
    if plot is not None:
        check_picture(plot)
    if options.batch != 1.0:
        raise ValueError(
            "batch: expected none, as it is what is searched; --most bounds it."
        )
    stay_on_cpu()
    from jaxlens.optimize.batch_advice import advise_batch

    seconds, ratio = _limit(tpot)
    advice = advise_batch(
        request(options),
        tpot_seconds=seconds,
        tpot_ratio=ratio,
        efficiency=efficiency,
        most_sequences=most,
        most_replicas=replicas,
        measured=_measured(measured),
    )
    if plot is not None:
        from jaxlens.cli.advise.pictures import draw_batches

        draw_batches(advice, plot)
    if as_json:
        print_json(content(advice))
    else:
        show(advice)
        if plot is not None:
            print_line(f"picture: {plot}")


def content(advice: "BatchAdvice") -> dict[str, Any]:
    """Returns the whole answer for programs."""
    asked, curve = advice.request, advice.curve
    names = [name for name in vars(curve) if name != "batch"]
    return {
        "model": asked.shape.name,
        "gpu": asked.card.chip,
        "stack": asked.card.stack,
        "batch": advice.batch,
        "reason": advice.reason,
        "tpot_limit_seconds": advice.tpot_seconds,
        "least_efficiency": advice.efficiency,
        "largest_batch_in_memory": advice.largest_batch,
        "single_tokens_per_second": advice.single_tokens_per_second,
        **{name: float(getattr(curve, name)[advice.batch - 1]) for name in names},
        "kv_bytes": float(advice.memory.kv_bytes),
        "kv_bytes_freed": advice.kv_bytes_freed,
        "replicas": [vars(found) for found in advice.replicas],
        "advised_replicas": advice.advised.count,
        "commands": _commands(advice),
        "curve": {
            "batch": curve.batch.tolist(),
            **{name: getattr(curve, name).tolist() for name in names},
        },
        "notes": _notes(advice),
    }


def show(advice: "BatchAdvice") -> None:
    """Prints the answer for people."""
    asked, curve = advice.request, advice.curve
    print_line(
        f"{asked.shape.name} on {asked.card.chip} under {asked.card.stack}: batch "
        f"{advice.batch}; {REASONS[advice.reason]}",
        style="bold",
    )
    print_table(
        ("", "batch", "tokens/s", "TPOT", "J/token", "power", "efficiency"),
        [
            (
                words,
                f"{curve.batch[row]:.0f}",
                f"{curve.output_tokens_per_second[row]:,.0f}",
                scaled(float(curve.seconds_per_output_token[row]), "s"),
                scaled(float(curve.joules_per_output_token[row]), "J"),
                f"{curve.watts_per_gpu[row]:.0f} W",
                share(float(curve.efficiency[row])),
            )
            for row, words in _rows(advice).items()
        ],
    )
    freed = advice.kv_bytes_freed
    print_line(
        f"KV cache {scaled(float(advice.memory.kv_bytes), 'B')}; {scaled(freed, 'B')} less "
        f"than that of {advice.largest_batch} sequences"
    )
    print_table(
        (
            "replicas",
            "batch",
            "tokens/s",
            "TPOT",
            "J/token",
            "power",
            "busy",
            "gain",
            "",
        ),
        [_share_row(found, advice) for found in advice.replicas],
        title=f"replicas on {'one GPU' if asked.gpus == 1 else 'the same GPUs'}",
    )
    for line in _commands(advice):
        print_line(f"  {line}")
    print_notes(_notes(advice))


def _rows(advice: "BatchAdvice") -> dict[int, str]:
    """Powers of two, the advised batch and the largest: rows of the curve with words."""
    last = len(advice.curve.batch)
    rows = {2**power - 1: "" for power in range(last.bit_length())}
    rows |= {last - 1: "largest", advice.batch - 1: "advised"}
    return dict(sorted(rows.items()))


def _share_row(found: "Replicas", advice: "BatchAdvice") -> tuple[str, ...]:
    return (
        f"{found.count}",
        f"{found.batch}",
        f"{found.output_tokens_per_second:,.0f}",
        scaled(found.seconds_per_output_token, "s"),
        scaled(found.joules_per_output_token, "J"),
        f"{found.watts_per_gpu:.0f} W",
        share(found.busy_share),
        signed_share(found.throughput_gain),
        "advised" if found is advice.advised else "",
    )


def _commands(advice: "BatchAdvice") -> list[str]:
    """What to set in an engine for the advised replicas."""
    best = advice.advised
    lines = [f"per replica: at most {best.batch} running sequences"]
    if best.count > 1:
        lines.append(
            f"{best.count} replicas on one GPU, each with {share(best.memory_share)} of "
            f"its memory, under a process-sharing service (nvidia-cuda-mps-control -d)"
        )
    if advice.request.card.engine == "vllm":
        lines.append(
            f"vllm serve {advice.request.shape.name} --max-num-seqs {best.batch} "
            f"--gpu-memory-utilization {best.memory_share:.2f}"
        )
    return lines


def _limit(text: str | None) -> tuple[float | None, float | None]:
    """Seconds, or a multiple of the time of one sequence."""
    if text is None:
        return None, None
    if text.endswith("x"):
        try:
            return None, float(text[:-1])
        except ValueError:
            raise ValueError(f"tpot: expected 50ms or 2x, got {text!r}.") from None
    return quantity(text, "seconds", where="tpot"), None


def _measured(text: str | None) -> "MeasuredRun | None":
    if text is None:
        return None
    from jaxlens.optimize.throughput_curves import MeasuredRun

    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(
            f"measured: expected BATCH:TPOT or BATCH:TPOT:POWER, such as "
            f"90:20.4ms:318W, got {text!r}."
        )
    try:
        sequences = float(parts[0])
    except ValueError:
        raise ValueError(
            f"measured: expected a batch first, got {parts[0]!r}."
        ) from None
    watts = quantity(parts[2], "watts", where="measured") if len(parts) > 2 else None
    return MeasuredRun(
        batch=sequences,
        seconds_per_output_token=quantity(parts[1], "seconds", where="measured"),
        watts_per_gpu=watts,
    )


def _notes(advice: "BatchAdvice") -> list[str]:
    return list(dict.fromkeys([*advice.notes, *notes(advice.request)]))
