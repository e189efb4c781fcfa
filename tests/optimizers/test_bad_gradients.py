"""What every optimizer does with extreme and bad gradients and parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax import optimizers as nl
from nl_jax.errors import InputError
from tests.optimizers.cases import (
    CASES,
)
from tests.optimizers.contract import (
    PARAMS,
    assert_same,
    compiled,
    every_case,
    gradients,
)


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
