"""Memories: the chunk-parallel scan is the plain recurrence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.memory import Gates, Objective, associative_memory
from tests.memory import plain

WIDTH, LENGTH, CHUNK = 4, 11, 4


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def sequence(seed=0):
    rng = np.random.default_rng(seed)
    k, v, q = rng.normal(size=(3, LENGTH, WIDTH))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    eta, alpha, mu = rng.uniform(0.3, 0.95, size=(3, LENGTH))
    return k, v, q, eta * alpha, alpha, mu


def gates(eta, alpha, mu, momentum):
    log_mu = jnp.log(mu) if momentum else None
    return Gates(jnp.asarray(eta), jnp.log(alpha), log_mu)


@pytest.mark.parametrize(
    ("architecture", "objective", "rule", "momentum"),
    itertools.product(
        ["linear", "mlp"], ["l2", "dot_product"], ["gd", "dgd"], [False, True]
    ),
)
def test_scan_equals_the_plain_recurrence(
    x64, architecture, objective, rule, momentum
):
    memory = associative_memory(
        architecture, objective, rule, momentum=momentum, chunk_size=CHUNK
    )
    state = memory.init(jax.random.key(1), WIDTH, WIDTH)
    state = jax.tree.map(
        lambda a: a.astype(float) if a.dtype == jnp.float32 else a, state
    )
    k, v, q, eta, alpha, mu = sequence()
    truth = plain.Memory(
        state.memory.weights, objective=objective, delta=rule == "dgd"
    )
    expected = []
    for t in range(LENGTH):
        if t % CHUNK == 0:
            truth.begin_chunk()
        expected.append(truth.read(q[t]))
        truth.write(k[t], v[t], eta[t], alpha[t], mu[t] if momentum else None)

    args = [jnp.asarray(a) for a in (k, v, q)]
    o, end = jax.jit(memory.scan)(state, *args, gates(eta, alpha, mu, momentum))
    np.testing.assert_allclose(o, expected, atol=1e-10)
    for ours, theirs in zip(end.memory.weights, truth.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_gradients_reach_every_input_through_the_inner_steps(x64):
    """Against finite differences of the plain recurrence."""
    memory = associative_memory(
        "mlp", "l2", "dgd", momentum=True, chunk_size=CHUNK
    )
    shapes = ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
    rng = np.random.default_rng(3)
    weights = tuple(rng.normal(size=s) / s[0] ** 0.5 for s in shapes)
    k, v, q, eta, alpha, mu = sequence()
    inputs = {"weights": weights, "v": v, "q": q, "eta": eta, "mu": mu}
    mask = np.cos(np.arange(LENGTH * WIDTH)).reshape(LENGTH, WIDTH)

    def ours(i):
        state = memory.init(tuple(map(jnp.asarray, i["weights"])))
        o, _ = memory.scan(
            state,
            jnp.asarray(k),
            i["v"],
            i["q"],
            gates(i["eta"], alpha, i["mu"], True),
        )
        return (o * mask).sum()

    def theirs(i):
        truth = plain.Memory(i["weights"], objective="l2", delta=True)
        total = 0.0
        for t in range(LENGTH):
            if t % CHUNK == 0:
                truth.begin_chunk()
            total += truth.read(i["q"][t]) @ mask[t]
            truth.write(k[t], i["v"][t], i["eta"][t], alpha[t], i["mu"][t])
        return total

    grads = jax.jit(jax.grad(ours))(jax.tree.map(jnp.asarray, inputs))
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape), inputs)
    step = 1e-5

    def moved(sign):
        return jax.tree.map(lambda a, d: a + sign * step * d, inputs, direction)

    for name in inputs:  # One input at a time, so that none hides another.
        only = {
            n: (moved(s)[n] if n == name else inputs[n])
            for s in (1,)
            for n in inputs
        }
        back = {n: (moved(-1)[n] if n == name else inputs[n]) for n in inputs}
        numeric = (theirs(only) - theirs(back)) / (2 * step)
        exact = sum(
            jax.tree.leaves(
                jax.tree.map(jnp.vdot, grads[name], direction[name])
            )
        )
        np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("read", ["before", "after", "chunk"])
def test_any_split_equals_the_whole(read):
    memory = associative_memory(
        "mlp", "l2", "dgd", momentum=True, chunk_size=CHUNK, read=read
    )
    state = memory.init(jax.random.key(1), WIDTH, WIDTH)
    k, v, q, *gating = (a.astype("float32") for a in sequence())
    scan = jax.jit(memory.scan, static_argnames="aligned")

    def run(pieces, **options):
        here, outs = state, []
        for piece in pieces:
            o, here = scan(
                here,
                *(jnp.asarray(a[piece]) for a in (k, v, q)),
                gates(*(a[piece] for a in gating), True),
                **options,
            )
            outs.append(o)
        return jnp.concatenate(outs), here.memory

    whole = run([slice(None)])
    aligned = run([slice(0, CHUNK), slice(CHUNK, None)], aligned=True)
    tokens = run([slice(t, t + 1) for t in range(LENGTH)])
    split = run([slice(0, 5), slice(5, 6), slice(6, None)])
    for other in (tokens, split, aligned):
        for a, b in zip(*map(jax.tree.leaves, (whole, other)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_objective_is_one_function():
    huber = Objective("huber", lambda y, v: optax.huber_loss(y, v).sum(-1))
    memory = associative_memory("linear", huber, "gd", chunk_size=1)
    state = memory.init((jnp.zeros((2, 2)),))
    k, v = jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 9.0]])
    state = memory.write(state, k, v, Gates(jnp.ones(1), jnp.zeros(1)))
    # Huber's gradient is clipped at 1, the L2 loss's would be 9.
    np.testing.assert_allclose(memory.read(state, k), [[0.5, 1.0]], atol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="architecture='tree' must be one of"):
        associative_memory("tree")
    with pytest.raises(ValueError, match="chunk_size=0"):
        associative_memory(chunk_size=0)
    with pytest.raises(ValueError, match="implementation='chunked' must be"):
        associative_memory("mlp", rule="muon", implementation="chunked")
