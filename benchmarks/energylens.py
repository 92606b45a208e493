"""The study of EnergyLens (arXiv 2605.14249) under this model, ours beside the published.

A100-SXM-80GB; Llama-3-8B on one GPU, Llama-3-70B with tensor parallelism, Qwen3-30B-A3B with
tensor and expert parallelism; prompts of 256 to 8192 tokens in batches of 1 to 64, outputs to
7680 in batches of 1 to 16. The measurements are not public: what is compared are headlines.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens import serving, steps
from jaxlens.deployments import Deployment
from jaxlens.loading import load_model
from jaxlens.optimize.overlap_advice import follow_rules, recall, rule_recall
from jaxlens.optimize.overlap_search import search
from jaxlens.optimize.overlap_spaces import (
    exhaustive_front,
    question,
    split_space,
    splits,
)
from jaxlens.optimize.staging import (
    QUICK,
    Question,
    Split,
    load,
    memory_slack_bytes,
)
from jaxlens.profiles import Profile, load_profile, load_profile_card
from jaxlens.requests import prepare
from jaxlens.transformers import Model

GPU, STACK = "a100-sxm-80gb", "tensorrt-llm-0.9"
PROMPTS = (256, 512, 1024, 2048, 4096, 8192)
PREFILL_BATCHES = (1, 2, 4, 8, 16, 32, 64)
OUTPUTS = (256, 1024, 1920, 3840, 7680)
DECODE_BATCHES = (1, 2, 4, 8, 16)
DECODE_PROMPT = 512  # not published
LLAMA_8B, LLAMA_70B = "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-70B"
QWEN = "Qwen/Qwen3-30B-A3B"
LAYOUTS: dict[str, tuple[tuple[int, int], ...]] = {  # tensor x expert parallel
    LLAMA_8B: ((1, 1),),
    LLAMA_70B: ((2, 1), (4, 1), (8, 1)),
    QWEN: ((2, 2), (4, 4), (4, 2), (2, 1), (4, 1)),
}
OVERLAP = {  # 4 stages, communication on 1, 4 or 16 SMs
    "stages": (1, 4),
    "communication_sms": (1, 4, 16),
    "batch": DECODE_BATCHES,
}


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One published number and ours."""

    name: str
    published: float
    ours: float
    unit: str
    note: str

    @property
    def deviation(self) -> float:
        """Ours over the published, less one."""
        return self.ours / self.published - 1.0


@cache
def _compiled(phase: str, fused: bool) -> Any:
    def one(model: Model, profile: Profile, row: dict[str, Any]) -> dict[str, Any]:
        return _step(model, profile, row, phase, fused)

    return jax.jit(jax.vmap(one, (None, None, 0)), compiler_options=QUICK)


def _step(
    model: Model, profile: Profile, row: dict[str, Any], phase: str, fused: bool
) -> dict[str, Any]:
    """One step without overlap; `fused` off sends every intermediate through HBM."""
    chip, stack = profile.chip, profile.stack
    layout = Deployment(
        batch=row["batch"], tensor_parallel=row["tp"], expert_parallel=row["ep"]
    )
    plain = tuple(replace(block, eager={}) for block in model.blocks)
    carried = load(phase, row["batch"], row["tokens"])
    asked = steps.items(
        model if fused else replace(model, blocks=plain),
        replace(layout, fused=fused),
        carried,
        (phase,),
    )
    parts = steps.lines(asked, serving.machine(chip, stack, layout), 20.0)
    host = serving.host_seconds(stack, layout, carried)
    line = steps.total(parts.values())
    step = serving.settle(line, parts, host, chip, stack, layout)
    floor = (step.static_joules + step.busy_joules) / step.seconds
    reduced = [part for name, part in parts.items() if name.endswith("all-reduce")]
    reduce_joules = sum(p.link_joules + floor * p.seconds for p in reduced)
    done = row["batch"] * (row["tokens"] if phase == "prefill" else 1.0)
    return {
        "seconds": step.seconds,
        "watts": step.joules / step.seconds,
        "joules_per_token": step.joules * row["tp"] / done,
        "all_reduce_share": reduce_joules / step.joules,
        "link_share": step.link_joules / step.joules,
    }


def table(
    name: str, phase: str, fused: bool = True, batches: Sequence[int] = ()
) -> dict[str, np.ndarray]:
    """Returns all settings of a model that fit in memory, as columns.

    Batches are the published ones unless others are given.
    """
    model, profile = load_model(name), load_profile(GPU, STACK)
    batches = batches or (PREFILL_BATCHES if phase == "prefill" else DECODE_BATCHES)
    lengths = (
        PROMPTS
        if phase == "prefill"
        else tuple(DECODE_PROMPT + output / 2 for output in OUTPUTS)
    )
    rows = []
    for (tp, ep), tokens in product(LAYOUTS[name], lengths):
        asked = Question(
            phase=phase,
            model=model,
            profile=profile,
            base=Deployment(expert_parallel=float(ep)),
            tokens=float(tokens),
        )
        most = _largest(asked, tp)
        rows += [(tp, ep, b, tokens) for b in batches if b <= most]
    columns = dict(
        zip(("tp", "ep", "batch", "tokens"), np.array(rows, float).T, strict=True)
    )
    with jax.enable_x64(True):
        args = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), (model, profile))
        given = {key: jnp.asarray(values) for key, values in columns.items()}
        found = jax.device_get(_compiled(phase, fused)(*args, given))
    return {**columns, **found}


def _largest(asked: Question, tp: int) -> float:
    def slack(batch: float) -> float:
        split = Split(
            tensor_parallel=float(tp), batch=batch, stages=1.0, communication_sms=1.0
        )
        return float(memory_slack_bytes(asked, split))

    one, two = slack(1.0), slack(2.0)
    return 0.0 if one < 0.0 else 1.0 + one / max(one - two, 1.0)


def spread(columns: dict[str, np.ndarray]) -> float:
    """Returns the most over the least energy per token."""
    joules = columns["joules_per_token"]
    return float(joules.max() / joules.min())


def fusion_saving(name: str, phase: str) -> np.ndarray:
    """Returns the energy that fusion saves in every setting."""
    fused, apart = (table(name, phase, kind) for kind in (True, False))
    return 1.0 - fused["joules_per_token"] / apart["joules_per_token"]


def overlap_front(tokens: int) -> dict[str, Any]:
    """Returns the front of the published overlap settings at one prompt length."""
    request = prepare(LLAMA_70B, GPU, stack=STACK, deployment=Deployment(overlap=True))
    asked = question(request, "prefill", tokens)
    space = split_space(request, asked, **OVERLAP)
    true, columns = exhaustive_front(asked, space)
    found = search(asked, space)
    values = splits(space, true)
    sequential = values["stages"] == 1.0
    rules = {
        name: rule_recall(positions, priced, true)
        for name, (positions, priced) in follow_rules(asked, space)[0].items()
        if name != "half the SMs"  # not among the published SM counts
    }
    return {
        "tokens": tokens,
        "settings": _settings(space),
        "front": [
            {**{k: float(v[i]) for k, v in values.items()}}
            | {k: float(columns[k][i]) for k in ("seconds", "joules_per_token")}
            for i in range(len(true))
        ],
        "search_recall": recall(found.positions, true),
        "search_false": len(found.positions)
        - round(recall(true, found.positions) * len(found.positions)),
        "recall": rules,
        "tp2_sequential": float(((values["tensor_parallel"] == 2) & sequential).mean()),
        "sequential": float(sequential.mean()),
        "staged_are_fastest": bool(_only_fast(columns["seconds"], sequential)),
    }


def _settings(space: Any) -> int:
    """Settings that fit, one stage counted once."""
    fits = sum(sum(b <= most for b in space.batch) for most in space.largest_batch)
    return fits * (1 + (len(space.stages) - 1) * len(space.communication_sms))


def _only_fast(seconds: np.ndarray, sequential: np.ndarray) -> bool:
    """Whether the staged members are all in the faster half of the front."""
    staged = np.flatnonzero(~sequential)
    return staged.size == 0 or staged.max() < (len(seconds) + 1) / 2


def study(prompts: Sequence[int] = PROMPTS) -> dict[str, Any]:
    """Returns headlines, fronts and what they lean on."""
    tables = {
        (name, phase): table(name, phase)
        for name in LAYOUTS
        for phase in ("prefill", "decode")
    }
    large = {phase: tables[LLAMA_70B, phase] for phase in ("prefill", "decode")}
    reduce = {
        phase: columns["all_reduce_share"][columns["tp"] == 8]
        for phase, columns in large.items()
    }
    tdp = float(load_profile(GPU, STACK).chip.tdp_watts)
    over = {key: tdp / columns["watts"] - 1.0 for key, columns in tables.items()}
    saving = {phase: fusion_saving(LLAMA_8B, phase) for phase in ("prefill", "decode")}
    fronts = [overlap_front(tokens) for tokens in prompts]
    link = load_profile_card(GPU, STACK).coefficients["chip.link_watts"]
    wider = table(LLAMA_70B, "decode", batches=PREFILL_BATCHES)
    eight = large["prefill"]["tp"] == 8
    per_watt = large["prefill"]["link_share"][eight] / float(link.value)
    needed = np.median((0.23 - reduce["prefill"]) / (1.0 - 0.23) / per_watt)
    low, high = (reduce["prefill"].min(), reduce["prefill"].max())
    headlines = [
        Headline(
            name="prefill: energy per token, most over least",
            published=1.47,
            ours=spread(large["prefill"]),
            unit="x",
            note="Llama-3-70B, all prompts, batches and TP that fit",
        ),
        Headline(
            name="decode: energy per token, most over least",
            published=52.9,
            ours=spread(large["decode"]),
            unit="x",
            note="Llama-3-70B, all contexts, batches and TP that fit; with batches to "
            f"64 instead of 16: {spread(wider):.1f}",
        ),
        Headline(
            name="all-reduce share of energy, 70B TP8, prefill (median)",
            published=0.23,
            ours=float(np.median(reduce["prefill"])),
            unit="1",
            note=f"{low:.3f} to {high:.3f} over prompts and batches; leans on link_watts",
        ),
        Headline(
            name="all-reduce share of energy, 70B TP8, decode (median)",
            published=0.23,
            ours=float(np.median(reduce["decode"])),
            unit="1",
            note=f"{reduce['decode'].min():.3f} to {reduce['decode'].max():.3f} over "
            f"contexts and batches; leans on link_watts",
        ),
        Headline(
            name="fusion saving, prefill (median)",
            published=0.044,
            ours=float(np.median(saving["prefill"])),
            unit="1",
            note=f"Llama-3-8B; {saving['prefill'].min():.3f} to "
            f"{saving['prefill'].max():.3f}",
        ),
        Headline(
            name="fusion saving, decode (median)",
            published=0.082,
            ours=float(np.median(saving["decode"])),
            unit="1",
            note=f"Llama-3-8B; {saving['decode'].min():.3f} to "
            f"{saving['decode'].max():.3f}",
        ),
        Headline(
            name="TDP x time over decode energy, most",
            published=0.60,
            ours=max(float(v.max()) for (_, p), v in over.items() if p == "decode"),
            unit="1",
            note="all three models; 70B alone: "
            f"{float(over[LLAMA_70B, 'decode'].max()):.2f}",
        ),
        Headline(
            name="max overlap: recall of the front",
            published=0.20,
            ours=float(np.mean([f["recall"].get("max overlap", 0.0) for f in fronts])),
            unit="1",
            note="mean over prompts; published: against the measured front",
        ),
    ]
    return {
        "gpu": GPU,
        "stack": STACK,
        "settings": {
            f"{name} {phase}": int(columns["batch"].size)
            for (name, phase), columns in tables.items()
        },
        "headlines": [asdict(h) | {"deviation": h.deviation} for h in headlines],
        "spread": {
            f"{name} {phase}": spread(columns)
            for (name, phase), columns in tables.items()
        },
        "fronts": fronts,
        "leans_on": {
            "link_watts": {
                "value": link.value,
                "origin": link.origin,
                "spread": link.spread,
                "for_published_all_reduce_share": float(link.value + needed),
            }
        },
    }


def main() -> None:
    """Prints the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = study()
    if arguments.json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    print(f"{'':58} {'published':>9} {'ours':>8} {'deviation':>9}")
    for line in found["headlines"]:
        print(
            f"{line['name']:58} {line['published']:9.3g} {line['ours']:8.3g} "
            f"{100 * line['deviation']:+8.0f} %  {line['note']}"
        )
    for front in found["fronts"]:
        rules = ", ".join(f"{k} {100 * v:.0f} %" for k, v in front["recall"].items())
        print(
            f"prompt {front['tokens']:5d}: {front['settings']} settings, "
            f"{len(front['front'])} on the front, {100 * front['tp2_sequential']:.0f} % "
            f"sequential TP2, {100 * front['sequential']:.0f} % sequential; staged only "
            f"in the faster half: {front['staged_are_fastest']}; search finds "
            f"{100 * front['search_recall']:.0f} % with {front['search_false']} false; "
            f"rules: {rules}"
        )
    link = found["leans_on"]["link_watts"]
    print(
        f"Shares of communication lean on link_watts = {link['value']:g} W, "
        f"{link['origin']}, log spread {link['spread']}; the published share of the "
        f"all-reduce in prefill would take {link['for_published_all_reduce_share']:.0f} W."
    )


if __name__ == "__main__":
    main()
