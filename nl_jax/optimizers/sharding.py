"""Optimizer updates on meshes with explicit axes."""

import functools
from collections.abc import Callable

import jax
from jax.sharding import AxisType


def keep_shardings(update: Callable) -> Callable:
    """Wraps an update function so that outputs keep the inputs' shardings.

    On a mesh with explicit axes JAX requires a sharding for every product over
    a sharded axis. The wrapped function leaves intermediate values to the
    compiler; updates are sharded like the gradients, the new state like the
    old one. There, JAX lets no array be used that is not an argument, so that
    ``optax.inject_hyperparams`` needs a mesh with automatic axes.
    """

    @functools.wraps(update)
    def wrapped(updates, state, params=None, **extra):
        mesh = jax.sharding.get_abstract_mesh()
        if AxisType.Explicit not in mesh.axis_types:
            return update(updates, state, params, **extra)
        places = jax.tree.map(
            lambda leaf: jax.typeof(leaf).sharding, (updates, state)
        )
        # Arrays must be arguments of auto_axes; other values are constants.
        arrays = {
            name: value
            for name, value in extra.items()
            if all(isinstance(x, jax.Array) for x in jax.tree.leaves(value))
        }
        rest = {n: v for n, v in extra.items() if n not in arrays}

        def run(updates, state, params, arrays):
            return update(updates, state, params, **arrays, **rest)

        return jax.sharding.auto_axes(run, out_sharding=places)(
            updates, state, params, arrays
        )

    return wrapped
