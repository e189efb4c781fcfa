"""Delta gradient descent: the exact minimiser, and the capture of inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.optimizers import delta_gradient_descent, with_layer_inputs


def step(w, x, delta, rate, reduction="mean"):
    """One update in float64; ``delta`` is the loss's gradient at y, per row."""
    with jax.enable_x64(True):
        tx = delta_gradient_descent(rate, reduction=reduction)
        share = len(x) if reduction == "mean" else 1
        g = jnp.asarray(x.T @ delta / share)
        updates, _ = tx.update(g, tx.init(w), w, layer_inputs=jnp.asarray(x))
        return np.asarray(w + updates)


@pytest.mark.parametrize("length", [0.3, 1.0, 4.0])
def test_one_sample_is_equation_57(length):
    rng = np.random.default_rng(0)
    w, delta = rng.normal(size=(3, 2)), rng.normal(size=(1, 2))
    x = rng.normal(size=(1, 3))
    x *= length / np.linalg.norm(x)
    rate = 0.7
    slow = rate / (1 + rate * length**2)
    expected = w - slow * x.T @ (x @ w) - slow * x.T @ delta
    np.testing.assert_allclose(step(w, x, delta, rate), expected, atol=1e-12)


@pytest.mark.parametrize("samples", [2, 9])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_is_the_exact_minimiser(samples, reduction):
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(5, 2)), rng.normal(size=(samples, 5))
    delta, rate = rng.normal(size=(samples, 2)), 0.4
    found = step(w, x, delta, rate, reduction)
    share = samples if reduction == "mean" else 1
    # Zero gradient of |x v + delta|^2 / 2 (mean or sum) + |v - w|^2 / 2 rate.
    slope = x.T @ (x @ found + delta) / share + (found - w) / rate
    np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_the_gram_product_of_a_wide_layer_is_never_formed():
    tx, w = delta_gradient_descent(0.1), jnp.ones((64, 4))

    def update(g, x):
        return tx.update(g, tx.init(w), w, layer_inputs=x)

    assert "[64,64]" not in str(jax.make_jaxpr(update)(w, jnp.ones((3, 64))))
    assert "[64,64]" in str(jax.make_jaxpr(update)(w, jnp.ones((65, 64))))


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        x = shared(nn.relu(shared(x)))
        scale = self.param("scale", nn.initializers.ones, (4,))
        return nn.Dense(1, use_bias=False, name="out")(x * scale)


def test_a_flax_model_learns_with_it():
    model, rng = Model(), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 4)), jnp.float32)
    y = jnp.sin(x[:, :1])
    params = model.init(jax.random.key(0), x)["params"]
    apply = with_layer_inputs(model.apply, params)
    tx = delta_gradient_descent(optax.constant_schedule(0.1))

    def loss(params):
        out, inputs = apply({"params": params}, x)
        return 0.5 * jnp.mean((out - y) ** 2), inputs

    @jax.jit
    def train(params):
        def body(carry, _):  # A solve inside a scan must not stall.
            params, state = carry
            (value, inputs), grads = jax.value_and_grad(loss, has_aux=True)(
                params
            )
            updates, state = tx.update(
                grads, state, params, layer_inputs=inputs
            )
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(body, (params, tx.init(params)), length=200)

    (_, inputs), _ = jax.value_and_grad(loss, has_aux=True)(params)
    assert inputs["shared"]["kernel"].shape == (64, 4), "both calls"
    assert inputs["shared"]["bias"] is None and inputs["scale"] is None
    np.testing.assert_array_equal(inputs["shared"]["kernel"][:32], x)
    (_, state), values = train(params)
    assert values[-1] < 0.8 * values[0]
    assert state.count == 200


def test_what_is_missing_is_named():
    tx, w = delta_gradient_descent(0.1), {"kernel": jnp.ones((2, 3))}
    state = tx.init(w)
    with pytest.raises(ValueError, match="params"):
        tx.update(w, state)
    with pytest.raises(ValueError, match=r"needs update.*layer_inputs"):
        tx.update(w, state, w)
    with pytest.raises(ValueError, match=r"\['kernel'\] have shape \(4, 5\)"):
        tx.update(w, state, w, layer_inputs={"kernel": jnp.ones((4, 5))})
    with pytest.raises(ValueError, match="reduction='max'"):
        delta_gradient_descent(0.1, reduction="max")
