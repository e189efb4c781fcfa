"""What every optimizer must do, from one table."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from nl_jax import optimizers as nl
from nl_jax.errors import InputError
from tests.optimizers.cases import (
    CASES,
    KEEP_DTYPE,
    NOT_LIKE_PARAMETERS,
    RATES,
    VARIANTS,
)

PARAMS = {
    "w": jnp.ones((3, 2)),
    "b": jnp.zeros((2,)),
    "s": jnp.zeros(()),
    "none": None,
}
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name
    for name in CASES
]
every_case = pytest.mark.parametrize("name", NAMES)


def gradients(seed, like=PARAMS):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), like
    )


@functools.cache
def compiled(name, lr=0.1):
    tx = CASES[name](lr)
    return tx, jax.jit(tx.update)


def run(tx, update, count, params=PARAMS):
    state = tx.init(params)
    for seed in range(count):
        updates, state = update(gradients(seed, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def run_once(tx):
    grads = gradients(1)
    return jax.jit(lambda g: tx.update(g, tx.init(PARAMS), PARAMS)[0])(grads)


def assert_same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


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
def test_inject_hyperparams_changes_nothing(name):
    tx, update = compiled(name)
    injected = CASES[name].injected(0.1)
    own = jax.jit(injected.update)
    assert_same(
        run(tx, update, 3)[0],
        run(injected, own, 3)[0],
        rtol=1e-5,
        atol=1e-6,
    )
    # The next updates are those of the values that the state now holds.
    state = injected.init(PARAMS)
    for key in set(state.hyperparams) - {"initial"}:
        state.hyperparams[key] *= 0.75
    values = {k: float(v) for k, v in state.hyperparams.items()}
    rate = values.pop("learning_rate" if "learning_rate" in values else "lr")
    case = CASES[name]
    changed = case.factory(rate, **{**case.options, **values})
    assert_same(
        own(gradients(1), state, PARAMS)[0],
        run_once(changed),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "factory",
    {
        case.factory: None
        for case in CASES.values()
        if case.factory.__module__.startswith("nl_jax.")
    },
    ids=lambda factory: factory.__name__,
)
def test_inject_hyperparams_takes_factories_at_their_defaults(factory):
    tx = optax.inject_hyperparams(factory)(0.1)
    state = jax.eval_shape(tx.init, PARAMS)
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    with pytest.raises(InputError, match=r"^learning_rate='0.1' must be a f"):
        factory("0.1")
    with pytest.raises(InputError, match=r"^learning_rate=nan must be a fin"):
        factory(float("nan"))


def test_factories_have_the_options_of_what_they_chain():
    names = [
        name.removeprefix("scale_by_")
        for name in nl.__all__
        if name.startswith("scale_by_") and name != "scale_by_memory"
    ]
    assert len(names) == 10
    for name in names:
        options, factory = (
            inspect.signature(getattr(nl, prefix + name)).parameters
            for prefix in ("scale_by_", "")
        )
        assert "state_dtype" in options
        assert {"learning_rate", *options} <= {*factory}, name
        for key, option in options.items():
            assert factory[key].default == option.default, (name, key)
            assert factory[key].annotation == option.annotation, (name, key)


def test_integers_must_be_static_under_inject_hyperparams():
    tx = optax.inject_hyperparams(nl.m3)(0.1, period=2)
    with pytest.raises(InputError, match=r"static_args='period'\)$"):
        tx.init(PARAMS)


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
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_extreme_gradients(name, scale):
    """No gradient that is finite makes what is not a number."""
    tx, update = compiled(name)
    state = tx.init(PARAMS)
    for seed in range(3):
        grads = jax.tree.map(lambda g: g * scale, gradients(seed))
        out, state = update(grads, state, PARAMS)
        for leaf in jax.tree.leaves(out):
            assert not np.isnan(leaf).any()
    # The delta rule forgets along its inputs, whatever the gradient says.
    if scale == 0 and name != "delta-gradient-descent":
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(out))


@every_case
def test_one_bad_step_poisons_nothing_behind_a_guard(name):
    """NaN and infinity behind ``apply_if_finite``, huge behind a clip."""
    tx, _ = compiled(name)
    guarded = optax.apply_if_finite(tx, 5)
    update = jax.jit(guarded.update)
    state = guarded.init(PARAMS)
    _, state = update(gradients(0), state, PARAMS)
    for value in (jnp.nan, jnp.inf):
        bad = jax.tree.map(lambda g, v=value: g.at[...].set(v), gradients(1))
        out, after = update(bad, state, PARAMS)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(out))
        assert_same(after.inner_state, state.inner_state, rtol=0)
        state = after
    clipped = optax.chain(optax.clip_by_global_norm(1.0), tx)
    update = jax.jit(clipped.update)
    state = clipped.init(PARAMS)
    for scale in (1e30, 1.0, 1.0, 1.0):
        grads = jax.tree.map(lambda g, s=scale: g * s, gradients(0))
        out, state = update(grads, state, PARAMS)
    leaves = jax.tree.leaves((out, state))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert np.any(out["w"] != 0)


@every_case
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(name, value):
    """Without a guard: in the update or in the state, of its leaf alone."""
    tx, update = compiled(name)
    grads = gradients(0)
    grads["w"] = grads["w"].at[0, 0].set(value)
    state = tx.init(PARAMS)
    for _ in range(2):
        out, state = update(grads, state, PARAMS)
        assert np.isfinite(out["b"]).all() and np.isfinite(out["s"])
    leaves = jax.tree.leaves((out, state))
    assert not all(np.isfinite(leaf).all() for leaf in leaves)


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


@every_case
@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_only_real_numbers_are_taken(name, dtype):
    params = {"a": jnp.ones(2), "odd": jnp.ones(2, dtype)}
    with pytest.raises(InputError, match=rf"\['odd'\] has dtype {dtype}, .*"):
        CASES[name](0.1).init(params)


def test_parts_of_complex_leaves_are_optimised():
    params = {"z": jnp.array([1 + 2j, 3 - 4j])}
    tx = optax.contrib.split_real_and_imaginary(nl.adam_memory(0.5))
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(
        updates["z"], [-0.5 - 0.5j, -0.5 + 0.5j], rtol=1e-5
    )
