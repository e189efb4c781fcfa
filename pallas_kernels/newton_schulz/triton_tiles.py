"""Tiles of symmetric products, inside Triton kernels.

Left and right factor are polynomials of the same matrix, so their product is
symmetric: tiles on and below the diagonal are computed and written twice.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

EXACT = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6
"""What multiplies float32: six products of bfloat16 thirds, which leave out
nothing that float32 could hold. Products without tensor cores would spill."""


def padded(x, tile):
    """Zeros add nothing to a product and stay zero in the result."""
    ends = [(0, -size % tile) for size in x.shape[-2:]]
    return jnp.pad(x, [(0, 0), *ends])


def count_lower(side: int) -> int:
    """Tiles on and below the diagonal of a square, ``side`` tiles wide."""
    return side * (side + 1) // 2


def lower(index, side: int):
    """Row and column of one of them: each long row goes with a short one.

    Example:
        >>> [tuple(map(int, lower(jnp.int32(t), 2))) for t in range(3)]
        [(1, 0), (1, 1), (0, 0)]
    """
    odd = side % 2
    row, column = divide(index, side + 1 - odd)
    long = side - 1 - row
    in_long = column <= long
    i = jnp.where(in_long, long, row - odd)
    return i, jnp.where(in_long, column, column - long - 1)


def divide(index, by: int):
    """Quotient and rest; what jax.numpy adds for signs Triton cannot take."""
    divisor = jnp.asarray(by, index.dtype)
    return jax.lax.div(index, divisor), jax.lax.rem(index, divisor)


def at(i, j, rows: int, columns: int | None = None):
    """Where tile ``i, j`` lies."""
    columns = rows if columns is None else columns
    return pl.ds(i * rows, rows), pl.ds(j * columns, columns)


def write_twice(ref, i, j, value, *lead):
    """Writes tile ``i, j`` and its transpose; ``lead`` are indices before."""
    size = len(value)
    ref[(*lead, *at(i, j, size))] = value

    @pl.when(i != j)
    def _():
        ref[(*lead, *at(j, i, size))] = value.T


def rows_by_rows(left, right, depth, shape, dtype):
    """Adds up ``left(k) right(k)^T`` for ``k`` below ``depth``."""

    def body(k, acc):
        return acc + dot(left(k), right(k).T)

    return jax.lax.fori_loop(0, depth, body, jnp.zeros(shape, dtype))


def plus_identity(value, a, i, j):
    """Tile ``i, j`` of ``a I``, added to a value."""
    down, across = (
        jax.lax.broadcasted_iota(jnp.int32, value.shape, axis)
        for axis in range(2)
    )
    diagonal = (down == across) & (i == j)
    return value + jnp.where(diagonal, a, 0).astype(value.dtype)


def dot(left, right):
    """``left right``, added up in float32 at least."""
    return jnp.dot(
        left,
        right,
        precision=precision(left.dtype),
        preferred_element_type=jnp.promote_types(left.dtype, jnp.float32),
    )


def precision(dtype):
    """That of products; float64 is for tests without hardware."""
    return EXACT if dtype == jnp.float32 else None
