"""Generalized gradient descent against what it must become."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax import optimizers as nl


def test_ggd_with_a_squared_error_is_delta_gradient_descent():
    rng = np.random.default_rng(0)
    w, x = jnp.asarray(rng.normal(size=(3, 2))), rng.normal(size=(4, 3))
    delta, rate = rng.normal(size=(4, 2)), 0.5
    with jax.enable_x64(True):
        tx = nl.generalized_gradient_descent(
            lambda w, u, x: 0.5 * jnp.mean(jnp.sum((x @ w - u) ** 2, -1)),
            lambda w, g, x: -jnp.asarray(delta),
            lambda w, old: jnp.sum((w - old[-1]) ** 2) / (2 * rate),
            optax.sgd(0.2),
            steps=400,
        )
        w, x, g = map(jnp.asarray, (w.astype(float), x, x.T @ delta / 4))
        out, _ = tx.update(g, tx.init(w), w, context=x)
        exact = nl.delta_gradient_descent(rate)
        expected, _ = exact.update(g, exact.init(w), w, layer_inputs=x)
        np.testing.assert_allclose(out, expected, atol=1e-9)


def test_the_window_holds_the_last_parameters():
    tx = nl.generalized_gradient_descent(
        lambda w, u, x: 0.0 * jnp.sum(w),
        lambda w, g, x: g,
        lambda w, old: jnp.sum((w - old.mean(0)) ** 2),
        optax.sgd(0.5),
        steps=1,
        window=3,
    )
    w = jnp.array([3.0])
    state, seen = tx.init(w), [3.0, 3.0, 3.0]
    for value in (6.0, 0.0, 9.0):
        w, seen = jnp.array([value]), [*seen[1:], value]
        out, state = tx.update(w, state, w)
        np.testing.assert_allclose(w + out, np.mean(seen), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nl.generalized_gradient_descent(
                None, None, None, optax.sgd(1.0), steps=0
            ),
            "steps=0 must be",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
