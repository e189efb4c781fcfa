"""Devices, and which axis of a parameter lies on which of them.

Parameters name their axes (``model.logical_axes()``); one table says which mesh
axis each name lies on. A dimension that its mesh axis does not divide stays
whole. Nothing else in the code knows about devices.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nl_jax.errors import InputError
from nl_jax.training.train_config import MeshConfig

RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocab": "tensor",
    "mlp": "tensor",
    "mixer": "tensor",
    "heads": "tensor",
}
"""Logical axis to mesh axis; names that are not here stay whole."""


def make_mesh(config: MeshConfig) -> Mesh:
    """Returns the mesh ``(data, fsdp, tensor)`` over all devices.

    Raises:
        InputError: if the axes do not multiply to the number of devices.
    """
    count = jax.device_count()
    shape = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) == 1 and known > 0 and count % known == 0:
        shape[shape.index(-1)] = count // known
    if min(shape) < 1 or int(np.prod(shape)) != count:
        raise InputError(
            f"mesh.data={config.data}, mesh.fsdp={config.fsdp}, "
            f"mesh.tensor={config.tensor} must multiply to the {count} "
            "devices; one of them may be -1"
        )
    return jax.make_mesh(
        tuple(shape),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
    )


def parameter_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Returns a ``NamedSharding`` for every parameter.

    Args:
        mesh: from :func:`make_mesh`.
        axes: tree of tuples of logical names, ``model.logical_axes()``.
        shapes: tree of anything with a ``shape``, for the same parameters.
    """

    def sharding(shape, names):
        spec: list[str | tuple[str, ...] | None] = []
        used: set[str] = set()
        for size, name in zip(shape.shape, names, strict=True):
            axis = RULES.get(name)
            flat = (axis,) if isinstance(axis, str) else axis or ()
            width = int(np.prod([mesh.shape[a] for a in flat]))
            fits = size % width == 0 and not used.intersection(flat)
            spec.append(axis if fits else None)
            used.update(flat if fits else ())
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, shapes, axes)


def state_shardings(mesh: Mesh, parameters: Any, state: Any) -> Any:
    """Returns shardings for a state that holds trees like the parameters.

    An optimizer keeps its moments under paths that end like the parameters'
    own; they lie where their parameter lies. Everything else is replicated.

    Args:
        mesh: from :func:`make_mesh`.
        parameters: ``(shapes, shardings)`` of the parameters.
        state: tree of shapes.
    """
    shapes, shardings = parameters
    flat = jax.tree_util.tree_leaves_with_path(shapes)
    known = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            flat, jax.tree.leaves(shardings), strict=True
        )
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding(path, leaf):
        for start in range(len(path)):
            shape, found = known.get(path[start:], (None, None))
            if found is not None and shape == leaf.shape:
                return found
        return replicated

    return jax.tree_util.tree_map_with_path(sharding, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the leading, batch, axis."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Checks that the devices can share a batch.

    Raises:
        InputError: if they cannot.
    """
    width = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % width:
        raise InputError(
            f"batch_size={batch_size} must be a multiple of mesh.data * "
            f"mesh.fsdp = {width}"
        )


def global_batch(mesh: Mesh, local: Any) -> Any:
    """Returns this process's rows as part of the array that all share."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, rows),
        local,
    )
