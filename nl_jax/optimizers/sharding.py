"""Updates on meshes with explicit axes."""

import functools
from collections.abc import Callable

import jax
from jax.sharding import AxisType


def keep_shardings(update: Callable) -> Callable:
    """Lets the compiler place what is in between; results stay where they were.

    With explicit mesh axes JAX wants a sharding for every product whose
    contracted axis is sharded. An optimizer has no opinion: its updates lie
    where gradients lie, its state where it lay.
    """

    @functools.wraps(update)
    def wrapped(updates, state, params=None, **extra):
        mesh = jax.sharding.get_abstract_mesh()
        if AxisType.Explicit not in mesh.axis_types:
            return update(updates, state, params, **extra)
        places = jax.tree.map(
            lambda leaf: jax.typeof(leaf).sharding, (updates, state)
        )
        # Arrays enter by the front door; functions and numbers are constants.
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
