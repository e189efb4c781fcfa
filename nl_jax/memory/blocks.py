"""Cuts a stretch of a stream into blocks that respect the chunk grid.

A memory's chunks are counted from the start of its stream, but a call may
begin and end anywhere inside a chunk. Blocks are stretches that never cross a
boundary of the grid: a whole call from a fresh state becomes its chunks, one
token becomes one block of length 1, and a call that starts inside a chunk is
shifted so that its tokens stand where the grid has them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Blocks(NamedTuple):
    """``number`` blocks of ``length`` tokens; made by :func:`cut`."""

    tokens: int
    number: int
    length: int
    offset: int | jax.Array
    """Slot of the first token."""
    valid: jax.Array | None
    """``[number, length]``, False where a slot holds no token; ``None`` if all
    do."""
    closes: jax.Array
    """``[number]``, whether the block ends at a boundary of the grid."""

    def split(self, x: jax.Array) -> jax.Array:
        """``[T, ...] -> [number, length, ...]``, empty slots zero."""
        slots = self.number * self.length
        if isinstance(self.offset, int):
            pad = [(0, slots - self.tokens)] + [(0, 0)] * (x.ndim - 1)
            x = jnp.pad(x, pad)
        else:
            empty = jnp.zeros((slots, *x.shape[1:]), x.dtype)
            x = jax.lax.dynamic_update_slice_in_dim(empty, x, self.offset, 0)
        return x.reshape(self.number, self.length, *x.shape[1:])

    def shares(self, position: int | jax.Array, chunk_size: int) -> jax.Array:
        """``1 / i`` for the ``i``-th slot of its chunk, ``[number, length]``.

        Args:
            position: tokens read before.
            chunk_size: distance between the boundaries of the grid.
        """
        first = position if self.length == 1 else 0
        slots = first + jnp.arange(self.number * self.length)
        shares = 1.0 / (slots % chunk_size + 1)
        return shares.reshape(self.number, self.length)

    def join(self, x: jax.Array) -> jax.Array:
        """``[number, length, ...] -> [T, ...]``, the inverse of ``split``."""
        x = x.reshape(self.number * self.length, *x.shape[2:])
        if isinstance(self.offset, int):
            return x[: self.tokens]
        return jax.lax.dynamic_slice_in_dim(x, self.offset, self.tokens, 0)


def cut(tokens: int, chunk_size: int, position: int | jax.Array) -> Blocks:
    """Returns the blocks of ``tokens`` tokens from ``position`` on.

    Args:
        tokens: length of the stretch, at least 1.
        chunk_size: distance between the boundaries of the grid.
        position: tokens read before: the integer 0 for a fresh stream, else a
            traced scalar.
    """
    if tokens == 1:
        closes = jnp.reshape((position + 1) % chunk_size == 0, (1,))
        return Blocks(1, 1, 1, 0, None, closes)
    fresh = isinstance(position, int)
    offset: int | jax.Array = 0
    if fresh:
        length = min(chunk_size, tokens)
        count = -(-tokens // length)
    else:
        length, offset = chunk_size, position % chunk_size
        count = -(-(tokens + chunk_size - 1) // chunk_size)
    slots = jnp.arange(count * length)
    valid = (slots >= offset) & (slots < offset + tokens)
    valid = valid.reshape(count, length)
    closes = valid[:, -1] & (length == chunk_size)
    full = fresh and tokens == count * length
    return Blocks(
        tokens, count, length, offset, None if full else valid, closes
    )
