"""Matrix memories equal their papers' recurrences, and their derivatives."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.memory import MATRIX_RULES, diagonal_scan
from tests.memory import papers
from tests.memory.comparisons import close

T, D, CHUNK = 11, 4, 4


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(seed=0):
    """q, k, v, an initial state and every gate that a rule may ask for."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, T, D))
    k = unit(k)
    gates = {
        "log_alpha": np.log(rng.uniform(0.5, 1.0, T)),
        "beta": rng.uniform(0.1, 0.9, T),
        "erase": np.array([0.8]),
        "feedback": np.array([[0.3]]),
        "removal": unit(rng.normal(size=(T, D))),
        "rate": rng.uniform(0.1, 0.9, (T, D)),
    }
    return q, k, v, 0.5 * rng.normal(size=(D, D)), gates


def channels(gates):
    rng = np.random.default_rng(1)
    return gates | {"log_alpha": np.log(rng.uniform(0.3, 1.0, (T, D)))}


CASES = {
    "linear-attention": (
        "hebbian",
        papers.linear_attention,
        lambda g: g | {"log_alpha": np.zeros(T)},
    ),
    "retnet": (
        "hebbian",
        papers.retention,
        lambda g: g | {"log_alpha": np.full(T, np.log(1 - 2.0**-5))},
    ),
    "gla": ("hebbian", papers.gated_linear_attention, channels),
    "deltanet": (
        "delta",
        papers.gated_delta_rule,
        lambda g: g | {"log_alpha": np.zeros(T)},
    ),
    "gated-deltanet": ("delta", papers.gated_delta_rule, lambda g: g),
    "longhorn": (
        "longhorn",
        papers.longhorn,
        lambda g: g | {"log_alpha": np.zeros(T)},
    ),
    "comba": ("comba", papers.comba, lambda g: g),
    "oja": ("oja", papers.oja, lambda g: g),
    "rwkv7": ("rwkv7", papers.rwkv7, channels),
}
every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def ours(name, dtype="float64"):
    """``(state [d_k, d_v], q, k, v, gates) -> (o, state)`` of a rule."""
    rule = MATRIX_RULES[CASES[name][0]]

    def run(s, *args):
        q, k, v, gates = jax.tree.map(lambda a: a.astype(dtype), args)
        o, w = rule.scan(
            s.astype(dtype)[None], q, k, v, gates, chunk_size=CHUNK
        )
        return o, w[0]

    return jax.jit(run)


@every_case
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-6)]
)
def test_equals_the_paper(name, dtype, bound):
    """Outputs and final state, from an initial state, at a ragged length."""
    q, k, v, s, gates = draw()
    _, paper, change = CASES[name]
    gates = change(gates)
    expected, end = paper(s, q, k, v, gates)
    with jax.enable_x64(dtype == "float64"):
        args = jax.tree.map(jnp.asarray, (s.T, q, k, v, gates))
        o, w = ours(name, dtype)(*args)
        np.testing.assert_allclose(o, expected, atol=bound, rtol=bound)
        np.testing.assert_allclose(w.T, end, atol=bound, rtol=bound)


@every_case
def test_gradient_equals_the_papers_slope(name):
    """Along random directions of everything: state, q, k, v and gates."""
    q, k, v, s, gates = draw()
    _, paper, change = CASES[name]
    gates = change(gates)
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(T, D)), rng.normal(size=(D, D))
    used = (*MATRIX_RULES[CASES[name][0]].gates, "log_alpha")
    gates = {n: gates[n] for n in used}
    if name in ("linear-attention", "retnet", "deltanet", "longhorn"):
        used = tuple(n for n in used if n != "log_alpha")  # Constants there.

    def value(run, transpose, s, q, k, v, gates):
        o, end = run(s.T if transpose else s, q, k, v, gates)
        end = end.T if transpose else end
        return sum((w * a).sum() for w, a in zip(weights, (o, end)))  # noqa: B905

    def plain(*args):
        return value(lambda *a: map(np.asarray, paper(*a)), False, *args)

    point = (s, q, k, v, gates)
    way = jax.tree.map(lambda a: rng.normal(size=a.shape), point)
    way[4].update({n: 0 * way[4][n] for n in gates if n not in used})
    # A complex step: exact, and the papers' formulas alone.
    moved = jax.tree.map(lambda a, d: a + 1e-30j * d, point, way)
    slope = plain(*moved).imag / 1e-30

    def gradient(dtype):
        own = jax.grad(
            lambda *a: value(ours(name, dtype), True, *a), (0, 1, 2, 3, 4)
        )
        return jax.jit(own)(
            *jax.tree.map(lambda a: jnp.asarray(a, dtype), point)
        )

    with jax.enable_x64(True):
        grads = gradient("float64")
        found = sum(
            (g * d).sum()
            for g, d in zip(*map(jax.tree.leaves, (grads, way)), strict=True)
        )
        np.testing.assert_allclose(found, slope, rtol=1e-10)
    for a, b in zip(
        *map(jax.tree.leaves, (gradient("float32"), grads)), strict=True
    ):
        close(a, np.asarray(b), 1e-6)


@every_case
def test_any_split_gives_the_same(name):
    with jax.enable_x64(True):
        q, k, v, s, gates = draw()
        gates = CASES[name][2](gates)
        q, k, v, s, gates = jax.tree.map(jnp.asarray, (q, k, v, s.T, gates))
        whole, end = ours(name)(s, q, k, v, gates)
        outs, state = [], s
        for at, to in ((0, 1), (1, 6), (6, T)):
            part = {
                n: g[at:to] if g.shape[0] == T else g for n, g in gates.items()
            }
            o, state = ours(name)(state, q[at:to], k[at:to], v[at:to], part)
            outs.append(o)
        np.testing.assert_allclose(jnp.concatenate(outs), whole, atol=1e-12)
        np.testing.assert_allclose(state, end, atol=1e-12)


@every_case
def test_documents_begin_with_an_empty_memory(name):
    """At a chunk's start, inside one, and twice in one."""
    q, k, v, s, gates = draw()
    _, paper, change = CASES[name]
    gates = change(gates)
    starts = np.isin(np.arange(T), (2, 4, 5, 7))
    expected = []
    for at, to in itertools.pairwise((0, 2, 4, 5, 7, T)):
        part = {n: g[at:to] if g.shape[0] == T else g for n, g in gates.items()}
        begin = s if at == 0 else np.zeros_like(s)
        o, end = paper(begin, q[at:to], k[at:to], v[at:to], part)
        expected.append(o)
    with jax.enable_x64(True):
        given = jax.tree.map(jnp.asarray, (s.T[None], q, k, v, gates))
        rule = MATRIX_RULES[CASES[name][0]]
        scan = jax.jit(functools.partial(rule.scan, chunk_size=CHUNK))
        o, w = scan(*given, resets=jnp.asarray(starts))
    np.testing.assert_allclose(o, np.concatenate(expected), atol=1e-10)
    np.testing.assert_allclose(w[0].T, end, atol=1e-10)


def test_a_gate_of_zero_forgets_a_channel_and_nothing_else():
    k, none = jnp.eye(2)[None, :1] * 0, jnp.zeros((1, 1, 2))
    gone = jnp.array([[[-jnp.inf, 0.0]]])
    w = jnp.arange(4.0).reshape(1, 2, 2)
    o, end = diagonal_scan(w, k, none, jnp.ones((1, 1, 2)), gone)
    np.testing.assert_allclose(end[0], [[0, 0], [2, 3]], atol=1e-7)
    np.testing.assert_allclose(o[0, 0], [2, 3], atol=1e-6)
    grads = jax.grad(lambda g: diagonal_scan(w, k, none, k, g)[1].sum())(gone)
    assert np.isfinite(grads).all()


def test_bad_arguments_are_named():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="chunk_size=0 must be"):
        diagonal_scan(jnp.eye(2), x, x, x, x, chunk_size=0)
    with pytest.raises(ValueError, match="a and b are given together"):
        diagonal_scan(jnp.eye(2), x, x, x, x, x)
