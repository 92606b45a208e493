"""How full a server with continuous batching is at a given rate of requests.

x requests start per step: each brings its prompt (L tokens) and keeps a slot for its chunks and
for O - 1 decode steps, so B = x (O - 1) sequences decode in the mean step (Little's law, in
steps) and

    x = rate t(x),    t(x) = mean seconds of a step at B sequences and x L prompt tokens.

For t = a + b B + c p this is t = a / (1 - rate ((O - 1) b + L c)). Two things bound x: `slots`
sequences that may run, x (O - 1 + chunks) <= slots, and the token budget of a step,
x (L + O - 1) <= budget. The capacity is x_max / t(x_max).

Sources: J. Little, "A Proof for the Queuing Formula L = lambda W", Operations Research 9(3),
1961; J. Cohen, "The Multiple Phase Service Network with Generalized Processor Sharing", Acta
Informatica 12, 1979: with a speed that depends on how many are served, their number does not
depend on the distribution of work. A step of a + b B makes it negative binomial.
"""

from jaxtyping import Array, Float

from jaxlens import elementary
from jaxlens.pytrees import pytree
from jaxlens.queueing.step_laws import StepLaw
from jaxlens.smooth import smooth_min

Scalar = Float[Array, ""] | float

STEPS, STEPS_WITH_EXPERTS = 3, 5  # of Newton's method
BOUND_SOFTNESS = 0.01
SERVED_SOFTNESS = 1e-4
FEWEST = 1e-6  # of the capacity: keeps every ratio of rates finite without arrivals
LEAST_FIXED = 0.01  # of a step, whatever it carries
LEAST_BUDGET = 0.1  # of the token budget, left to prompts by the sequences


@pytree
class Server:
    """One replica and pipeline stage: what its steps take and what a request brings."""

    law: StepLaw
    slots: Scalar  # sequences that may run
    budget_tokens: Scalar  # of a step, sequences included
    prompt_tokens: Scalar
    prompt_tokens_cv: Scalar = 0.0
    output_tokens: Scalar
    output_tokens_cv: Scalar = 0.0


@pytree
class Occupancy:
    """The mean step of a server, and its slopes there."""

    rate: Scalar  # requests per second that arrive, a little above zero
    served_rate: Scalar  # at most the capacity
    capacity: Scalar  # requests per second
    utilisation: Scalar
    budget_utilisation: Scalar  # rate over what the token budget alone would allow
    budget_share: Scalar  # of the token budget that the mean step uses
    requests_per_step: Scalar
    step_seconds: Scalar
    sequences: Scalar  # decoding in the mean step
    chunks: Scalar  # steps that a prompt takes
    prompt_share: Scalar  # of a step's budget that one prompt fills, at most 1
    fixed_seconds: Scalar  # of the tangent at the mean step
    sequence_seconds: Scalar
    prompt_seconds: (
        Scalar  # of all tokens of one prompt, above the step that carries it
    )
    prefill_utilisation: Scalar
    crowding: (
        Scalar  # variance over mean of the sequences that decode, Poisson arrivals
    )


def occupancy(server: Server, rate: Scalar) -> Occupancy:
    """Returns the mean step of `server` at `rate` requests per second.

    Beyond the capacity it is the step at capacity.
    """
    decoded = server.output_tokens - 1.0
    budget = server.budget_tokens
    chunks = elementary.maximum(1.0, server.prompt_tokens / budget)
    by_slots = server.slots / (decoded + chunks)
    by_budget = budget / (server.prompt_tokens + decoded)
    most = smooth_min(by_slots, by_budget, BOUND_SOFTNESS)
    capacity = most / _mean_step(server, most)[0]
    budget_capacity = by_budget / _mean_step(server, by_budget)[0]
    rate = rate + FEWEST * capacity
    served = smooth_min(rate, capacity, SERVED_SOFTNESS)
    started = _requests_per_step(server, served, most)
    seconds, _ = _mean_step(server, started)
    sequences = started * decoded
    left = elementary.maximum(budget - sequences, LEAST_BUDGET * budget)
    fixed, sequence, prompt = _tangent(server, started, seconds)
    prefill = served * prompt
    return Occupancy(
        rate=rate,
        served_rate=served,
        capacity=capacity,
        utilisation=rate / capacity,
        budget_utilisation=rate / budget_capacity,
        budget_share=started / by_budget,
        requests_per_step=started,
        step_seconds=seconds,
        sequences=sequences,
        chunks=elementary.maximum(1.0, server.prompt_tokens / left),
        prompt_share=elementary.minimum(1.0, server.prompt_tokens / left),
        fixed_seconds=fixed,
        sequence_seconds=sequence,
        prompt_seconds=prompt,
        prefill_utilisation=prefill,
        crowding=elementary.maximum(1.0, (1.0 - prefill) * seconds / fixed),
    )


def _requests_per_step(server: Server, rate: Scalar, most: Scalar) -> Scalar:
    """The root of x = rate t(x) up to `most`, by Newton's method from above."""
    found = most
    for _ in range(STEPS if server.law.experts is None else STEPS_WITH_EXPERTS):
        seconds, slope = _mean_step(server, found)
        excess = found - rate * seconds
        found = found - excess / elementary.maximum(1.0 - rate * slope, 0.01)
        found = elementary.clip(found, 1e-3 * FEWEST * most, most)
    return found


def _mean_step(server: Server, started: Scalar) -> tuple[Scalar, Scalar]:
    """Mean seconds of a step in which `started` requests start, and its derivative."""
    law, decoded = server.law, server.output_tokens - 1.0
    sequences = started * decoded
    prompt = (
        law.prompt_token(elementary.minimum(sequences, law.slots))
        * server.prompt_tokens
    )
    rise = (law.per_prompt_token_full - law.per_prompt_token) / law.slots
    rise = rise * server.prompt_tokens * started
    experts, per_sequence, per_prompt = _experts(server, started, sequences)
    seconds = law.fixed + law.per_sequence * sequences + prompt * started + experts
    slope = decoded * (law.per_sequence + per_sequence + rise) + prompt + per_prompt
    return seconds, slope


def _experts(
    server: Server, started: Scalar, sequences: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """Seconds for experts in the mean step; more for a sequence, and for a prompt.

    Steps that carry prompts, a share of x / (1 + x), read nearly all experts.
    """
    law = server.law
    if law.experts is None:
        return 0.0, 0.0, 0.0
    reach = sequences + law.expert_tokens
    few = sequences / reach
    more = law.experts_read(sequences + server.prompt_tokens) - few
    plain = 1.0 / (1.0 + started)
    return (
        law.experts * (few + (1.0 - plain) * more),
        law.experts * plain * law.expert_tokens / (reach * reach),
        law.experts * plain * plain * more,
    )


def _tangent(
    server: Server, started: Scalar, seconds: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """Fixed, per sequence and per prompt: the affine law that touches the mean step."""
    law, decoded = server.law, server.output_tokens - 1.0
    sequences = elementary.minimum(started * decoded, law.slots)
    _, per_sequence, per_prompt = _experts(server, started, sequences)
    sequence = elementary.maximum(law.per_sequence + per_sequence, 0.0)
    prompt = law.prompt_token(sequences) * server.prompt_tokens
    prompt = elementary.maximum(prompt + per_prompt, 0.0)
    rest = seconds - started * (decoded * sequence + prompt)
    return elementary.maximum(rest, LEAST_FIXED * seconds), sequence, prompt
