"""The least that must work anywhere: imports, a step of every optimizer.

A step of every model is in tests/models, which has their programs already.
"""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import optax
import pytest

import experiments
import nl_jax
import pallas_kernels
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    tx, x = OPTIMIZERS[name](), {"x": jnp.ones(3)}
    state = tx.init(x)
    for _ in range(4):
        updates, state = tx.update(x, state, x)
        x = optax.apply_updates(x, updates)
    assert float(jnp.abs(x["x"]).max()) < 1
