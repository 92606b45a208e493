"""Latency and energy of a token as a formula of a dozen positive numbers.

Times at datasheet rates, each of one thing that a step does, for G = T D P GPUs (tensor, data
and pipeline parallel), b sequences in flight, prompt p and output o:

    weights      (W / T P + A W_e / G) / bandwidth          W dense, W_e expert bytes
    cache        b K(c) / (G bandwidth)                     K bytes a sequence, c its context
    products     b r F / (G peak)                           F flop a token, r = 1 + p / o
    tiles        A 128 2 W_e / (G peak)                     fp8 experts fill whole tiles
    layers       L                                          seconds of a layer: launches
    collectives  L log2(T)                                  ... and their startups
    messages     b r L 4 d (1 - 1 / T) / (D link)           all-reduce in 16 bits
    step         1                                          seconds of a step: host
    sequences    b / D                                      ... and of a sequence

A = 1 - (1 - k / E)^(b r) is the share of E experts that b r tokens with k picks each reach.
Latency of a token is a weighted sum of the nine, and energy takes the power limit N of a GPU
for shares of the time:

    t = sum_i a_i tau_i,
    J = (G N / b) (e_0 t + e_weights tau_weights + e_cache tau_cache + e_products tau_products).

All thirteen coefficients are positive, by least squares in relative error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import jax.numpy as jnp
import numpy as np

from jaxlens.calibration.measured_tables import Table
from jaxlens.calibration.serving_rows import (
    GROUP_ROWS,
    deployment_of,
    workload_of,
)
from jaxlens.deployments import Deployment
from jaxlens.loading import load_model
from jaxlens.loads import Load
from jaxlens.memory import sequence_bytes, weights_bytes
from jaxlens.models import load_shape
from jaxlens.profiles import load_chip
from jaxlens.shapes import Experts
from jaxlens.steps import items
from jaxlens.works import Work

TERMS = (
    "weights",
    "cache",
    "products",
    "tiles",
    "layers",
    "collectives",
    "messages",
    "step",
    "sequences",
)
DRAWING = ("weights", "cache", "products")  # what takes power beyond a running GPU's
ENERGY_TERMS = ("time", *DRAWING)
TILE_ROWS = 128.0  # of a product with one fp8 scale per 128 x 128 block
REWEIGHTINGS = 10
NOISE = 0.15  # scale of a relative residual beyond which a row counts less


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a formula knows of a model."""

    layers: float
    width: float
    dense_bytes: float
    expert_bytes: float
    experts: float
    top_k: float
    flop_per_token: float
    fp8_share: float  # of the feed-forward or expert products
    block_scaled: float  # 1 for fp8 with a scale per block


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """Thirteen coefficients; 0 for a term that does not help."""

    latency: Mapping[str, float]  # by term: a_i
    energy: Mapping[str, float]  # by energy term: e_i

    def seconds(self, terms: "Terms") -> np.ndarray:
        """Returns the latency of a token."""
        return terms.seconds @ np.array([self.latency[name] for name in TERMS])

    def joules(self, terms: "Terms") -> np.ndarray:
        """Returns the energy of an output token."""
        weights = np.array([self.energy[name] for name in ENERGY_TERMS])
        return _energy_columns(terms, self.seconds(terms)) @ weights

    def __str__(self) -> str:
        """The formula, zero terms left out."""
        latency = " + ".join(f"{a:.3g} {n}" for n, a in self.latency.items() if a > 0.0)
        energy = " + ".join(f"{e:.3g} {n}" for n, e in self.energy.items() if e > 0.0)
        return f"t = {latency};  J = (G N / b) ({energy})"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of rows, free of coefficients."""

    seconds: np.ndarray  # row x term
    watts_per_sequence: np.ndarray  # G N / b
    flop_per_output_token: np.ndarray

    def subset(self, rows: np.ndarray) -> "Terms":
        """Returns the terms of `rows`."""
        return Terms(**{name: value[rows] for name, value in vars(self).items()})


def closed_form_terms(table: Table) -> Terms:
    """Returns the terms of the rows of a serving table."""
    layout, lengths = deployment_of(table), workload_of(table)
    sizes = [_size(*key) for key in _formats(table)]
    size = {
        name: np.array([getattr(s, name) for s in sizes]) for name in vars(sizes[0])
    }
    chips = [load_chip(str(name)) for name in table["gpu"]]

    def chip(name: str) -> np.ndarray:
        return np.array([float(getattr(c, name)) for c in chips])

    tensor, data = map(np.asarray, (layout.tensor_parallel, layout.data_parallel))
    stages, batch = map(np.asarray, (layout.pipeline_parallel, layout.batch))
    gpus = tensor * data * stages
    passes = 1.0 + np.asarray(lengths.prompt_tokens) / np.asarray(lengths.output_tokens)
    tokens = batch * passes
    reached = 1.0 - (1.0 - size["top_k"] / size["experts"]) ** tokens
    fp8, bf16 = chip("peak_fp8_flop_per_s"), chip("peak_bf16_flop_per_s")
    peak = np.where(size["fp8_share"] > 0.5, fp8, bf16)
    dense = size["dense_bytes"] / (tensor * stages)
    experts = reached * size["expert_bytes"] / gpus
    padded = TILE_ROWS * 2.0 * experts * size["block_scaled"]  # one byte an element
    activations = 4.0 * size["width"] * size["layers"] * (1.0 - 1.0 / tensor)
    columns = {
        "weights": (dense + experts) / chip("hbm_bytes_per_s"),
        "cache": batch * _cached_bytes(table) / gpus / chip("hbm_bytes_per_s"),
        "products": tokens * size["flop_per_token"] / gpus / peak,
        "tiles": padded / peak,
        "layers": size["layers"],
        "collectives": size["layers"] * np.log2(tensor),
        "messages": tokens * activations / data / chip("link_bytes_per_s"),
        "step": np.ones(len(table)),
        "sequences": batch / data,
    }
    return Terms(
        seconds=np.stack([columns[name] for name in TERMS], axis=1),
        watts_per_sequence=gpus * chip("tdp_watts") / batch,
        flop_per_output_token=passes * size["flop_per_token"],
    )


def _formats(table: Table) -> list[tuple[str, str, str]]:
    """Model and number formats of each row; empty where a table does not say."""
    unsaid = [""] * len(table)
    names = ("model", "weight_dtype", "kv_dtype")
    words = [map(str, table.columns.get(name, unsaid)) for name in names]
    return list(zip(*words, strict=True))


@cache
def _size(model_id: str, weights: str, kv: str) -> Size:
    model = load_model(model_id, weights=weights or None, kv=kv or None)
    shape, one, formats = load_shape(model_id), Deployment(), model.formats.weights
    feeds = [feed for feed in shape.feeds if isinstance(feed, Experts)]
    routed = 0.0
    for feed in feeds:
        count = feed.layers * feed.experts * feed.matrices * feed.width * shape.width
        routed += count * formats["experts"].bytes_per_element
    asked = items(
        model, one, Load(decode_sequences=1.0, decode_context=1.0), ("decode",)
    )
    flop = sum(i.layers * i.asks.flop for i in asked if isinstance(i.asks, Work))
    return Size(
        layers=float(sum(mixer.layers for mixer in shape.mixers)),
        width=float(model.width),
        dense_bytes=float(weights_bytes(model, one)) - float(routed),
        expert_bytes=float(routed),
        experts=float(feeds[0].experts) if feeds else 1.0,
        top_k=float(feeds[0].top_k) if feeds else 1.0,
        flop_per_token=float(flop),
        fp8_share=float(formats["experts" if feeds else "feed_forward"].fp8_share),
        block_scaled=float(model.formats.block_scaled),
    )


def _cached_bytes(table: Table) -> np.ndarray:
    """Bytes of cache and state of a sequence at its mean context, on one GPU."""
    lengths = workload_of(table)
    spread = np.asarray(lengths.output_tokens_cv)
    output = np.asarray(lengths.output_tokens) * (1.0 + spread * spread)
    context = np.asarray(lengths.prompt_tokens) + 0.5 * output
    keys = _formats(table)
    held = np.zeros(len(table))
    for key in dict.fromkeys(keys):
        rows = np.flatnonzero([other == key for other in keys])
        model = load_model(key[0], weights=key[1] or None, kv=key[2] or None)
        # Eager operations compile once per shape: rows are padded to few sizes.
        padded = np.resize(context[rows], -(-len(rows) // GROUP_ROWS) * GROUP_ROWS)
        sizes = sequence_bytes(model, Deployment(), jnp.asarray(padded))
        held[rows] = np.broadcast_to(np.asarray(sizes), padded.shape)[: len(rows)]
    return held


def fit_closed_form(
    terms: Terms, seconds: Sequence[float] | np.ndarray, joules: np.ndarray
) -> ClosedForm:
    """Returns the formula closest to latency and energy of a token, per row.

    Give measurements, or what a fitted profile predicts: then it is distilled.

    Args:
        terms: Of the rows.
        seconds: Latency of a token: concurrency / output tokens per second.
        joules: Energy of an output token.
    """
    seconds, joules = np.asarray(seconds, float), np.asarray(joules, float)
    for name, values in (("seconds", seconds), ("joules", joules)):
        if values.shape != (len(terms.seconds),) or not (values > 0.0).all():
            raise ValueError(
                f"closed form: expected {name} above 0 for each of "
                f"{len(terms.seconds)} rows, got others; leave such rows out."
            )
    latency = _relative_fit(terms.seconds, seconds)
    columns = _energy_columns(terms, terms.seconds @ latency)
    energy = _relative_fit(columns, joules)
    return ClosedForm(
        latency=dict(zip(TERMS, latency.tolist(), strict=True)),
        energy=dict(zip(ENERGY_TERMS, energy.tolist(), strict=True)),
    )


def _energy_columns(terms: Terms, seconds: np.ndarray) -> np.ndarray:
    drawing = terms.seconds[:, [TERMS.index(name) for name in DRAWING]]
    columns = np.concatenate([seconds[:, None], drawing], axis=1)
    return columns * terms.watts_per_sequence[:, None]


def _relative_fit(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Positive least squares of columns / values against 1, far rows counting less."""
    relative = columns / values[:, None]
    weights = np.ones(len(values))
    found = np.zeros(columns.shape[1])
    for _ in range(REWEIGHTINGS):
        root = np.sqrt(weights)
        found = positive_least_squares(relative * root[:, None], root)
        # Relative to the middle of both, so that twice and half are as far off.
        said = np.maximum(relative @ found, 1e-3)
        residual = (said - 1.0) / np.sqrt(said)
        weights = 1.0 / (said * np.sqrt(1.0 + (residual / NOISE) ** 2))
    return found


def positive_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns x >= 0 of least |matrix x - target|, by an active set.

    Source: C. Lawson, R. Hanson, "Solving Least Squares Problems", 1974, chapter 23.

    >>> positive_least_squares(np.eye(2), np.array([2.0, -1.0])).tolist()
    [2.0, 0.0]
    """
    scale = np.sqrt(np.sum(matrix * matrix, axis=0))
    scaled = matrix / np.where(scale > 0.0, scale, 1.0)
    count = matrix.shape[1]
    free, x = np.zeros(count, bool), np.zeros(count)
    tolerance = 1e-10 * max(float(np.abs(scaled.T @ target).max()), 1e-300)
    for _ in range(10 * count):
        slope = scaled.T @ (target - scaled @ x)
        slope[free] = -np.inf
        if free.all() or slope.max() <= tolerance:
            break
        free[int(np.argmax(slope))] = True
        while True:
            tried = np.zeros(count)
            tried[free] = np.linalg.lstsq(scaled[:, free], target, rcond=None)[0]
            negative = free & (tried <= 0.0)
            if not negative.any():
                break
            gaps = x[negative] / (x[negative] - tried[negative])
            x = x + float(gaps.min()) * (tried - x)
            free &= x > 1e-14
            x[~free] = 0.0
        x = tried
    return x / np.where(scale > 0.0, scale, 1.0)
