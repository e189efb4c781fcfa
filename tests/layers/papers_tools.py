"""What tests of mixers against NumPy share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["applied", "drawn", "same", "same_in_pieces", "to_numpy"]


def drawn(layer, shape, noise=0.3):
    """Parameters of a layer, none of them at a special value, and inputs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    init = jax.jit(layer.init)
    boxes = init(jax.random.key(0), x[:, :1].astype(np.float32))["params"]
    params = jax.tree.map(
        lambda box: np.asarray(box.value, np.float64),
        boxes,
        is_leaf=lambda box: hasattr(box, "names"),
    )
    move = lambda a: a + noise * rng.normal(size=a.shape)  # noqa: E731
    return jax.tree.map(move, params), x


@functools.cache
def applied(layer, dtype):
    """``(variables, x, state) -> (y, state)`` in this precision, jitted."""
    return jax.jit(layer.clone(dtype=jnp.dtype(dtype)).apply)


def to_numpy(tree, dtype):
    return jax.tree.map(lambda a: np.asarray(a, dtype), tree)


def same(found, expected, bound):
    """Equal up to ``bound`` of the largest number of each array."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=bound * np.abs(b).max(), rtol=0)


def same_in_pieces(layer, params, x, sizes):
    """Outputs and every part of the state, in float64."""
    with jax.enable_x64(True):
        apply, params = applied(layer, "float64"), {"params": params}
        whole, end = apply(params, x)
        state, outs = None, []
        for piece in np.split(x, np.cumsum(sizes)[:-1], 1):
            y, state = apply(params, piece, state)
            outs.append(y)
        same((jnp.concatenate(outs, 1), *state), (whole, *end), 1e-12)
