"""Windows, orthogonal steps and retentions equal their papers' recurrences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.memory import (
    ARCHITECTURES,
    RULES,
    Gates,
    associative_memory,
    linear,
    omega,
    polynomial,
)
from tests.memory import papers
from tests.memory.comparisons import (
    check_slope,
    check_splits,
    close,
    gradient_and_outputs,
)

T, D, CHUNK, WINDOW = 7, 3, 3, 3


def plain(rule):
    return dataclasses.replace(rule, normalized=False)


def looks_back(architecture, muon):
    options = {
        "forward": papers.FORWARDS[architecture],
        "loss": papers.LOSSES["l2"],
        "chunk": CHUNK,
        "window": WINDOW,
        "muon": muon,
    }
    own = {"rule": plain(omega(WINDOW, orthogonal=muon)), "momentum": True}
    return architecture, own, papers.omega, options


def keeps(architecture, objective, retention, update, **options):
    options |= {
        "forward": papers.FORWARDS[architecture],
        "loss": "huber" if objective == "gated_huber" else objective,
        "chunk": CHUNK,
        "update": update,
    }
    own = {
        "objective": objective,
        "rule": plain(RULES["gd"]),
        "retention": retention,
    }
    return architecture, own, papers.miras, options


CASES = {
    "omega": looks_back("mlp", False),
    "atlas": looks_back("polynomial_mlp", True),
    "moneta": keeps(
        "mlp",
        "lp",
        "lq",
        papers.moneta,
        weights_of=papers.moneta_weights,
    ),
    "yaad": keeps("mlp_norm", "gated_huber", "decay", papers.moneta),
    "memora": keeps("mlp", "l2", "kl", papers.memora),
    "l2": keeps("gated_mlp", "l2", "l2", papers.weight_decay),
    "elastic": keeps("mlp_3", "l2", "elastic", papers.elastic),
    "channel": keeps("mlp", "dot_product", "channel", papers.by_channel),
    "polynomial": keeps("polynomial_linear", "l2", "decay", papers.moneta),
}
every_case = pytest.mark.parametrize("name", CASES)


def draw(name):
    """Weights, q, k, v, eta and the other gates of a case."""
    rng = np.random.default_rng(0)
    # Behind a layer norm of three channels float32 keeps no six digits.
    d = 2 * D if CASES[name][0].endswith("norm") else D
    shapes = ARCHITECTURES[CASES[name][0]].widths(d, d, 2)
    weights = [rng.normal(size=s) / s[0] ** 0.5 for s in shapes]
    q, k, v = rng.normal(size=(3, T, d))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    eta, alpha, mu, share = rng.uniform(0.2, 0.9, size=(4, T))
    eta /= 4  # Longer steps overshoot, and float32 loses digits with them.
    if name == "channel":
        alpha = rng.uniform(0.2, 0.9, (T, D))
    gates = (eta, alpha, 3 * mu)  # Some errors are beyond it, some are not.
    if CASES[name][2] is papers.omega:
        gates = (eta, alpha, mu, share)
    return (weights, q, k, v, *gates)


def paper(name, weights, *args):
    _, _, run, options = CASES[name]
    if name == "memora":  # Its state is on the simplex, ours are the logits.
        weights = [papers.simplex(w) for w in weights]
    return run(weights, *args, **options)


@functools.cache
def memory(name):
    architecture, own, _, _ = CASES[name]
    return associative_memory(
        architecture, **own, chunk_size=CHUNK, read="after"
    )


def make_gates(name, eta, alpha, *more):
    if CASES[name][2] is papers.omega:
        mu, share = more
        return Gates(eta, jnp.log(alpha), jnp.log(mu), share)
    threshold = more[0] if name == "yaad" else None
    return Gates(eta, jnp.log(alpha), threshold=threshold)


def ours(name, weights, q, k, v, *gates):
    own = memory(name)
    o, state = own.scan(
        own.init(tuple(weights)), k, v, q, make_gates(name, *gates)
    )
    end = list(state.memory.weights)
    if name == "memora":
        end = [papers.simplex(w) for w in end]
    return o, end


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        # Without fused multiply-adds these two keep no six digits.
        pytest.param(name, *exact, marks=pytest.mark.optimised)
        if name in ("atlas", "moneta") and exact[0] == "float32"
        else (name, *exact)
        for name in CASES
        for exact in (("float64", 1e-10), ("float32", 1e-6))
    ],
)
def test_equals_the_paper(name, dtype, bound):
    args = draw(name)
    expected, end = paper(name, *args)
    with jax.enable_x64(dtype == "float64"):
        _, (o, weights) = gradient_and_outputs(ours, name, args, dtype)
        close(o, np.array(expected), bound)
        for w, other in zip(weights, end, strict=True):
            close(w, other, bound)


@every_case
def test_gradient_equals_the_papers_slope(name):
    check_slope(paper, ours, name, draw(name))


@pytest.mark.parametrize("name", ["atlas", "elastic", "channel"])
def test_any_split_gives_the_same(name):
    with jax.enable_x64(True):
        weights, q, k, v, *gates = jax.tree.map(jnp.asarray, draw(name))
        own, gates = memory(name), make_gates(name, *gates)
        check_splits(own, weights, k, v, q, gates)


@pytest.mark.parametrize("rule", ["gd", "dgd"])
def test_token_by_token_equals_the_chunk_form_where_both_hold(rule):
    """Momentum, decay, delta term, normalised steps: two ways, one memory."""
    with jax.enable_x64(True):
        weights, q, k, v, eta, alpha, mu = jax.tree.map(jnp.asarray, draw("l2"))
        gates = Gates(eta, jnp.log(alpha), jnp.log(mu / 3))
        found = []
        for retention in ("decay", "channel"):
            own = associative_memory(
                "gated_mlp",
                "l2",
                rule,
                retention=retention,
                momentum=True,
                chunk_size=CHUNK,
            )
            if retention == "channel":
                every = jnp.broadcast_to(gates.log_alpha[:, None], (T, D))
                gates = gates._replace(log_alpha=every)
            state = own.init(tuple(weights))
            found.append(jax.jit(own.scan)(state, k, v, q, gates))
        for a, b in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_products_of_channels_are_seen():
    """Inner products of monomials are <x, y> + <x, y>^2 / 2."""
    wide = polynomial(linear, 2, cross=True)
    x, y = np.random.default_rng(0).normal(size=(2, 1, D))
    (rows,) = {shape[0] for shape in wide.widths(D, D, 1)}
    features = wide.apply((jnp.eye(rows),), jnp.asarray([x[0], y[0]]))
    dot = float((x * y).sum())
    np.testing.assert_allclose(
        features[0] @ features[1], dot + dot**2 / 2, rtol=1e-5
    )
    np.testing.assert_allclose(features[0], papers.monomials(x[0]), rtol=1e-5)
    assert wide.width((jnp.zeros((rows, D)),)) == D


def test_choices_that_do_not_go_together_are_named():
    with pytest.raises(ValueError, match="retention='kl' goes with rules"):
        associative_memory("mlp", "l2", "dgd", retention="kl")
    with pytest.raises(ValueError, match="window=4 goes with delta=False"):
        dataclasses.replace(RULES["dgd"], window=4)
    with pytest.raises(ValueError, match="retention='mean' goes with"):
        associative_memory("mlp", "l2", omega(), retention="mean")
    own = associative_memory("mlp", "gated_huber", "gd")
    x = jnp.ones((2, 3))
    gates = Gates(jnp.ones(2), jnp.zeros(2))
    with pytest.raises(ValueError, match="'gated_huber' needs gates"):
        own.write(own.init(jax.random.key(0), 3, 3), x, x, gates)
