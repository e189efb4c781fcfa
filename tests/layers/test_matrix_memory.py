"""Matrix memories stay bounded whatever they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.layers import MatrixMemory
from nl_jax.models import configure, names

D, T = 8, 1024
MATRIX = [n for n in names() if configure(n).mixer == "matrix"]


@pytest.mark.parametrize("name", MATRIX)
def test_one_large_token_again_and_again_stays_bounded(name):
    """No more than a sum of all writes; what overshoots knows no end."""
    layer = MatrixMemory(configure(name).matrix, D, 1)
    x = jnp.broadcast_to(
        30 * jax.random.normal(jax.random.key(0), (D,)), (1, T, D)
    )
    variables = layer.init(jax.random.key(1), x[:, :2])
    variables = jax.tree.map(lambda a: 3 * a, variables)
    y, state = jax.jit(layer.apply)(variables, x)
    assert np.isfinite(y).all()
    raw = 1000.0**2  # Above the product of a key and a value.
    assert np.abs(state.memory).max() < T * raw
