"""Optimizers in half precision against themselves in float64.

Their formulas in float64 are compared with NumPy's elsewhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optimizers.contract import compiled, every_case, gradients

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros((2,)), "s": jnp.zeros(())}


def cast(tree, dtype):
    return jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, tree
    )


@every_case
@pytest.mark.parametrize(
    ("dtype", "scale"), [("float16", 1e-5), ("float16", 1e3), ("float32", 1e30)]
)
def test_squares_that_a_dtype_has_not(name, dtype, scale):
    if name == "every":
        pytest.skip("the squares are those of optax.adam")
    if scale == 1e30 and name.startswith(("ad", "m3")):
        pytest.skip("the sums of squares are infinite, as in optax")
    tx, _ = compiled(name, 1.0)
    with jax.enable_x64(True):
        update = jax.jit(tx.update)
        params = cast(PARAMS, dtype)
        state = tx.init(params)
        exact = cast((params, state), "float64")
        for seed in range(3):
            g = jax.tree.map(
                lambda g: (g * scale).astype(dtype), gradients(seed, PARAMS)
            )
            out, state = update(g, state, params)
            expected, after = update(cast(g, "float64"), exact[1], exact[0])
            exact = exact[0], after
            for ours, wanted in zip(
                *map(jax.tree.leaves, (out, expected)), strict=True
            ):
                assert ours.dtype == dtype
                wanted = np.asarray(wanted.astype(dtype), "float64")
                tolerance = 8 * float(jnp.finfo(dtype).eps)
                least = float(jnp.finfo(dtype).smallest_subnormal)
                # M3 as printed divides by gradients: it may be too large.
                largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
                np.testing.assert_allclose(
                    np.asarray(ours, "float64"),
                    wanted,
                    rtol=tolerance,
                    atol=tolerance * largest + least,
                )
