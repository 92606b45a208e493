"""Time or energy of a step as a law of what it carries, through a few priced steps.

    y(B, p) = fixed + per_sequence B + per_prompt_token(B) p + experts n / (n + h)

with B decoding sequences, p prompt tokens and n = B + p. Weights are read once (fixed), KV
caches and the host grow with B, prompts with their FLOPs. Experts are read as tokens come to
need them: each is hit once on average by h = experts / top-k tokens. A token of a prompt costs
a little more beside more sequences: linear in B between a lone prefill and a full batch.
"""

from dataclasses import replace

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.deployments import Deployment, Workload
from jaxlens.loads import Load, expert_span
from jaxlens.predictions import Estimate
from jaxlens.profiles import Profile
from jaxlens.pytrees import pytree
from jaxlens.serving import Traffic, step, traffic
from jaxlens.transformers import Model

Scalar = Float[Array, ""] | float


@pytree
class StepLaw:
    """What a step takes, in seconds or in joules per GPU."""

    fixed: Scalar
    per_sequence: Scalar
    per_prompt_token: Scalar  # of a lone prefill
    per_prompt_token_full: Scalar  # beside `slots` sequences
    experts: Scalar | None = None  # None: there are none
    expert_tokens: Scalar = 1.0
    slots: Scalar = 1.0

    def prompt_token(self, sequences: Scalar) -> Scalar:
        """Returns what one more token of a prompt takes beside `sequences`."""
        rise = self.per_prompt_token_full - self.per_prompt_token
        return self.per_prompt_token + rise * sequences / self.slots

    def experts_read(self, tokens: Scalar) -> Scalar:
        """Returns the share of all experts that `tokens` come to need, 0 to 1."""
        return tokens / (tokens + self.expert_tokens)

    def at(self, sequences: Scalar, prompt_tokens: Scalar = 0.0) -> Scalar:
        """Returns what a step of `sequences` and `prompt_tokens` takes."""
        plain = self.fixed + self.per_sequence * sequences
        plain = plain + self.prompt_token(sequences) * prompt_tokens
        if self.experts is None:
            return plain
        return plain + self.experts * self.experts_read(sequences + prompt_tokens)


def step_laws(
    model: Model,
    profile: Profile,
    deployment: Deployment,
    workload: Workload,
    estimate: Estimate,
) -> tuple[StepLaw, StepLaw]:
    """Returns the laws of seconds and of joules per GPU, on one replica and stage.

    Exact where the steps were priced: decode steps of the batch limit and of less than one
    sequence, a lone chunk of a prompt, and the mean mixed step at the limit. Models with
    experts have one more decode step priced, near `expert_tokens` sequences.

    Measured: against priced decode steps of 1 to 256 sequences (Llama-3.1-8B and 70B,
    gpt-oss-120b, Qwen3-30B-A3B on H100) seconds are off by at most 2 % for dense models and
    6 % with experts.
    """
    carried = traffic(profile.stack, deployment, workload)
    counts, priced = _decode_steps(model, profile, deployment, carried)
    limit, lone = _priced(deployment, estimate, carried)
    counts = [*counts, carried.decode.decode_sequences]
    scale = _expert_tokens(model, deployment)
    seconds, joules = zip(*priced, strict=True)
    time = _decode_law(counts, [*seconds, limit[0]], scale)
    energy = _decode_law(counts, [*joules, limit[2]], scale)
    return (
        _with_prompts(time, carried, limit[1], lone[0]),
        _with_prompts(energy, carried, limit[3], lone[1]),
    )


def decode_laws(
    model: Model, profile: Profile, deployment: Deployment, workload: Workload
) -> tuple[StepLaw, StepLaw]:
    """Returns the laws of seconds and joules per GPU of steps that carry no prompts.

    Through two decode steps, three with experts; prompts cost nothing.
    """
    carried = traffic(profile.stack, deployment, workload)
    counts, priced = _decode_steps(model, profile, deployment, carried)
    load = carried.decode
    full = step(model, profile.chip, profile.stack, deployment, load, ("decode",))
    seconds, joules = zip(*priced, (full.seconds, full.joules), strict=True)
    counts = [*counts, load.decode_sequences]
    scale = _expert_tokens(model, deployment)
    return (
        _decode_law(counts, list(seconds), scale),
        _decode_law(counts, list(joules), scale),
    )


def prefill_laws(
    model: Model, profile: Profile, deployment: Deployment, workload: Workload
) -> tuple[StepLaw, StepLaw]:
    """Returns the laws of seconds and joules per GPU of steps that carry prompts alone.

    Exact at one chunk of a prompt, with the slope from one to two of them.
    """
    one = traffic(profile.stack, deployment, workload).prefill
    two = replace(one, prefill_sequences=2.0, emitting=2.0 * one.emitting)
    first, second = (
        step(model, profile.chip, profile.stack, deployment, load, ("prefill",))
        for load in (one, two)
    )
    return (
        _prefill_law(first.seconds, second.seconds, one.prefill_tokens),
        _prefill_law(first.joules, second.joules, one.prefill_tokens),
    )


def _prefill_law(one: Scalar, two: Scalar, tokens: Scalar) -> StepLaw:
    """Through a step of one chunk; chunks are no cheaper in pairs than they double."""
    fixed = elementary.maximum(2.0 * one - two, 0.0)
    each = (one - fixed) / tokens
    return StepLaw(
        fixed=fixed,
        per_sequence=0.0,
        per_prompt_token=each,
        per_prompt_token_full=each,
    )


def _decode_steps(
    model: Model, profile: Profile, deployment: Deployment, carried: Traffic
) -> tuple[list[Scalar], list[tuple[Scalar, Scalar]]]:
    """Sequences below the limit, and seconds and joules of decode steps of so many."""
    slots = carried.decode.decode_sequences
    counts = [slots / (1.0 + slots)]
    expert_tokens = _expert_tokens(model, deployment)
    if expert_tokens is not None:
        beyond = expert_tokens + 1.0
        counts.append(beyond * slots / (beyond + slots))
    priced = []
    for count in counts:
        load = Load(
            decode_sequences=count,
            decode_context=carried.decode.decode_context,
            emitting=count,
        )
        found = step(model, profile.chip, profile.stack, deployment, load, ("decode",))
        priced.append((found.seconds, found.joules))
    return counts, priced


def _expert_tokens(model: Model, deployment: Deployment) -> Scalar | None:
    """Tokens of a replica that hit each expert once on average; None without experts."""
    for block in model.blocks:
        if "top_k" in block.sizes:
            needed = block.sizes["z"] / block.sizes["top_k"]
            return needed / expert_span(deployment)
    return None


def _priced(
    deployment: Deployment, estimate: Estimate, carried: Traffic
) -> tuple[tuple[Scalar, Scalar, Scalar, Scalar], tuple[Scalar, Scalar]]:
    """Seconds and joules per GPU of decode and mixed step at the limit, and of a chunk."""
    per_step = deployment.batch / estimate.gpus
    decode_joules = per_step * estimate.joules_decode_per_output_token
    prefill_joules = per_step * estimate.joules_prefill_per_output_token
    chunks = carried.prefill_chunks
    limit = (
        estimate.seconds_decode_step,
        estimate.seconds_mixed_step,
        decode_joules,
        decode_joules + prefill_joules / carried.mixed_share,
    )
    lone = estimate.joules_to_first_token / deployment.tensor_parallel
    return limit, (estimate.seconds_prefill / chunks, lone / chunks)


def _decode_law(
    counts: list[Scalar], decode: list[Scalar], expert_tokens: Scalar | None
) -> StepLaw:
    """The law through decode steps of `counts` sequences; prompts cost nothing."""
    slots = counts[-1]
    if expert_tokens is None:
        slope = (decode[1] - decode[0]) / (slots - counts[0])
        return StepLaw(
            fixed=decode[1] - slope * slots,
            per_sequence=slope,
            per_prompt_token=0.0,
            per_prompt_token_full=0.0,
            slots=slots,
        )
    scale = expert_tokens
    low, middle, high = (count + scale for count in counts)
    first = (decode[1] - decode[0]) / (middle - low)
    second = (decode[2] - decode[1]) / (high - middle)
    # Divided differences of n / (n + h) are h / ((n + h) (m + h)).
    experts = (first - second) * low * middle * high / (scale * (high - low))
    slope = second - experts * scale / (middle * high)
    return StepLaw(
        fixed=decode[2] - slope * slots - experts * slots / high,
        per_sequence=slope,
        per_prompt_token=0.0,
        per_prompt_token_full=0.0,
        experts=experts,
        expert_tokens=scale,
        slots=slots,
    )


def _with_prompts(
    law: StepLaw, carried: Traffic, mixed: Scalar, lone: Scalar
) -> StepLaw:
    """The law with prompts, through a mixed step at the limit and a lone chunk."""
    queries = carried.prefill.prefill_tokens
    tokens = carried.mixed.prefill_sequences * carried.mixed.prefill_tokens
    return replace(
        law,
        per_prompt_token=(lone - law.at(0.0, queries)) / queries,
        per_prompt_token_full=(mixed - law.at(law.slots, tokens)) / tokens,
    )
