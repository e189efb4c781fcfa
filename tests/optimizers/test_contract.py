"""What every optimizer must do, from one table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from tests.optimizers.cases import (
    CASES,
    KEEP_DTYPE,
    NOT_LIKE_PARAMETERS,
    RATES,
)
from tests.optimizers.contract import (
    PARAMS,
    assert_same,
    compiled,
    every_case,
    gradients,
    run,
)

TARGETS = {
    "parabola": (lambda w: 0.5 * jnp.sum(w**2), jnp.array([1.0, -2.0])),
    "ill-conditioned": (
        lambda w: 0.5 * jnp.sum(jnp.array([1.0, 10.0]) * w**2),
        jnp.array([1.0, 1.0]),
    ),
    "matrix": (
        lambda w: 0.5 * jnp.sum((w - jnp.eye(2, 3)) ** 2),
        jnp.zeros((2, 3)),
    ),
    "logistic": (
        lambda w: (
            jnp.log1p(jnp.exp(-w * jnp.array([1.0, -1.0]))).sum()
            + 0.05 * jnp.sum(w**2)
        ),
        jnp.zeros(2),
    ),
}


@every_case
@pytest.mark.parametrize("target", TARGETS)
def test_converges(name, target):
    loss, start = TARGETS[target]
    steps, rate = 400, RATES.get(name, 0.05)
    tx = CASES[name](optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(
            step, (params, tx.init(params)), length=steps
        )
        return params

    end = train(start)
    if name == "m3-as-printed":
        # Its sums never forget: it circles around an optimum.
        assert loss(end) < loss(start)
    else:
        assert np.abs(jax.grad(loss)(end)).max() < 0.05, end


@pytest.mark.smoke
@every_case
def test_unknown_extra_arguments_and_recompilation(name):
    tx, _ = compiled(name)
    traces = []

    @jax.jit
    def update(g, state):
        traces.append(1)
        return tx.update(g, state, PARAMS, unknown=jnp.ones(3))

    state = tx.init(PARAMS)
    for seed in range(3):
        _, state = update(gradients(seed), state)
    assert len(traces) == 1


@every_case
def test_state_is_found_by_tree_map_params(name):
    tx, _ = compiled(name)
    state = tx.init(PARAMS)
    tagged = optax.tree.map_params(tx, lambda leaf: "parameter", state)
    leaves = jax.tree.leaves(tagged)
    assert "parameter" in leaves or name in NOT_LIKE_PARAMETERS, leaves


@every_case
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes_are_kept(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
        tx = CASES[name](0.1)
        state = jax.eval_shape(tx.init, params)
        out, after = jax.eval_shape(tx.update, params, state, params)

        def kinds(tree):
            return jax.tree.map(lambda a: (a.shape, a.dtype), tree)

        assert kinds(state) == kinds(after)
        # States of low precision would stop growing: they are float32.
        least = jnp.promote_types(dtype, jnp.float32)
        assert all(
            jnp.promote_types(leaf.dtype, least) == leaf.dtype
            for leaf in jax.tree.leaves(state)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            and name not in KEEP_DTYPE
        )
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(out))
        wide = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), params
        )
        _, after = jax.eval_shape(tx.update, wide, state, params)
        assert kinds(state) == kinds(after)


@every_case
def test_composes(name):
    """MultiSteps, masked, partition, apply_if_finite, chain."""
    tx, _ = compiled(name)
    steps = optax.MultiSteps(tx, 2).gradient_transformation()
    mask = {"w": True, "b": False, "s": False, "none": None}
    masked = optax.masked(tx, mask)
    labels = {"w": "ours", "b": "sgd", "s": "ours", "none": "sgd"}
    parts = optax.partition({"ours": tx, "sgd": optax.sgd(1.0)}, labels)

    @jax.jit
    def first_updates(grads):
        return [
            composed.update(grads, composed.init(PARAMS), PARAMS)[0]
            for composed in (steps, masked, parts)
        ]

    first, of_masked, of_parts = first_updates(gradients(0))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(first))
    np.testing.assert_array_equal(of_masked["b"], gradients(0)["b"])
    np.testing.assert_array_equal(of_parts["b"], -gradients(0)["b"])


@every_case
def test_vmap_donation_and_shapes(name):
    tx, update = compiled(name)
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    two = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    grads = gradients(0, two)

    @jax.jit
    @jax.vmap
    def both(grads, params):
        return tx.update(grads, tx.init(params), params)[0]

    out = both(grads, two)
    for row in range(2):
        single = jax.tree.map(lambda a, row=row: a[row], (grads, two))
        expected, _ = update(single[0], tx.init(single[1]), single[1])
        got = jax.tree.map(lambda a, row=row: a[row], out)
        assert_same(got, expected, rtol=1e-4, atol=1e-6)
    shapes = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params
    )
    wanted = jax.tree.map(jnp.shape, tx.init(params))
    assert wanted == jax.tree.map(jnp.shape, jax.eval_shape(tx.init, shapes))
    donating = jax.jit(tx.update, donate_argnums=1)
    state = jax.tree.map(jnp.copy, tx.init(params))
    _, state = donating(gradients(0, params), state, params)
    donating(gradients(1, params), state, params)


@every_case
def test_saved_and_restored(name, tmp_path):
    tx, update = compiled(name)
    params, state = run(tx, update, 2)
    ocp.save(tmp_path / "state", state)
    restored = ocp.load(tmp_path / "state", tx.init(PARAMS))
    assert_same(restored, state, rtol=0)
    expected, _ = update(gradients(5), state, params)
    assert_same(update(gradients(5), restored, params)[0], expected, rtol=0)


@every_case
def test_leaves_without_elements_change_nothing(name):
    full = {"w": jnp.ones((3, 2)), "b": jnp.ones((2,))}
    empty = {
        str(shape): jnp.zeros(shape)
        for shape in ((0,), (0, 3), (3, 0), (2, 0, 2))
    }
    tx, update = compiled(name)
    both = {**full, **empty}
    out, _ = jax.jit(tx.update)(both, tx.init(both), both)
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, both)
    alone, _ = update(full, tx.init(full), full)
    assert_same({key: out[key] for key in full}, alone, rtol=1e-6)
