"""Optimizer updates on meshes with explicit axes."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

_LEAST = 2**14
"""Elements of matrices that are worth being sent to other devices."""


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


def by_share(function: Callable, x: jax.Array) -> jax.Array:
    """Applies a function of matrices so that each device takes its share.

    Under a mesh (``jax.set_mesh``) a product of sharded matrices would be
    gathered or summed over devices, again at each step of an iteration. Here
    whole matrices are handed out before it and their parts taken back after it,
    along one axis of the mesh after the other, since the compiler then sends
    parts from device to device instead of everything to all.

    Args:
        function: function of matrices ``[b, m, n]`` to the same shape, each
            alone, that maps zeros to finite numbers.
        x: matrices ``[b, m, n]``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[name] > 1
    ]
    if not axes or x.size < _LEAST:
        return function(x)
    count = len(x)
    width = math.prod(mesh.shape[name] for name in axes)
    x = jnp.pad(x, ((0, -count % width), (0, 0), (0, 0)))
    free = PartitionSpec.UNCONSTRAINED
    ways = [
        PartitionSpec(tuple(axes[:number]), free, free)
        for number in range(1, len(axes))
    ]
    for way in ways:
        x = jax.lax.with_sharding_constraint(x, way)
    whole = PartitionSpec(tuple(axes))
    x = jax.shard_map(
        function, in_specs=whole, out_specs=whole, check_vma=False
    )(x)
    for way in reversed(ways):
        x = jax.lax.with_sharding_constraint(x, way)
    return x[:count]
