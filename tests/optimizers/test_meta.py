"""Meta-learning: gradients, truncation, what it is good for, and its state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from nl_jax import optimizers as nl

CURVATURE = np.array([4.0, 1.0, 0.25])


def task(rng):
    """A valley of the same shape everywhere, with its minimum anywhere."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    hessian = jnp.asarray(turn * CURVATURE @ turn.T, jnp.float32)
    goal = jax.random.normal(rng, (1, 3))

    def loss(w, rng):
        del rng
        return 0.5 * jnp.sum((w - goal) @ hessian * (w - goal))

    return jnp.zeros((1, 3)), loss


def deep(learning_rate, inner_rate, retention):
    return nl.deep_momentum(
        learning_rate,
        architecture="residual",
        objective="dot_product",
        gain=1.0,
        inner=optax.sgd(inner_rate),
        retention=retention,
    )


def injected(rate=0.3, retention=0.9):
    return optax.inject_hyperparams(deep)(
        learning_rate=rate, inner_rate=0.01, retention=retention
    )


def loss_after(tx, steps, seeds=range(100, 116)):
    """Last loss, on tasks that were not learned on."""

    @jax.jit
    def one(seed):
        w, loss = task(jax.random.key(seed))

        def step(carry, _):
            w, state = carry
            value, g = jax.value_and_grad(loss)(w, None)
            updates, state = tx.update(g, state, w)
            return (optax.apply_updates(w, updates), state), value

        return jax.lax.scan(step, (w, tx.init(w)), length=steps)[1][-1]

    return np.mean([one(seed) for seed in seeds])


@pytest.fixture(scope="module")
def learned():
    return nl.meta_learn(
        injected(0.2, 1.0),
        task,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.03)),
        meta_steps=150,
        steps=16,
        truncation=8,
        bounds={"retention": (0.99, 1.0)},
    )


def test_what_is_learned_is_the_curvature_and_serves_other_tasks(learned):
    """All valleys share a Hessian; the memory comes to hold its inverse."""
    rates = (0.1, 0.2, 0.3, 0.4, 0.5)
    best = min(loss_after(injected(r, k), 16) for r in rates for k in (0.9, 1))
    assert loss_after(learned, 16) < 1e-3 * best
    state = learned.init(jnp.zeros((1, 3)))
    step = np.eye(3) + np.asarray(state.inner_state[0].memory[0][0])
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    rate = float(state.hyperparams["learning_rate"])
    # What is left of an error along each axis of the valley, after a step.
    left = 1 - rate * np.diag(turn.T @ step @ turn) * CURVATURE
    assert np.abs(left).max() < 0.6, left


def test_it_is_a_plain_transformation(learned, tmp_path):
    w = jnp.zeros((1, 3))
    state = learned.init(w)
    assert np.abs(state.inner_state[0].memory[0]).max() > 0.01
    assert 0.99 <= state.hyperparams["retention"] <= 1
    chained = optax.chain(optax.clip_by_global_norm(1.0), learned)
    update = jax.jit(chained.update, donate_argnums=1)
    out, _ = update(jnp.ones((1, 3)), chained.init(w), w)
    assert np.isfinite(out).all()
    base = injected()
    ocp.save(tmp_path / "state", state)
    loaded = ocp.load(tmp_path / "state", base.init(w))
    restored = nl.begin_with(base, loaded)
    g = jnp.array([[1.0, -2.0, 0.5]])
    np.testing.assert_array_equal(
        restored.update(g, restored.init(w), w)[0],
        learned.update(g, learned.init(w), w)[0],
    )


def meta_gradient(steps, truncation, tx):
    """Minus the change under one outer step of gradient descent at rate 1."""
    before = tx.init(jnp.zeros((1, 3)))
    found = nl.meta_learn(
        tx,
        task,
        optax.sgd(1.0),
        meta_steps=1,
        tasks=1,
        steps=steps,
        truncation=truncation,
    ).init(jnp.zeros((1, 3)))
    return jax.tree.map(
        lambda a, b: a - b if jnp.issubdtype(a.dtype, jnp.floating) else 0,
        before,
        found,
    )


def drawn_task():
    """The task that ``meta_learn`` draws first with seed 0 and one task."""
    rng = jax.random.split(jax.random.fold_in(jax.random.key(0), 1), 1)[0]
    return task(jax.random.split(rng)[0])


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        tx = injected()
        got = meta_gradient(4, None, tx)
        w, loss = drawn_task()
        state = tx.init(w)

        def mean_loss(state, count=4):
            w, total = jnp.zeros((1, 3)), 0.0
            for _ in range(count):
                value, g = jax.value_and_grad(loss)(w, None)
                updates, state = tx.update(g, state, w)
                w, total = optax.apply_updates(w, updates), total + value
            return total / count

        leaves, treedef = jax.tree.flatten(state)
        checked = 0
        for i, leaf in enumerate(leaves):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                continue
            at, h = (0,) * leaf.ndim, 1e-3
            ends = [
                mean_loss(
                    treedef.unflatten(
                        [*leaves[:i], leaf.at[at].add(s * h), *leaves[i + 1 :]]
                    )
                )
                for s in (1, -1)
            ]
            slope = (ends[0] - ends[1]) / (2 * h)
            found = jax.tree.leaves(got)[i][at]
            np.testing.assert_allclose(found, slope, rtol=2e-3, atol=2e-5)
            checked += 1
        assert checked == 4  # Three hyperparameters, one memory.


def test_truncated_gradients():
    """Rates act in each window, the initial memory in the first one only."""
    whole, cut = (meta_gradient(8, t, injected()) for t in (8, 4))
    first = meta_gradient(4, 4, injected())

    def memory(state):
        return np.asarray(state.inner_state[0].memory[0])

    def rate(state):
        return float(state.hyperparams["learning_rate"])

    np.testing.assert_allclose(memory(cut), memory(first) / 2, rtol=1e-4)
    assert np.abs(memory(whole) - memory(cut)).max() > 1e-4
    assert abs(rate(cut) - rate(first) / 2) > 1e-4
    assert abs(rate(cut) - rate(whole)) > 1e-4


def test_truncation_needs_less_memory(monkeypatch):
    """What stays for the backward pass: windows' beginnings, not every step."""
    sizes = {}
    real = jax.jit

    def spy(f, **options):
        jitted = real(f, **options)
        if f.__name__ != "meta_step":
            return jitted

        def call(*args):
            compiled = jitted.lower(*args).compile()
            sizes[len(sizes)] = compiled.memory_analysis().temp_size_in_bytes
            return jitted(*args)

        return call

    monkeypatch.setattr(jax, "jit", spy)

    def wide(rng):
        del rng
        return jnp.ones((64, 64)), lambda w, rng: jnp.sum(w**2)

    for truncation in (256, 16):
        nl.meta_learn(
            optax.inject_hyperparams(optax.sgd)(0.01, momentum=0.9),
            wide,
            optax.sgd(0.0),
            meta_steps=1,
            tasks=1,
            steps=256,
            truncation=truncation,
        )
    assert sizes[1] < 0.25 * sizes[0], sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 must be"),
        ({"steps": 6, "truncation": 4}, "truncation=4 must divide steps=6"),
        ({"bounds": {"decay": (0, 1)}}, "bounds='decay' is no leaf"),
        ({"learn": lambda path: False}, "has no state to learn"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nl.meta_learn(injected(), task, optax.sgd(0.1), **options)


def test_a_state_must_fit_its_parameters():
    tx = nl.begin_with(optax.trace(0.9), optax.trace(0.9).init(jnp.ones(3)))
    with pytest.raises(ValueError, match=r"trace of the state is float32\[3\]"):
        tx.init(jnp.ones(4))
    with pytest.raises(ValueError, match="of other parameters"):
        tx.init({"w": jnp.ones(3)})


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(
        FloatingPointError, match=r"meta step 10: .* 10 times in a row"
    ):
        nl.meta_learn(injected(1e30), task, optax.sgd(0.1))
