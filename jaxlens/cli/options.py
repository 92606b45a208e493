"""Options that commands share: what is served, how it is laid out and what is sent."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from jaxlens.cli.files import read_defaults
from jaxlens.cli.quantities import quantity
from jaxlens.deployments import UNLIMITED, Deployment, Workload
from jaxlens.profiles import DEFAULT_STACK
from jaxlens.requests import Request, prepare

LAYOUT, TRAFFIC, COEFFICIENTS = "Layout", "Traffic", "Coefficients"
KNOBS, FORMATS = "Clock, power and communication", "Number formats"

# Any command prints for programs too.
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON in SI units, for programs.")
]


def option(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    """Returns a Typer option in the help panel called `panel`."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)


def number(*names: str, help: str, panel: str, metavar: str, default: str = "") -> Any:
    """Returns a Typer option that is a number."""
    shown = f"{help} Default: {default}." if default else help
    return typer.Option(
        *names,
        help=shown,
        rich_help_panel=panel,
        metavar=metavar,
        show_default=False,
        parser=_parsed_number,
    )


def _parsed_number(text: str | float) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise typer.BadParameter(f"expected a number, got {text!r}") from None


def weights_option(panel: str) -> Any:
    """Returns the option of the format of weights."""
    return option("--weights", help="Format of weights, such as fp8.", panel=panel)


def kv_option(panel: str) -> Any:
    """Returns the option of the format of the KV cache."""
    return option("--kv", help="Format of the KV cache.", panel=panel)


def stack_option(panel: str) -> Any:
    """Returns the option of the serving stack."""
    words = f"Serving stack, id or TOML file; default: {DEFAULT_STACK}."
    return option("--stack", help=words, panel=panel)


def profile_option(panel: str) -> Any:
    """Returns the option of a fitted profile."""
    words = "Fitted profile, from `jaxlens calibrate`."
    return option("--profile", help=words, panel=panel, metavar="FILE")


def network_option(panel: str) -> Any:
    """Returns the option of the rate between nodes."""
    words = "Rate between nodes per GPU, such as 400Gb/s; default: the chip's."
    return option("--network", help=words, panel=panel)


def network_rate(text: str | None) -> float | None:
    """Returns bytes per second between nodes, where stated."""
    return None if text is None else quantity(text, "bytes/s", where="network")


# What is sent, in every command that has traffic.
Prompt = Annotated[
    float,
    number(
        "--prompt",
        help="Prompt tokens.",
        panel=TRAFFIC,
        metavar="TOKENS",
        default="1024",
    ),
]
Output = Annotated[
    float,
    number(
        "--output",
        help="Mean output tokens.",
        panel=TRAFFIC,
        metavar="TOKENS",
        default="256",
    ),
]
OutputCv = Annotated[
    float,
    number(
        "--output-cv",
        help="Spread of output lengths: standard deviation / mean.",
        panel=TRAFFIC,
        metavar="SHARE",
        default="0.5",
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """One deployment and its traffic, as given on the command line."""

    model: Annotated[
        str,
        typer.Argument(
            help="HuggingFace id, or path of a config.json.", show_default=False
        ),
    ]
    gpu: Annotated[
        str | None,
        option("--gpu", "-g", help="Chip id or TOML file.", panel=LAYOUT),
    ] = None
    tp: Annotated[
        float,
        number(
            "--tp", help="Tensor parallel.", panel=LAYOUT, metavar="COUNT", default="1"
        ),
    ] = 1.0
    ep: Annotated[
        float,
        number(
            "--ep",
            help="Expert parallel, over tensor x data parallel ranks.",
            panel=LAYOUT,
            metavar="COUNT",
            default="1",
        ),
    ] = 1.0
    pp: Annotated[
        float,
        number(
            "--pp",
            help="Pipeline parallel.",
            panel=LAYOUT,
            metavar="COUNT",
            default="1",
        ),
    ] = 1.0
    dp: Annotated[
        float,
        number(
            "--dp",
            help="Data parallel: replicas.",
            panel=LAYOUT,
            metavar="COUNT",
            default="1",
        ),
    ] = 1.0
    network: Annotated[str | None, network_option(LAYOUT)] = None
    sequence_parallel: Annotated[
        bool,
        option(
            "--sequence-parallel",
            help="Split element-wise steps over the tensor-parallel ranks.",
            panel=LAYOUT,
        ),
    ] = False
    batch: Annotated[
        float,
        number(
            "--batch",
            "-b",
            help="Sequences in flight, over all replicas.",
            panel=TRAFFIC,
            metavar="COUNT",
            default="1",
        ),
    ] = 1.0
    prompt: Prompt = 1024.0
    output: Output = 256.0
    output_cv: OutputCv = 0.5
    weights: Annotated[str | None, weights_option(FORMATS)] = None
    kv: Annotated[str | None, kv_option(FORMATS)] = None
    stack: Annotated[str | None, stack_option(COEFFICIENTS)] = None
    profile: Annotated[Path | None, profile_option(COEFFICIENTS)] = None
    clock: Annotated[
        str | None,
        option("--clock", help="Locked SM clock, such as 1410MHz.", panel=KNOBS),
    ] = None
    power_cap: Annotated[
        str | None,
        option("--power-cap", help="Limit per GPU, such as 400W.", panel=KNOBS),
    ] = None
    overlap: Annotated[
        bool,
        option(
            "--overlap",
            help="Run products and their collectives in stages.",
            panel=KNOBS,
        ),
    ] = False
    stages: Annotated[
        float | None,
        number(
            "--stages",
            help="Stages of the overlap; implies --overlap.",
            panel=KNOBS,
            metavar="COUNT",
        ),
    ] = None
    comm_sms: Annotated[
        float,
        number(
            "--comm-sms",
            help="SMs that a collective takes while it runs.",
            panel=KNOBS,
            metavar="COUNT",
            default="20",
        ),
    ] = 20.0
    chunk_tokens: Annotated[
        float | None,
        number(
            "--chunk-tokens",
            help="Token budget of a step; default: the stack's.",
            panel=KNOBS,
            metavar="TOKENS",
        ),
    ] = None
    eager: Annotated[
        bool,
        option("--eager", help="One kernel per operation, no fusion.", panel=KNOBS),
    ] = False
    skew: Annotated[
        float,
        number(
            "--skew",
            help="Power-law exponent of the experts' popularity, 0 to 1.",
            panel=KNOBS,
            metavar="EXPONENT",
            default="0",
        ),
    ] = 0.0
    defaults: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="YAML file of options by name (tp: 4); those given here win.",
            metavar="FILE",
            is_eager=True,
            callback=read_defaults,
        ),
    ] = None


def request(options: ServingOptions) -> Request:
    """Returns the checked request that `options` stand for."""
    deployment = Deployment(
        batch=options.batch,
        tensor_parallel=options.tp,
        expert_parallel=options.ep,
        pipeline_parallel=options.pp,
        data_parallel=options.dp,
        clock_hz=_limit(options.clock, "hertz", "clock"),
        power_cap_watts=_limit(options.power_cap, "watts", "power cap"),
        communication_sms=options.comm_sms,
        stages=1.0 if options.stages is None else options.stages,
        chunk_tokens=(
            UNLIMITED if options.chunk_tokens is None else options.chunk_tokens
        ),
        routing_skew=options.skew,
        sequence_parallel=options.sequence_parallel,
        fused=not options.eager,
        overlap=options.overlap or options.stages is not None,
    )
    workload = Workload(
        prompt_tokens=options.prompt,
        output_tokens=options.output,
        output_tokens_cv=options.output_cv,
    )
    return prepare(
        options.model,
        options.gpu,
        stack=options.stack,
        profile=options.profile,
        weights=options.weights,
        kv=options.kv,
        deployment=deployment,
        workload=workload,
        network_bytes_per_s=network_rate(options.network),
    )


def _limit(text: str | None, unit: str, where: str) -> float:
    return UNLIMITED if text is None else quantity(text, unit, where=where)


def with_options(options: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the fields of `options` as options, beside its own.

    The command takes them together, as its parameter `options`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "options"
        ]
        hints = get_type_hints(options, include_extras=True)
        own_hints = get_type_hints(command, include_extras=True)
        shared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=(
                    inspect.Parameter.empty
                    if field.default is dataclasses.MISSING
                    else field.default
                ),
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(options)
        ]
        names = [parameter.name for parameter in shared]

        @functools.wraps(command)
        def flat(**values: Any) -> None:
            command(
                options=options(**{name: values.pop(name) for name in names}), **values
            )

        parameters = [
            parameter.replace(
                kind=inspect.Parameter.KEYWORD_ONLY,
                annotation=own_hints[parameter.name],
            )
            for parameter in own
        ]
        signature = inspect.Signature([*shared, *parameters])
        flat.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        flat.__annotations__ = {
            parameter.name: parameter.annotation for parameter in (*shared, *parameters)
        }
        return flat

    return decorate
