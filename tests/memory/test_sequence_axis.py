"""One sequence on several devices equals the same on one."""

import pytest

from tests.devices import run_on_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from nl_jax.memory.sequence_axis import delta_scan_sharded
from pallas_kernels.delta_memory import delta_scan

T, D, E = 64, 8, 6
keys = jax.random.split(jax.random.key(0), 6)
draw = lambda i, *shape: jax.random.normal(keys[i], (2, *shape))
x = draw(0, T, D) / D**0.5
arrays = (
    draw(1, D, E), x, draw(2, T, E), draw(3, T, D),
    -jax.nn.softplus(draw(4, T)), jax.nn.sigmoid(draw(5, T)),
)
auto = (jax.sharding.AxisType.Auto,)
mesh = jax.make_mesh((8,), ("sequence",), axis_types=auto)
cut = jax.P(None, "sequence")
options = {"chunk_size": 8, "implementation": "chunked", "read": "after"}
sharded = jax.shard_map(
    lambda *a: delta_scan_sharded("sequence", *a, **options),
    mesh=mesh, in_specs=(jax.P(), *(cut,) * 5), out_specs=(cut, jax.P()),
    check_vma=False,
)

def whole(w, x, g, q, log_alpha, beta):
    return delta_scan(w, None, x, g, q, log_alpha, beta, **options)[:2]

def loss(f):
    return lambda *a: sum(jnp.sin(v).sum() for v in f(*a))

for one, other in ((whole, sharded), *(
    [jax.grad(loss(f), argnums=tuple(range(6))) for f in (whole, sharded)],
)):
    for a, b in zip(jax.jit(one)(*arrays), jax.jit(other)(*arrays)):
        np.testing.assert_allclose(a, b, atol=2e-5)
"""


@pytest.mark.slow
def test_outputs_memory_and_gradients_are_those_of_one_device():
    run_on_devices(PROGRAM)
