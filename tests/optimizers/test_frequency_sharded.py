"""``every`` on eight devices: state and updates stay where parameters are."""

import pytest

from tests.devices import run_on_devices

RUN = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, PartitionSpec
from nl_jax.optimizers import every
kind = AxisType[sys.argv[1]]
mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
split = jax.NamedSharding(mesh, PartitionSpec("d"))
whole = {"w": jnp.arange(16.0)}
tx = every(2, optax.adam(0.1))
update = jax.jit(tx.update)
with jax.set_mesh(mesh):
    params = jax.device_put(whole, split)
    state = jax.jit(tx.init)(params)
    for _ in range(4):
        out, state = update(params, state, params)
        for leaf in (out["w"], state.gathered["w"], state.inner[0].mu["w"]):
            assert leaf.sharding.is_equivalent_to(split, 1), leaf.sharding
    moved = np.asarray(out["w"])
alone = tx.init(whole)
for _ in range(4):
    out, alone = tx.update(whole, alone, whole)
np.testing.assert_allclose(moved, out["w"], rtol=1e-6)
assert np.abs(moved).max() > 0
"""


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharding_is_kept(kind):
    run_on_devices(RUN, kind)
