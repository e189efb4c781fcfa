"""Kernels on meshes, where each device runs its own batch rows and heads.

The compiler cannot partition a kernel, so under a mesh (``jax.set_mesh``)
kernels run through ``jax.shard_map``. Rows and heads are independent: there is
no communication.
"""

import math

import jax
from jax.sharding import AxisType, PartitionSpec

HEAD_AXES = ("tensor", "model")
"""Names of the mesh axes that heads are sharded over; the batch is sharded
over all others."""


def explicit_axes() -> tuple[str, ...]:
    """Returns the axes of the current mesh whose type is ``Explicit``."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )


def lead_spec(lead: tuple[int, ...]) -> PartitionSpec:
    """Returns the sharding of leading axes ``[batch, heads, ...]``.

    A mesh axis is left out where it does not divide the rest of an axis.

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
    """Returns ``function``, mapped over the devices if there is a mesh.

    Args:
        function: function of one device's part of the arrays.
        in_specs: specs from :func:`lead_spec`, a prefix of the tree of
            arguments.
        out_specs: the same for the results.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # Inside the caller's own shard_map, arrays are parts already.
    if AxisType.Auto not in mesh.axis_types:
        return function
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def call_over_mesh(function, inputs, lead):
    """Calls a function from named arrays to named arrays over the mesh.

    Args:
        function: function of one device's part of ``inputs``.
        inputs: arrays, or tuples of arrays, by name. They begin with ``lead``,
            those named ``starts`` or ``*_start`` after one axis of chunks.
        lead: leading axes ``[batch, heads, ...]``.
    """
    spec = lead_spec(lead)
    stacked = jax.P(None, *spec)

    def specs(values):
        return {
            name: stacked if name.endswith(("_start", "starts")) else spec
            for name in values
        }

    out_specs = specs(jax.eval_shape(function, inputs))
    return over_mesh(function, (specs(inputs),), out_specs)(inputs)
