"""How a memory is compared with its paper's recurrence, and with itself."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.memory import papers

__all__ = ["check_slope", "check_splits", "close"]


def close(a, b, bound):
    """Equal up to ``bound`` of the largest number, or of 1 if that is more."""
    scale = max(1.0, np.abs(b).max())
    np.testing.assert_allclose(a, b, atol=bound * scale, rtol=0)


def check_slope(paper, ours, args):
    """Gradients through every inner step, along one direction of everything.

    Both functions map ``args`` to ``(o, final weights)``; the paper's is
    differentiated by differences of its values.
    """
    rng = np.random.default_rng(1)
    way = jax.tree.map(lambda a: rng.normal(size=a.shape), args)
    weights = rng.normal(size=np.shape(paper(*args)[0]))

    def value(o, end):
        return (weights * o).sum() + sum((w**2).sum() for w in end)

    def at(step):
        o, end = paper(*jax.tree.map(lambda a, d: a + step * d, args, way))
        return value(np.array(o), end)

    def gradient(dtype):
        own = jax.grad(lambda *a: value(*ours(*a)), range(len(args)))
        return jax.jit(own)(
            *jax.tree.map(lambda a: jnp.asarray(a, dtype), args)
        )

    with jax.enable_x64(True):
        exact = gradient("float64")
        found = sum(
            (g * d).sum()
            for g, d in zip(*map(jax.tree.leaves, (exact, way)), strict=True)
        )
        np.testing.assert_allclose(found, papers.slope(at), rtol=1e-8)
    rounded = gradient("float32")
    for a, b in zip(*map(jax.tree.leaves, (rounded, exact)), strict=True):
        close(a, np.asarray(b), 1e-5)  # Norms cost a digit.


def check_splits(memory, weights, k, v, q, gates):
    """Outputs and the whole state, in float64."""
    length = k.shape[0]
    whole, end = memory.scan(memory.init(tuple(weights)), k, v, q, gates)
    state, outs = memory.init(tuple(weights)), []
    for at, to in ((0, 1), (1, 2), (2, 6), (6, length)):
        part = jax.tree.map(lambda a: a[at:to], (k, v, q, gates))  # noqa: B023
        o, state = memory.scan(state, *part)
        outs.append(o)
    np.testing.assert_allclose(jnp.concatenate(outs), whole, atol=1e-12)
    for a, b in zip(*map(jax.tree.leaves, (state, end)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
