"""The least that must work anywhere: imports, a step of every model."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import experiments
import nl_jax
import pallas_kernels
from nl_jax.models import build, names
from nl_jax.optimizers import continuum, every

pytestmark = pytest.mark.smoke

OPTIMIZERS = {
    "every": lambda: every(2, optax.adam(1e-2)),
    "continuum": lambda: continuum(
        {"a": 2}, optax.adam(1e-2), lambda p: jax.tree.map(lambda _: "a", p)
    ),
}


@pytest.mark.parametrize("package", [nl_jax, pallas_kernels, experiments])
def test_every_module_imports(package):
    found = list(
        pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    )
    assert found
    for module in found:
        # Peers run in an environment of their own, scripts define flags.
        if package is not experiments:
            loaded = importlib.import_module(module.name)
            for name in getattr(loaded, "__all__", ()):
                assert hasattr(loaded, name), f"{module.name}.{name}"


@pytest.mark.parametrize("name", [*names(), "hope-next-token"])
def test_one_training_step_lowers_the_loss(name):
    cms = {}
    if name.endswith("next-token"):
        name = "hope"
        cms = {"objective": "next_token", "periods": (4, 8)}
    model = build(
        name,
        vocab_size=13,
        d_model=8,
        n_layers=2,
        n_heads=2,
        titans={"chunk_size": 4, "memory_chunk_size": 4},
        cms=cms,
    )
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 13)
    variables = model.init(jax.random.key(1), tokens)

    def loss(variables):
        logits, _ = model.apply(variables, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], tokens[:, 1:]
        ).mean()

    before, grads = jax.jit(jax.value_and_grad(loss))(variables)
    moved = jax.tree.map(lambda p, g: p - 0.05 * g, variables, grads)
    assert np.isfinite(before) and jax.jit(loss)(moved) < before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    tx, x = OPTIMIZERS[name](), {"x": jnp.ones(3)}
    state = tx.init(x)
    for _ in range(4):
        updates, state = tx.update(x, state, x)
        x = optax.apply_updates(x, updates)
    assert float(jnp.abs(x["x"]).max()) < 1
