"""What tests of mixers against NumPy share."""

import jax
import numpy as np

__all__ = ["drawn", "same", "to_numpy"]


def drawn(layer, shape, noise=0.3):
    """Parameters of a layer, none of them at a special value, and inputs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    boxes = layer.init(jax.random.key(0), x.astype(np.float32))["params"]
    params = jax.tree.map(
        lambda box: np.asarray(box.value, np.float64),
        boxes,
        is_leaf=lambda box: hasattr(box, "names"),
    )
    move = lambda a: a + noise * rng.normal(size=a.shape)  # noqa: E731
    return jax.tree.map(move, params), x


def to_numpy(tree, dtype):
    return jax.tree.map(lambda a: np.asarray(a, dtype), tree)


def same(found, expected, bound):
    """Equal up to ``bound`` of the largest number of each array."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=bound * np.abs(b).max(), rtol=0)
