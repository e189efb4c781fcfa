"""What every optimizer is run on, and its compiled update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.optimizers.cases import (
    CASES,
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
