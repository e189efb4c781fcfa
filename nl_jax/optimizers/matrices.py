"""Parameter leaves viewed as stacks of matrices, and orthogonalisation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers

from nl_jax.optimizers.sharding import by_share
from pallas_kernels.newton_schulz import newton_schulz

Matrices = Float[Array, "b m n"]
"""A leaf as ``b`` matrices."""
MatrixFunction = Callable[[Matrices], Matrices]


def as_matrices(
    leaf: jax.Array, dimensions: MuonDimensionNumbers | None = None
) -> tuple[Matrices, Callable[[Matrices], jax.Array]]:
    """Returns a leaf as matrices ``[b, m, n]``, and the inverse function.

    Args:
        leaf: an array of any shape.
        dimensions: the axes that form the rows (``reduction_axis``) and the
            columns (``output_axis``) of a matrix; all others are batch axes.
            ``None`` takes the last two axes for the matrix; a vector is then a
            column ``[1, n, 1]`` and a scalar is ``[1, 1, 1]``.

    Raises:
        ValueError: if an axis is among both the rows and the columns.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.zeros((3, 3, 8, 16))  # of a convolution
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
    """Orthogonalises stacks of matrices, batching those of equal shapes.

    Args:
        matrices: stacks ``[b, m, n]``; shapes may differ.
        together: whether stacks of equal shapes, or of transposed ones, share
            one call of ``newton_schulz``. ``False`` keeps leaves with
            different shardings from being gathered.
        **options: options of ``newton_schulz``.

    Returns:
        The orthogonalised stacks, with the shapes of ``matrices``.
    """
    out: list[Any] = [None] * len(matrices)
    groups: dict[Any, list[int]] = {}
    for index, x in enumerate(matrices):
        key = (*sorted(x.shape[1:]), x.dtype) if together else index
        groups.setdefault(key, []).append(index)
    for members in groups.values():
        wide = [_wide(matrices[i]) for i in members]
        stacked = wide[0] if len(wide) == 1 else jnp.concatenate(wide)
        done = by_share(lambda x: newton_schulz(x, **options), stacked)
        start = 0
        for index, x in zip(members, wide, strict=True):
            y = done[start : start + len(x)]
            start += len(x)
            tall = matrices[index].shape[1] > matrices[index].shape[2]
            out[index] = y.mT if tall else y
    return out


def orthogonalize_tree(
    tree: Any, dimension_numbers: Any = None, **options: Any
) -> Any:
    """Orthogonalises the matrices of a tree, and returns other leaves as given.

    Args:
        tree: arrays.
        dimension_numbers: see :func:`resolve_dimensions`.
        **options: options of :func:`orthogonalize`.
    """
    leaves, treedef = jax.tree.flatten(tree)
    dims = resolve_dimensions(dimension_numbers, tree)
    matrices = [i for i, d in enumerate(dims) if d is not None]
    views = [as_matrices(leaves[i], dims[i]) for i in matrices]
    done = orthogonalize([x for x, _ in views], **options)
    for i, x, (_, back) in zip(matrices, done, views, strict=True):
        leaves[i] = back(x)
    return treedef.unflatten(leaves)


def resolve_dimensions(dimensions: Any, tree: Any) -> list:
    """Returns the dimension numbers of each leaf, ``None`` if not a matrix.

    Args:
        dimensions: a tree with ``MuonDimensionNumbers`` for matrices and
            ``None`` for other leaves, a prefix of such a tree, or a function
            from ``tree`` to one. ``None`` makes the two-dimensional leaves
            matrices.
        tree: parameters or gradients.
    """
    if not jax.tree.leaves(tree):
        return []  # Placeholders of optax, which no numbers fit.
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


def dimensions_tree(dimensions: Any, tree: Any) -> Any:
    """Returns :func:`resolve_dimensions` as a tree for ``jax.tree.map``."""
    dims = resolve_dimensions(dimensions, tree)
    return jax.tree.unflatten(jax.tree.structure(tree), dims)


def widen(tree: Any) -> Any:
    """Returns a tree of real arrays in at least float32.

    Example:
        >>> import jax.numpy as jnp
        >>> widen(jnp.ones(2, jnp.float16)).dtype
        dtype('float32')
    """
    return jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )


def _axes(axes, ndim):
    return tuple(a % ndim for a in ((axes,) if isinstance(axes, int) else axes))


def _wide(x):
    return x.mT if x.shape[1] > x.shape[2] else x
