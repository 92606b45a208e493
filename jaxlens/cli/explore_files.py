"""Files that `jaxlens explore` leaves: a recommendation to run, a report to look at."""

from pathlib import Path
from typing import Any

from jaxlens import exploring
from jaxlens.cli.explore_content import asked_formats
from jaxlens.exploring import ExploreResult

BINDS = {
    "largest batch": "the batch is the largest that was tried",
    "power cap": "the power cap lowers the clock",
}


def check_file(path: Path, option: str, suffixes: tuple[str, ...]) -> None:
    """Raises `ValueError` unless a file can be left at `path`."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"{option}: expected a file that ends in {', '.join(suffixes)}, got {path}."
        )
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"{option}: expected a folder that exists, got {path.parent}; create it."
        )


def write_recommendation(
    result: ExploreResult, content: dict[str, Any], index: int, path: Path
) -> None:
    """Writes the recommended deployment, with why and who comes next."""
    from jaxlens import recommendations

    plan = result.plans[int(result.columns["gpu"][index])]
    arrivals, formats = result.arrivals, asked_formats(plan)
    recommendations.write(
        exploring.request(result, index),
        None,
        path,
        model=str(plan.kind["model"]),
        gpu=str(plan.kind["gpu"]),
        stack=None if plan.kind.get("stack") is None else str(plan.kind["stack"]),
        limits={name: float(value) for name, value in vars(result.limits).items()},
        why=[_sentence(name) for name in content["why"]["binds"]],
        runner_up=content["why"]["runner_up"],
        requests_per_second=(
            None if arrivals is None else float(arrivals.requests_per_second)
        ),
        weights=formats["weights"],
        kv=formats["kv"],
    )


def write_page(result: ExploreResult, content: dict[str, Any], path: Path) -> None:
    """Writes the report: one page that works offline."""
    from jaxlens.report import write_report

    commands = {"server": content["serve_command"]}
    if content["gpu_commands"]:
        commands["clocks and power"] = "\n".join(content["gpu_commands"])
    write_report(result, path, commands=commands)


def _sentence(reason: str) -> str:
    if reason in BINDS:
        return BINDS[reason]
    return f"a neighbour that is better is ruled out: {exploring.REASONS[reason]}"
