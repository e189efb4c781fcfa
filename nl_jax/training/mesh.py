"""Device mesh, and how parameters and batches are sharded over it.

The axes of parameters have names (``model.logical_axes()``), which one table
maps to axes of the mesh. A dimension that is not divisible by the size of its
mesh axis is not sharded. No other module deals with devices.
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
"""Mesh axis of each logical axis; axes that are not listed are not sharded."""


def make_mesh(config: MeshConfig) -> Mesh:
    """Returns the mesh ``(data, fsdp, tensor)`` over all devices.

    Raises:
        InputError: if the product of the axes is not the number of devices.
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
        mesh: mesh from :func:`make_mesh`.
        axes: tuples of logical axis names, ``model.logical_axes()``.
        shapes: arrays or ``ShapeDtypeStruct``, one per parameter.
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
    """Returns the shardings of an optimizer's state.

    An array whose path ends like that of a parameter of the same shape, such as
    a moment, is sharded like the parameter. All others are replicated.

    Args:
        mesh: mesh from :func:`make_mesh`.
        parameters: ``(shapes, shardings)`` of the parameters.
        state: shapes of the optimizer's state.
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
    """Returns the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Checks that a batch can be split evenly over the devices.

    Raises:
        InputError: if it cannot.
    """
    width = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % width:
        raise InputError(
            f"batch_size={batch_size} must be a multiple of mesh.data * "
            f"mesh.fsdp = {width}"
        )


def global_batch(mesh: Mesh, local: Any) -> Any:
    """Assembles global arrays from the rows that each process holds."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, rows),
        local,
    )
