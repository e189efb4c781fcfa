"""Memories that learn by gradient descent equal their papers' recurrences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.memory import ARCHITECTURES, RULES, Gates, associative_memory
from tests.memory import papers
from tests.memory.comparisons import (
    check_slope,
    check_splits,
    gradient_and_outputs,
)

T, D, CHUNK = 7, 6, 3
PLAIN = dataclasses.replace(RULES["gd"], normalized=False)

# Architecture, objective, whether a chunk's gradients are averaged.
CASES = {
    "titans": ("mlp", "l2", False),
    "dla": ("mlp", "dot_product", False),
    "yaad": ("mlp", "huber", False),
    "moneta": ("linear", "lp", False),
    "ttt-linear": ("linear_norm", "l2", True),
    "ttt-mlp": ("mlp_norm", "l2", True),
}
every_case = pytest.mark.parametrize("name", CASES)


def draw(name):
    """Weights, q, k, v, eta, alpha, mu."""
    rng = np.random.default_rng(0)
    shapes = ARCHITECTURES[CASES[name][0]].widths(D, D, 2)
    weights = [rng.normal(size=s) / s[0] ** 0.5 for s in shapes]
    eta, alpha, mu = rng.uniform(0.2, 0.9, size=(3, T))
    q, k, v = rng.normal(size=(3, T, D))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    # Longer steps overshoot, and float32 loses digits with them.
    return weights, q, k, v, eta / 4, alpha, mu


def paper(name, weights, q, k, v, eta, alpha, mu):
    architecture, objective, mean = CASES[name]
    options = {
        "forward": papers.FORWARDS[architecture],
        "loss": papers.LOSSES[objective],
        "chunk": CHUNK,
    }
    if mean:
        return papers.ttt(weights, q, k, v, eta, **options)
    return papers.titans(weights, q, k, v, eta, alpha, mu, **options)


@functools.cache
def memory(name):
    architecture, objective, mean = CASES[name]
    return associative_memory(
        architecture,
        objective,
        PLAIN,
        momentum=not mean,
        chunk_size=CHUNK,
        read="after",
        retention="mean" if mean else "decay",
    )


def ours(name, weights, q, k, v, eta, alpha, mu):
    own, mean = memory(name), CASES[name][2]
    state = own.init(tuple(weights))
    gates = Gates(eta, jnp.log(alpha), None if mean else jnp.log(mu))
    o, state = own.scan(state, k, v, q, gates, aligned=True)
    return o, list(state.memory.weights)


@every_case
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-6)]
)
def test_equals_the_paper(name, dtype, bound):
    args = draw(name)
    expected, end = paper(name, *args)
    with jax.enable_x64(dtype == "float64"):
        _, (o, weights) = gradient_and_outputs(ours, name, args, dtype)
        np.testing.assert_allclose(o, expected, atol=bound, rtol=bound)
        for w, other in zip(weights, end, strict=True):
            np.testing.assert_allclose(w, other, atol=bound, rtol=bound)


@every_case
def test_gradient_equals_the_papers_slope(name):
    check_slope(paper, ours, name, draw(name))


@pytest.mark.parametrize("name", ["titans", "ttt-mlp"])
def test_any_split_gives_the_same(name):
    with jax.enable_x64(True):
        weights, q, k, v, eta, alpha, mu = jax.tree.map(jnp.asarray, draw(name))
        own, mean = memory(name), CASES[name][2]
        gates = Gates(eta, jnp.log(alpha), None if mean else jnp.log(mu))
        check_splits(own, weights, k, v, q, gates)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="retention='mean' goes with rule"):
        associative_memory("linear", "l2", "dgd", retention="mean")
    with pytest.raises(ValueError, match="chunk_size=0 must be"):
        associative_memory(chunk_size=0)
