"""Helpers of tests that compare optimizers with their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from pallas_kernels.newton_schulz import newton_schulz

SHAPES = {"w": (4, 3), "b": (3,), "s": ()}


def gradients(count=4, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(0)
    return [
        {name: scale * rng.normal(size=s) for name, s in shapes.items()}
        for _ in range(count)
    ]


def run(tx, grads, dtype="float64"):
    """All updates of a transformation of gradients, in float64."""
    with jax.enable_x64(True):
        grads = jax.tree.map(lambda g: jnp.asarray(g, dtype), grads)
        state, outs = tx.init(grads[0]), []
        update = jax.jit(tx.update)
        for g in grads:
            out, state = update(g, state, grads[0])
            outs.append(jax.tree.map(lambda x: np.asarray(x, "float64"), out))
    return outs


def assert_same(ours, expected, rtol=1e-9, atol=None):
    for a, b in zip(ours, expected, strict=True):
        for name in a:
            np.testing.assert_allclose(
                a[name],
                b[name],
                rtol=rtol,
                atol=rtol if atol is None else atol,
                err_msg=name,
            )


def column(g):
    """A vector or scalar as ``scale_by_memory`` sees it."""
    return g if g.ndim == 2 else g.reshape(-1, 1)


def loop(step, grads):
    """Applies ``step(m, g) -> m`` leaf by leaf; returns every ``m``."""
    outs, memory = [], {n: 0 * column(g) for n, g in grads[0].items()}
    for g in grads:
        memory = {n: step(m, column(g[n])) for n, m in memory.items()}
        outs.append({n: m.reshape(g[n].shape) for n, m in memory.items()})
    return outs


def polar(g):
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    return u @ vt


def orthogonal(x):
    with jax.enable_x64(True):
        return np.asarray(newton_schulz(jnp.asarray(x)))


def run_muon(grads):
    """Updates of Muon without Nesterov momentum, of matrices."""
    tx = scale_by_muon(
        nesterov=False,
        beta=0.95,
        weight_dimension_numbers=dict.fromkeys(
            grads[0], MuonDimensionNumbers()
        ),
    )
    return run(tx, grads)
