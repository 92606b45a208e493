"""A server with continuous batching, simulated step by step: the reference of queueing.

Every step decodes one token of each running sequence; prompts fill what is left of the token
budget, first come first served, in chunks. A prompt starts only if fewer than `slots`
sequences decode or prefill. The step that finishes a prompt gives its first token. A server
with nothing to do waits for the next arrival and starts at once.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

StepSeconds = Callable[[int, int], float]  # decoding sequences, prompt tokens


@dataclass(frozen=True)
class Observed:
    """What requests and tokens saw, after the warm-up."""

    ttft_seconds: np.ndarray  # per request
    tpot_seconds: np.ndarray  # per request, mean over its tokens after the first
    token_seconds: np.ndarray  # per token after the first
    busy_share: float
    running: float  # mean decoding sequences over time
    tokens_per_second: float


def arrival_times(
    random: np.random.Generator, rate: float, burstiness: float, count: int
) -> np.ndarray:
    """Returns arrivals whose gaps have a squared coefficient of variation `burstiness`.

    Above 1 a hyperexponential mixture of two rates with balanced means, else a gamma.
    """
    if burstiness <= 1.0:
        shape = 1.0 / max(burstiness, 1e-6)
        return np.cumsum(random.gamma(shape, 1.0 / (shape * rate), count))
    often = 0.5 * (1.0 + np.sqrt((burstiness - 1.0) / (burstiness + 1.0)))
    chosen = np.where(random.random(count) < often, often, 1.0 - often)
    return np.cumsum(random.exponential(1.0 / (2.0 * chosen * rate)))


def output_lengths(
    random: np.random.Generator, mean: float, cv: float, count: int
) -> np.ndarray:
    """Returns whole lengths of at least 1, gamma distributed around `mean`."""
    if cv == 0.0:
        return np.full(count, round(mean))
    shape = 1.0 / cv**2
    lengths = random.gamma(shape, mean / shape, count)
    return np.maximum(1, np.round(lengths)).astype(int)


def simulate(
    step_seconds: StepSeconds,
    arrivals: np.ndarray,
    outputs: np.ndarray,
    prompt: int,
    slots: int,
    budget: int,
    warm_up: float = 0.1,
) -> Observed:
    """Returns what the requests saw; the first and last `warm_up` of them do not count."""
    count = arrivals.size
    due, first, last = arrivals.tolist(), np.full(count, np.nan), np.full(count, np.nan)
    ends: dict[int, list[int]] = defaultdict(list)  # by step
    times, sequences, starts = [], [], []
    now = busy = 0.0
    decoding = begun = step = arrived = 0
    partial: list[int] = []  # the prompt in progress, and tokens left of it
    while begun < count or partial or decoding:
        while arrived < count and due[arrived] <= now:
            arrived += 1
        if not decoding and not partial and begun == arrived:
            now = due[begun]
            continue
        left, finished = budget - decoding, []
        carried = 0
        while left > 0:
            if not partial:
                if begun == arrived or decoding + len(finished) >= slots:
                    break
                partial = [begun, prompt]
                begun += 1
            taken = min(left, partial[1])
            left, carried, partial[1] = (
                left - taken,
                carried + taken,
                partial[1] - taken,
            )
            if partial[1] == 0:
                finished.append(partial[0])
                partial = []
        seconds = step_seconds(decoding, carried)
        times.append(seconds)
        sequences.append(decoding)
        starts.append(now)
        now += seconds
        busy += seconds
        step += 1
        for request in ends.pop(step, ()):
            last[request] = now
            decoding -= 1
        for request in finished:
            first[request] = now
            if outputs[request] > 1:
                ends[step + outputs[request] - 1].append(request)
                decoding += 1
            else:
                last[request] = now
    return _observed(
        arrivals, outputs, first, last, np.array(times), np.array(sequences),
        np.array(starts), warm_up,
    )  # fmt: skip


def _observed(
    arrivals: np.ndarray,
    outputs: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    times: np.ndarray,
    sequences: np.ndarray,
    starts: np.ndarray,
    warm_up: float,
) -> Observed:
    edge = int(warm_up * arrivals.size)
    inner = slice(edge, arrivals.size - edge)
    long = outputs[inner] > 1
    decode = (last - first)[inner][long] / (outputs[inner][long] - 1)
    begin, end = arrivals[edge], arrivals[-edge - 1]
    window = (starts >= begin) & (starts < end)
    spent = times[window]
    return Observed(
        ttft_seconds=(first - arrivals)[inner],
        tpot_seconds=decode,
        token_seconds=np.repeat(spent, sequences[window]),
        busy_share=float(spent.sum() / (end - begin)),
        running=float((spent * sequences[window]).sum() / (end - begin)),
        tokens_per_second=float(sequences[window].sum() / (end - begin)),
    )
