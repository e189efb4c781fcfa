"""Tiles of symmetric matrix products in Triton kernels.

Both factors are polynomials of the same matrix, so their product is symmetric:
only tiles on and below the diagonal are computed, and each is written twice.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

EXACT = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6
"""Precision of float32 products: six products of bfloat16 parts, as accurate
as float32. Products without tensor cores would spill registers."""


def padded(x, tile):
    """Pads matrices with zeros, which stay zero, to multiples of ``tile``."""
    ends = [(0, -size % tile) for size in x.shape[-2:]]
    return jnp.pad(x, [(0, 0), *ends])


def count_lower(side: int) -> int:
    """Number of tiles on and below the diagonal of ``side`` times ``side``."""
    return side * (side + 1) // 2


def lower(index, side: int):
    """Returns row and column of a tile on or below the diagonal, by index.

    The order pairs each long row with a short one.

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
    """Quotient and remainder; Triton cannot compile those of ``jax.numpy``."""
    divisor = jnp.asarray(by, index.dtype)
    return jax.lax.div(index, divisor), jax.lax.rem(index, divisor)


def at(i, j, rows: int, columns: int | None = None):
    """Returns the slices of tile ``i, j``."""
    columns = rows if columns is None else columns
    return pl.ds(i * rows, rows), pl.ds(j * columns, columns)


def write_twice(ref, i, j, value, *lead):
    """Writes tile ``i, j`` and its transpose, after leading indices."""
    size = len(value)
    ref[(*lead, *at(i, j, size))] = value

    @pl.when(i != j)
    def _():
        ref[(*lead, *at(j, i, size))] = value.T


def rows_by_rows(left, right, depth, shape, dtype):
    """Sums ``left(k) right(k)^T`` over ``k`` below ``depth``."""

    def body(k, acc):
        return acc + dot(left(k), right(k).T)

    return jax.lax.fori_loop(0, depth, body, jnp.zeros(shape, dtype))


def plus_identity(value, a, i, j):
    """Adds tile ``i, j`` of ``a I`` to ``value``."""
    down, across = (
        jax.lax.broadcasted_iota(jnp.int32, value.shape, axis)
        for axis in range(2)
    )
    diagonal = (down == across) & (i == j)
    return value + jnp.where(diagonal, a, 0).astype(value.dtype)


def dot(left, right):
    """Product of two tiles, accumulated in at least float32."""
    return jnp.dot(
        left,
        right,
        precision=precision(left.dtype),
        preferred_element_type=jnp.promote_types(left.dtype, jnp.float32),
    )


def precision(dtype):
    """Precision of products; float64 occurs in tests without hardware."""
    return EXACT if dtype == jnp.float32 else None
