"""Every objective of the table, and whatever a user adds to it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.memory import (
    ARCHITECTURES,
    OBJECTIVES,
    RETENTIONS,
    RULES,
    Architecture,
    Gates,
    Objective,
    associative_memory,
    check_memory,
    omega,
)

PAIRS = (
    ("linear", "residual"),
    ("l2", "dot_product"),
    ("gd", "dgd"),
    (True, False),
)
PLAIN = dataclasses.replace(RULES["gd"], normalized=False)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(x64, objective, chunk_size):
    check_memory("linear", objective, PLAIN, chunk_size=chunk_size)


@pytest.mark.slow  # Most stand in test_token_wise and test_deep_memories too.
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(x64, architecture):
    check_memory(architecture, "l2", PLAIN, chunk_size=3, read="after")


@pytest.mark.parametrize("retention", [r for r in RETENTIONS if r != "decay"])
@pytest.mark.slow
def test_every_retention(x64, retention):
    check_memory("mlp", "l2", "gd", chunk_size=3, retention=retention)


@pytest.mark.parametrize(
    "rule", [*RULES.values(), omega(3), omega(2, orthogonal=True)]
)
@pytest.mark.slow
def test_every_rule(x64, rule):
    check_memory("mlp", "l2", rule, chunk_size=3, momentum=True)


# Any three values meet in the quick half.
AFFINE = [
    pytest.param(*case, marks=pytest.mark.slow if odd % 2 else ())
    for odd, case in (
        (sum(bits), [pair[bit] for pair, bit in zip(PAIRS, bits, strict=True)])
        for bits in itertools.product((0, 1), repeat=len(PAIRS))
    )
]


@pytest.mark.parametrize(
    ("architecture", "objective", "rule", "normalized"), AFFINE
)
def test_affine_memories_are_exact_in_parallel(
    x64, monkeypatch, architecture, objective, rule, normalized
):
    """Against the same choices one token after another, each from autodiff."""
    rule = dataclasses.replace(RULES[rule], normalized=normalized)
    plain = dataclasses.replace(ARCHITECTURES[architecture], affine=False)
    rng = np.random.default_rng(0)
    k, v, q = jnp.asarray(rng.normal(size=(3, 9, 4)))
    eta, alpha = jnp.asarray(rng.uniform(0.1, 0.9, (2, 9)))
    gates = Gates(eta / 4, jnp.log(alpha))
    weights = (jnp.asarray(rng.normal(size=(4, 4))),)
    monkeypatch.setattr("nl_jax.memory.associative._PARALLEL", 4)
    for read in ("before", "after", "chunk"):
        found = []
        for which in (architecture, plain):
            memory = associative_memory(
                which, objective, rule, chunk_size=1, read=read
            )
            state = memory.init(weights)
            found.append(jax.jit(memory.scan)(state, k, v, q, gates))
        for a, b in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)


def test_a_wrong_curvature_is_found():
    twice = Objective("twice", lambda y, v: ((y - v) ** 2).sum(-1), 2.0)
    memory = associative_memory("linear", twice, PLAIN, chunk_size=1)
    x = jnp.ones((2, 4))
    gates = Gates(jnp.ones(2), jnp.zeros(2))
    with pytest.raises(ValueError, match="'twice' has curvature"):
        memory.write(memory.init(jax.random.key(0), 4, 4), x, x, gates)


def test_a_memory_that_breaks_its_promises_is_found(x64):
    def looks_ahead(layers, x):
        return layers[0](x) + x[..., ::-1, :].cumsum(-2)[..., ::-1, :]

    base = ARCHITECTURES["linear"]
    ahead = Architecture("ahead", looks_ahead, base.widths, base.gains)
    with pytest.raises(AssertionError, match="is another memory"):
        check_memory(ahead, "l2", PLAIN, chunk_size=3)
    lost = Objective("lost", lambda y, v: jax.lax.stop_gradient(y).sum(-1))
    frozen = dataclasses.replace(
        base, forward=lambda layers, x: 0 * layers[0](x)
    )
    with pytest.raises(AssertionError, match="no gradient of the initial"):
        check_memory(frozen, lost, PLAIN, chunk_size=3, retention="lq")


def test_squares_that_half_precision_cannot_hold():
    """Huber's gradient beyond its threshold, and a layer norm."""
    error = jnp.array([300.0, 400.0], jnp.float16)
    gradient = OBJECTIVES["huber"].gradient(error, 0 * error)
    assert gradient.dtype == jnp.float16
    np.testing.assert_allclose(gradient, [0.6, 0.8], atol=1e-3)
    weights = (300 * jnp.eye(2, dtype=jnp.float16),)
    x = jnp.array([[1.0, -1.0]], jnp.float16)
    y = ARCHITECTURES["linear_norm"].apply(weights, x)
    np.testing.assert_allclose(y, [[2.0, -2.0]], atol=2e-3)
