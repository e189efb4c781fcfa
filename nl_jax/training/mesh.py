"""Device mesh, and how arrays are sharded over it.

The axes of parameters and activations have names, which two maps of the
configuration translate to axes of the mesh: where parameters rest, and where
computation happens (``MeshConfig``). With ``fsdp`` a parameter rests cut along
``embed``, and is gathered for the moment in which each device multiplies its
own rows of the batch by it.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nl_jax.errors import InputError
from nl_jax.models.sequence_axis import AXIS, TIME
from nl_jax.training.mesh_config import MESH_AXES, MeshConfig, split

_LEAST = 2**14
"""Smaller arrays stay whole where their names place them nowhere."""


def make_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
    """Returns the mesh of all devices, with the axes of ``MeshConfig``.

    Args:
        config: devices along each axis.
        devices: other devices than all of this run, such as a topology's.

    Raises:
        InputError: if the product of the axes is not the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    shape = [getattr(config, axis) for axis in MESH_AXES]
    known = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) == 1 and known > 0 and count % known == 0:
        shape[shape.index(-1)] = count // known
    if min(shape) < 1 or int(np.prod(shape)) != count:
        given = [f"mesh.{axis}={getattr(config, axis)}" for axis in MESH_AXES]
        raise InputError(
            f"{', '.join(given)} must multiply to the {count} devices; one of "
            "them may be -1"
        )
    return jax.make_mesh(
        tuple(shape),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(shape),
        devices=devices,
    )


def parameter_shardings(
    mesh: Mesh, axes: Any, shapes: Any, rules: Mapping[str, str]
) -> Any:
    """Returns a ``NamedSharding`` for every parameter.

    A dimension that its mesh axis does not divide is not cut there. A large
    array is then cut along the largest dimension that the axis divides.

    Args:
        mesh: mesh from :func:`make_mesh`.
        axes: tuples of logical axis names, ``model.logical_axes()``.
        shapes: arrays or ``ShapeDtypeStruct``, one per parameter.
        rules: mesh axes of each name, ``MeshConfig.parameter_axes``.
    """

    def sharding(shape, names):
        cuts: list[tuple[str, ...]] = []
        used: set[str] = set()
        for size, name in zip(shape.shape, names, strict=True):
            found = split(rules.get(name, ""))
            width = math.prod(mesh.shape[a] for a in found)
            fits = size % width == 0 and not used.intersection(found)
            cuts.append(found if fits else ())
            used.update(found if fits else ())
        return _spread(mesh, shape.shape, cuts)

    return jax.tree.map(sharding, shapes, axes)


def state_shardings(mesh: Mesh, parameters: Any, state: Any) -> Any:
    """Returns the shardings of an optimizer's state.

    An array belongs to the parameter whose path its own contains: a moment has
    the parameter's shape and its sharding; of a memory the dimensions of equal
    size are cut alike. What is left of the mesh cuts the largest dimensions, as
    in :func:`parameter_shardings`.

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
    lengths = sorted({len(path) for path in known}, reverse=True)

    def owner(path):
        for length in lengths:
            for start in range(len(path) - length, -1, -1):
                found = known.get(path[start : start + length])
                if found is not None:
                    return found
        return None

    def sharding(path, leaf):
        cuts: list[tuple[str, ...]] = [()] * leaf.ndim
        found = owner(path)
        if found is not None:
            shape, place = found
            if shape == leaf.shape:
                return place
            free = list(range(leaf.ndim))
            for size, names in zip(shape, _cuts(place, shape), strict=True):
                same = [d for d in free if leaf.shape[d] == size]
                if names and same:
                    cuts[same[0]] = names
                    free.remove(same[0])
        return _spread(mesh, leaf.shape, cuts)

    return jax.tree_util.tree_map_with_path(sharding, state)


def _cuts(sharding, shape) -> list[tuple[str, ...]]:
    """Returns the mesh axes along each dimension."""
    spec = [*sharding.spec, *[None] * len(shape)][: len(shape)]
    return [(a,) if isinstance(a, str) else tuple(a or ()) for a in spec]


def _spread(mesh, shape, cuts) -> NamedSharding:
    """Cuts large arrays along the mesh axes that do not cut them yet."""
    cuts = list(cuts)
    used = {name for names in cuts for name in names}
    for axis in ("fsdp", "tensor"):
        if axis in used or math.prod(shape) < _LEAST:
            continue
        parts = [
            size // math.prod(mesh.shape[a] for a in names)
            for size, names in zip(shape, cuts, strict=True)
        ]
        free = [d for d, n in enumerate(parts) if n % mesh.shape[axis] == 0]
        if free:
            largest = max(free, key=parts.__getitem__)
            cuts[largest] = (*cuts[largest], axis)
    spec = [names[0] if len(names) == 1 else names or None for names in cuts]
    return NamedSharding(mesh, PartitionSpec(*spec))


def computing(config: MeshConfig) -> contextlib.AbstractContextManager:
    """Context in which models are traced, for ``compute_axes`` to apply."""
    maps = dict(config.compute_axes)
    if config.sequence != 1:
        maps[TIME] = AXIS
    rules = [(name, split(axes)) for name, axes in maps.items()]
    return nn.logical_axis_rules(rules)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Checks that each part of a batch can be split evenly over the devices.

    Raises:
        InputError: if it cannot.
    """
    width = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (width * accumulate):
        parts = f"accumulate={accumulate} * " if accumulate > 1 else ""
        raise InputError(
            f"batch_size={batch_size} must be a multiple of {parts}mesh.data * "
            f"mesh.fsdp = {width * accumulate}"
        )


def process_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the rows of a batch that this process's devices hold.

    Raises:
        InputError: if the batch cannot be split evenly over the devices.
    """
    check_batch(mesh, batch_size)
    where = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    held = np.concatenate([rows[piece] for piece in where.values()])
    return np.unique(held).tolist()


def global_batch(mesh: Mesh, local: Any) -> Any:
    """Assembles global arrays from the rows that each process holds."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, rows),
        local,
    )
