"""Every optimizer on eight devices: state and updates stay where they are."""

import pytest

from tests.devices import run_on_devices

RUN = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, PartitionSpec
from tests.optimizers.cases import CASES
kind = AxisType[sys.argv[1]]
mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
split = jax.NamedSharding(mesh, PartitionSpec(None, "d"))
rng = np.random.default_rng(0)
whole = {"w": jnp.asarray(rng.normal(size=(4, 16)), jnp.float32)}
for name in CASES:
    tx = CASES[name](0.1)
    update = jax.jit(tx.update)
    with jax.set_mesh(mesh):
        params = jax.device_put(whole, split)
        state = jax.jit(tx.init)(params)
        places = None
        for _ in range(4):
            out, state = update(params, state, params)
            assert out["w"].sharding.is_equivalent_to(split, 2), name
            now = [leaf.sharding for leaf in jax.tree.leaves(state)]
            assert places is None or places == now, name
            places = now
        moved = np.asarray(out["w"])
    alone = tx.init(whole)
    for _ in range(4):
        out, alone = jax.jit(tx.update)(whole, alone, whole)
    np.testing.assert_allclose(moved, out["w"], rtol=1e-3, atol=1e-5)
    print(name, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharding_is_kept(kind):
    run_on_devices(RUN, kind)
