"""Every optimizer with its defaults on plain problems, and in Flax NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nl_jax import optimizers as nl
from tests.optimizers.cases import CASES
from tests.optimizers.contract import every_case

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(64, 6)), jnp.float32)
START = {
    # Gradients of norm 4.5 at first, and 7 on the way at large rates.
    "regression": {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)},
    "mlp": {
        "w": jnp.asarray(RNG.normal(size=(6, 16)) / 2, jnp.float32),
        "b": jnp.zeros(16),
        "out": jnp.asarray(RNG.normal(size=(16, 3)) / 4, jnp.float32),
    },
    # Curvatures from 0.03 to 30.
    "quadratic": {"w": jnp.zeros((6, 3))},
}
GOAL = jnp.asarray(2 * RNG.normal(size=(6, 3)), jnp.float32)
CURVATURE = jnp.logspace(-1.5, 1.5, 6)[:, None]
RATES = jnp.array([0.01, 0.03, 0.1, 0.3])


def hidden(p):
    return jnp.tanh(X @ p["w"] + p["b"])


def losses(params):
    p = params["regression"]
    error = X @ (p["w"] - GOAL) + p["b"] - 1
    p = params["mlp"]
    wrong = hidden(p) @ p["out"] - jnp.sin(2 * X[:, :3]) * X[:, 3:]
    gap = params["quadratic"]["w"] - GOAL
    return {
        "regression": jnp.mean(error**2),
        "mlp": jnp.mean(wrong**2),
        "quadratic": jnp.mean(CURVATURE * gap**2) / 2,
    }


def with_inputs(lr):
    """DGD, with the inputs of the layers of both networks."""
    tx = nl.delta_gradient_descent(lr)

    def update(updates, state, params):
        inputs = jax.tree.map(lambda p: None, params)
        inputs["regression"]["w"] = inputs["mlp"]["w"] = X
        inputs["mlp"]["out"] = hidden(params["mlp"])
        return tx.update(updates, state, params, layer_inputs=inputs)

    return optax.GradientTransformation(tx.init, update)


DEFAULTS = {case.factory.__name__: case.factory for case in CASES.values()}
del DEFAULTS["every"], DEFAULTS["continuum"]  # Wrap one that users choose.
DEFAULTS |= {"adam": optax.adam, "delta_gradient_descent": with_inputs}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_train(name):
    """At their best of four rates, in 100 steps, in one program for all."""

    @jax.jit
    @jax.vmap
    def train(rate):
        tx = DEFAULTS[name](rate)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: sum(losses(p).values()))(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (START, tx.init(START))
        return losses(jax.lax.scan(step, start, length=100)[0][0])

    before, after = losses(START), train(RATES)
    for problem, loss in after.items():
        left = np.nanmin(loss) / before[problem]
        # DGD also decays weights along inputs, whatever the loss.
        assert left < (0.5 if name == "delta_gradient_descent" else 0.3)


class Model(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.scale = nnx.Param(jnp.ones(()))


@every_case
def test_works_in_nnx(name):
    model = Model()
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, CASES[name](0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.sum(model.linear(X[:, :3]) * model.scale)

        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(2):
        step(model, optimizer)
    after = nnx.state(model, nnx.Param)
    for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert np.isfinite(b).all() and np.any(a != b)
