"""Scans that keep few carries: the same numbers from less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.remat import remat_scan

STEPS, WIDTH = 100, 64
XS = jax.random.normal(jax.random.key(0), (STEPS, WIDTH))


def body(carry, x):
    carry = jnp.tanh(0.5 * carry + 0.1 * x[:, None] * x)
    return carry, carry.sum(0)


def loss(xs, every):
    carry, ys = remat_scan(body, jnp.eye(WIDTH), xs, every=every)
    return jnp.sum(carry**2) + jnp.sum(ys**2)


def plain(xs):
    carry, ys = jax.lax.scan(body, jnp.eye(WIDTH), xs)
    return jnp.sum(carry**2) + jnp.sum(ys**2)


@pytest.mark.parametrize("every", [None, 0, 1, 7, 10, 99, 100, 1000])
def test_values_and_gradients_are_those_of_a_scan(every):
    """7 leaves a remainder, 99 one group and a step, 1000 no whole group."""
    wanted = jax.value_and_grad(plain)(XS)
    found = jax.value_and_grad(loss)(XS, every)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_memory_grows_with_the_root_of_the_length():
    """Four times the steps: twice the carries, where a scan keeps all."""

    def bytes_of(every, steps):
        xs = jax.ShapeDtypeStruct((steps, WIDTH), jnp.float32)
        step = jax.jit(jax.grad(lambda xs: loss(xs, every)))
        return step.lower(xs).compile().memory_analysis().temp_size_in_bytes

    carry = 4 * WIDTH**2
    inputs = 4 * WIDTH * 6  # Generous: copies of inputs and outputs per step.
    for every, kept in ((1, 1600), (None, 2 * 40)):
        assert bytes_of(every, 1600) < carry * (kept + 16) + inputs * 1600
    assert bytes_of(1, 1600) > 5 * bytes_of(None, 1600)


def test_a_negative_distance_is_refused():
    """The message names the argument."""
    with pytest.raises(ValueError, match=r"every=-1 must be .* >= 0"):
        remat_scan(body, jnp.eye(WIDTH), XS, every=-1)
