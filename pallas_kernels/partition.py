"""Kernels on meshes: each device runs its own batch rows and heads.

The compiler cannot cut a kernel into pieces, so where a mesh is set
(``jax.set_mesh``) a kernel goes through ``jax.shard_map``. Rows and heads are
independent: nothing is communicated.
"""

import math

import jax
from jax.sharding import AxisType, PartitionSpec

HEAD_AXES = ("tensor", "model")
"""Mesh axes, by name, that heads lie on; the batch lies on all others."""


def explicit_axes() -> tuple[str, ...]:
    """The mesh axes set by ``jax.set_mesh`` whose type is ``Explicit``."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )


def lead_spec(lead: tuple[int, ...]) -> PartitionSpec:
    """Which mesh axes the leading axes ``[batch, heads, ...]`` lie on.

    A mesh axis that does not divide what is left of its axis is not used.

    Example:
        >>> import jax
        >>> auto = (jax.sharding.AxisType.Auto,) * 2
        >>> mesh = jax.sharding.AbstractMesh((4, 2), ("data", "tensor"), auto)
        >>> with jax.sharding.use_abstract_mesh(mesh):
        ...     lead_spec((8, 6)), lead_spec((8, 3)), lead_spec((2,))
        (P('data', 'tensor'), P('data', None), P(None,))
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[name] > 1
    ]
    spec: list[tuple[str, ...] | None] = []
    for axis, size in enumerate(lead[:2]):
        chosen: list[str] = []
        for name in free:
            width = mesh.shape[name] * math.prod(mesh.shape[n] for n in chosen)
            if (name in HEAD_AXES) == (axis == 1) and size % width == 0:
                chosen.append(name)
        spec.append(tuple(chosen) or None)
    return PartitionSpec(*spec)


def over_mesh(function, in_specs, out_specs):
    """``function``, through ``jax.shard_map`` where a mesh is set.

    Args:
        function: of arrays, on one device's part.
        in_specs: a prefix of its arguments' tree, from :func:`lead_spec`.
        out_specs: the same for its results.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # Inside somebody's own shard_map arrays are parts already.
    if AxisType.Auto not in mesh.axis_types:
        return function
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
