"""Derivatives of energy and latency in every knob and coefficient.

Everything runs without compilation, batched: one row for each point or each step of a
finite difference.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import keystr

from jaxlens import Deployment, Workload, load_model, load_profile, predict

OUTPUTS = ("joules_per_output_token", "seconds_per_output_token", "seconds_prefill")
MODELS = {
    "dense": ("meta-llama/Llama-3.1-8B", {"overlap": True}),
    "experts": (
        "Qwen/Qwen3-30B-A3B",
        {"overlap": True, "sequence_parallel": True},
    ),
    "latent": ("deepseek-ai/DeepSeek-V3", {"overlap": True}),
    "hybrid": ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", {}),
    "window": ("openai/gpt-oss-20b", {"fused": False}),
}
PROFILE = load_profile("h100-sxm", "vllm-0.11")
CHIP = PROFILE.chip
# Between all kinks; the cap is out of reach.
INTERIOR = {
    "batch": 37.0,
    "tensor_parallel": 3.3,
    "expert_parallel": 5.1,
    "pipeline_parallel": 1.7,
    "data_parallel": 2.2,
    "clock_hz": 0.83 * float(CHIP.boost_hz),
    "power_cap_watts": 0.97 * float(CHIP.tdp_watts),
    "communication_sms": 18.0,
    "stages": 2.4,
    "chunk_tokens": 700.0,
    "routing_skew": 0.3,
}
LENGTHS = {"prompt_tokens": 1500.0, "output_tokens": 300.0, "output_tokens_cv": 0.6}


def arguments(knobs, structure):
    """Deployment, workload and profile with `knobs` away from the interior point."""
    layout = {k: knobs.get(k, v) for k, v in INTERIOR.items()}
    lengths = {k: knobs.get(k, v) for k, v in LENGTHS.items()}
    deployment, workload = Deployment(**layout, **structure), Workload(**lengths)
    return jax.tree.map(jnp.float64, (deployment, workload, PROFILE))


NAMES = [
    keystr(path, simple=True, separator=".").split(".", 1)[1]
    for path, _ in jax.tree.leaves_with_path(arguments({}, {}))
]


# One row for each corner of the domain, then some of them together.
CORNERS = [
    {"batch": 1.0},
    {"batch": 8192.0},
    {"tensor_parallel": 1.0},
    {"tensor_parallel": 64.0},
    {"expert_parallel": 1.0},
    {"tensor_parallel": 4.0, "data_parallel": 1.0, "expert_parallel": 4.0},
    {"tensor_parallel": 1.0, "data_parallel": 8.0, "expert_parallel": 8.0},
    {"tensor_parallel": 8.0, "data_parallel": 8.0, "expert_parallel": 64.0},
    {"pipeline_parallel": 1.0, "data_parallel": 1.0},
    {"pipeline_parallel": 16.0},
    {"clock_hz": 1.0},
    {"clock_hz": 1e15},
    {"power_cap_watts": 50.0},
    {"power_cap_watts": 1e15},
    {"communication_sms": 1.0},
    {"communication_sms": 120.0},
    {"stages": 1.0},
    {"stages": 32.0},
    {"chunk_tokens": 16.0},
    {"chunk_tokens": 1e15},
    {"routing_skew": 0.0},
    {"routing_skew": 1.0},
    {"prompt_tokens": 0.0},
    {"prompt_tokens": 1.0},
    {"prompt_tokens": 1e6},
    {"output_tokens": 1.0},
    {"output_tokens": 1e5},
    {"output_tokens_cv": 0.0},
]
SMALLEST = {
    "batch": 1.0,
    "tensor_parallel": 1.0,
    "expert_parallel": 1.0,
    "pipeline_parallel": 1.0,
    "data_parallel": 1.0,
    "stages": 1.0,
    "routing_skew": 0.0,
    "prompt_tokens": 1.0,
    "output_tokens": 1.0,
    "output_tokens_cv": 0.0,
}
CORNERS += [SMALLEST, {**SMALLEST, "batch": 64.0}, {**SMALLEST, "prompt_tokens": 4e3}]


# Where a minimum, a maximum or the number of ranks changes sides, by model.
KINKS = {
    "dense": [
        ("tensor_parallel", 8.0, {}),  # KV heads, and GPUs of a node
        ("tensor_parallel", 2.0, {}),
        ("pipeline_parallel", 2.0, {"tensor_parallel": 4.0}),
        ("clock_hz", float(CHIP.knee_hz), {}),
        ("clock_hz", float(CHIP.max_hz), {}),
        ("clock_hz", float(CHIP.min_hz), {}),
        ("power_cap_watts", float(CHIP.tdp_watts), {}),
        ("power_cap_watts", 400.0, {"clock_hz": float(CHIP.boost_hz)}),
        ("chunk_tokens", 1500.0, {}),  # the prompt
        ("prompt_tokens", 700.0, {}),  # the budget
        ("stages", 1.0, {}),
        ("tensor_parallel", 1.0, {}),
    ],
    "experts": [
        ("expert_parallel", 4.0, {"tensor_parallel": 4.0, "data_parallel": 1.0}),
        ("expert_parallel", 4.0, {"tensor_parallel": 2.0, "data_parallel": 2.0}),
        ("tensor_parallel", 4.0, {"expert_parallel": 4.0}),
        ("routing_skew", 0.0, {}),
        ("expert_parallel", 1.0, {}),
    ],
    "window": [
        ("prompt_tokens", 128.0, {}),  # the window
        ("prompt_tokens", 128.0 - 0.5 * 300.0 * 1.36, {}),  # the window of decode
        ("tensor_parallel", 8.0, {}),
    ],
}
ONLY_ABOVE = {("stages", 1.0), ("tensor_parallel", 1.0), ("expert_parallel", 1.0)}


NEAR, STEP = 1e-4, 1e-6
ROWS = 72  # of every batch, so that all of them share compiled operations


def moved(kink, offset):
    knob, value, others = kink
    return {**others, knob: value + (value or 1.0) * offset}


def batched(function, rows):
    rows = np.asarray(rows)
    padding = np.broadcast_to(rows[:1], (-len(rows) % ROWS, rows.shape[1]))
    parts = np.split(np.concatenate([rows, padding]), -(-len(rows) // ROWS))
    return np.concatenate([np.asarray(function(part)) for part in parts])[: len(rows)]


class Explored:
    """Values and Jacobians of one model at the interior point, corners and kinks."""

    def __init__(self, family):
        name, structure = MODELS[family]
        model = load_model(name)
        _, restore = ravel_pytree(arguments({}, structure))

        def answers(vector):
            deployment, workload, profile = restore(vector)
            estimate = predict(model, profile, deployment, workload)
            return jnp.stack([getattr(estimate, name) for name in OUTPUTS])

        def vectors(rows):
            return [ravel_pytree(arguments(knobs, structure))[0] for knobs in rows]

        kinks = KINKS.get(family, [])
        at = [{}, *CORNERS, *(moved(k, o) for k in kinks for o in (-NEAR, NEAR, 0.0))]
        assert len(at) <= ROWS
        jacobians = batched(jax.vmap(jax.jacrev(answers)), vectors(at))
        self.interior, self.corners = jacobians[0], jacobians[1 : len(CORNERS) + 1]
        self.kinks = jacobians[len(CORNERS) + 1 :].reshape(-1, 3, *jacobians.shape[1:])
        self.point = np.asarray(vectors([{}])[0])
        steps = STEP * np.diag(self.point)
        sides = (-NEAR - STEP, -NEAR + STEP, NEAR - STEP, NEAR + STEP)
        beside = vectors(moved(kink, side) for kink in kinks for side in sides)
        rows = [self.point, *vectors(CORNERS), *(self.point + steps)]
        values = batched(jax.vmap(answers), [*rows, *(self.point - steps), *beside])
        self.value, self.corner_values = values[0], values[1 : len(CORNERS) + 1]
        start, size = len(CORNERS) + 1, len(self.point)
        self.above, self.below = values[start:][:size], values[start + size :][:size]
        self.beside = values[start + 2 * size :].reshape(-1, 4, len(OUTPUTS))


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def explored(family):
    return Explored(family)


def test_gradients_agree_with_finite_differences_in_all_arguments(explored):
    exact = explored.interior * explored.point / explored.value[:, None]
    numeric = (explored.above - explored.below).T / (2 * STEP * explored.value[:, None])
    for name, analytic, difference in zip(NAMES, exact.T, numeric.T, strict=True):
        np.testing.assert_allclose(
            analytic, difference, rtol=2e-3, atol=2e-5, err_msg=name
        )


def test_gradients_are_finite_over_the_whole_domain(explored):
    for corner, value, jacobian in zip(
        CORNERS, explored.corner_values, explored.corners, strict=True
    ):
        assert np.all(np.isfinite(value)) and np.all(value > 0.0), corner
        for name, row in zip(NAMES, jacobian.T, strict=True):
            assert np.all(np.isfinite(row)), f"{name} at {corner}"


def test_gradients_beside_and_at_kinks(family, explored):
    assert np.all(np.isfinite(explored.kinks))
    for (knob, value, _), found, jacobian in zip(
        KINKS.get(family, []), explored.beside, explored.kinks, strict=True
    ):
        left = (found[1] - found[0]) / (2 * STEP)
        right = (found[3] - found[2]) / (2 * STEP)
        below, above, at = jacobian[:, :, NAMES.index(knob)] * (value or 1.0)
        atol = 2e-4 * np.abs(found[0])
        where = f"{knob} = {value}"
        close = {"rtol": 5e-3, "err_msg": where}
        np.testing.assert_allclose(above / atol, right / atol, atol=1.0, **close)
        if (knob, value) in ONLY_ABOVE or value == 0.0:
            continue
        np.testing.assert_allclose(below / atol, left / atol, atol=1.0, **close)
        low, high = np.minimum(left, right), np.maximum(left, right)
        margin = atol + 0.02 * (high - low)
        assert np.all(at >= low - margin) and np.all(at <= high + margin), where


def test_float32_gives_the_same_gradients():
    model = load_model(MODELS["dense"][0])
    model = replace(model, blocks=model.blocks[:1])  # attention is the hardest

    def gradient(dtype):
        tree = jax.tree.map(dtype, (Deployment(**INTERIOR), Workload(**LENGTHS)))
        profile, narrow = (jax.tree.map(dtype, item) for item in (PROFILE, model))

        def joules(tree):
            return predict(narrow, profile, *tree).joules_per_output_token

        return np.asarray(ravel_pytree(jax.grad(joules)(tree))[0], np.float64)

    point = np.asarray(ravel_pytree((Deployment(**INTERIOR), Workload(**LENGTHS)))[0])
    wide, narrow = gradient(jnp.float64) * point, gradient(jnp.float32) * point
    np.testing.assert_allclose(narrow, wide, atol=1e-3 * np.max(np.abs(wide)))
