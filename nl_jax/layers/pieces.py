"""Reading a long stretch piece by piece, at the memory of one piece."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan_pieces(
    read: Callable[[Any, Any], tuple[Any, jax.Array]],
    state: Any,
    inputs: Any,
    size: int,
) -> tuple[Any, jax.Array]:
    """Scans over pieces of ``size`` tokens, then reads what is left.

    Args:
        read: ``(state, piece) -> (state, y)``, of any length up to ``size``.
        state: before the first token.
        inputs: tree of ``[B, T, ...]``.
        size: tokens of a piece.

    Returns:
        ``(state, y)``, ``y`` of ``[B, T, ...]``.

    Example:
        >>> import jax.numpy as jnp
        >>> def read(total, x):
        ...     return total + x.sum(), total + jnp.cumsum(x, 1)
        >>> total, y = scan_pieces(read, 0.0, jnp.ones((1, 5)), 2)
        >>> float(total), y.tolist()
        (5.0, [[1.0, 2.0, 3.0, 4.0, 5.0]])
    """
    length = jax.tree.leaves(inputs)[0].shape[1]
    whole = length // size * size

    def cut(a):
        a = a[:, :whole].reshape(a.shape[0], -1, size, *a.shape[2:])
        return a.swapaxes(0, 1)

    parts = []
    if whole:
        state, y = jax.lax.scan(read, state, jax.tree.map(cut, inputs))
        y = y.swapaxes(0, 1)
        parts.append(y.reshape(y.shape[0], whole, *y.shape[3:]))
    if whole < length:
        state, y = read(state, jax.tree.map(lambda a: a[:, whole:], inputs))
        parts.append(y)
    return state, jnp.concatenate(parts, 1)
