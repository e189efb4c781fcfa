"""Leaves as stacks of matrices, and all of a tree orthogonalised at once."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers

from pallas_kernels.newton_schulz import newton_schulz

Matrices = Float[Array, "b m n"]
"""A leaf as ``b`` matrices."""
MatrixFunction = Callable[[Matrices], Matrices]


def as_matrices(
    leaf: jax.Array, dimensions: MuonDimensionNumbers | None = None
) -> tuple[Matrices, Callable[[Matrices], jax.Array]]:
    """Returns a leaf as matrices ``[b, m, n]``, and the way back.

    Without dimension numbers the last two axes are the matrix and axes before
    them a batch; a vector is a column ``[1, n, 1]``, a scalar ``[1, 1, 1]``.

    Args:
        leaf: any array.
        dimensions: its axes that are rows (``reduction_axis``) and columns
            (``output_axis``); all others are batch.

    Raises:
        ValueError: if an axis is both.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.zeros((3, 3, 8, 16))  # a convolution's
        >>> x, back = as_matrices(kernel, MuonDimensionNumbers((0, 1, 2), 3))
        >>> x.shape, back(x).shape
        ((1, 72, 16), (3, 3, 8, 16))
    """
    if dimensions is None and leaf.ndim < 2:
        return leaf.reshape(1, -1, 1), lambda x: x.reshape(leaf.shape)
    rows, columns = dimensions or (-2, -1)
    rows, columns = _axes(rows, leaf.ndim), _axes(columns, leaf.ndim)
    if {*rows} & {*columns}:
        raise ValueError(
            f"reduction_axis={rows} and output_axis={columns} share an axis"
        )
    batch = tuple(
        axis for axis in range(leaf.ndim) if axis not in {*rows, *columns}
    )
    order = (*batch, *rows, *columns)
    shape = tuple(leaf.shape[axis] for axis in order)
    sizes = [
        math.prod(leaf.shape[a] for a in g) for g in (batch, rows, columns)
    ]

    def back(x):
        inverse = sorted(range(leaf.ndim), key=order.__getitem__)
        return x.reshape(shape).transpose(inverse)

    return leaf.transpose(order).reshape(sizes), back


def orthogonalize(
    matrices: Sequence[Matrices], *, together: bool = True, **options: Any
) -> list[Matrices]:
    """Orthogonalises stacks of matrices, equal shapes in one batched call.

    Args:
        matrices: stacks ``[b, m, n]`` of any shapes.
        together: whether equal shapes (or transposes of each other) share a
            call; ``False`` where leaves are sharded in different ways and
            must not be gathered.
        **options: of ``newton_schulz``.
    """
    out: list[Any] = [None] * len(matrices)
    groups: dict[Any, list[int]] = {}
    for index, x in enumerate(matrices):
        key = (*sorted(x.shape[1:]), x.dtype) if together else index
        groups.setdefault(key, []).append(index)
    for members in groups.values():
        wide = [_wide(matrices[i]) for i in members]
        stacked = wide[0] if len(wide) == 1 else jnp.concatenate(wide)
        done = newton_schulz(stacked, **options)
        at = 0
        for index, x in zip(members, wide, strict=True):
            y = done[at : at + len(x)]
            at += len(x)
            tall = matrices[index].shape[1] > matrices[index].shape[2]
            out[index] = y.mT if tall else y
    return out


def resolve_dimensions(dimensions: Any, tree: Any) -> list:
    """Returns each leaf's dimension numbers, ``None`` if it is no matrix.

    Args:
        dimensions: ``None`` for two-dimensional leaves; or a tree, a prefix
            of one, or a function from the parameters to it, with
            ``MuonDimensionNumbers`` for matrices and ``None`` for the rest.
        tree: parameters or gradients.
    """
    if callable(dimensions):
        dimensions = dimensions(tree)
    if dimensions is None:
        return [
            MuonDimensionNumbers() if leaf.ndim == 2 else None
            for leaf in jax.tree.leaves(tree)
        ]

    def is_leaf(node):
        return node is None or isinstance(node, MuonDimensionNumbers)

    spread = jax.tree.map(
        lambda d, part: [d] * len(jax.tree.leaves(part)),
        dimensions,
        tree,
        is_leaf=is_leaf,
    )
    return jax.tree.leaves(spread, is_leaf=is_leaf)


def _axes(axes, ndim):
    return tuple(a % ndim for a in ((axes,) if isinstance(axes, int) else axes))


def _wide(x):
    return x.mT if x.shape[1] > x.shape[2] else x
