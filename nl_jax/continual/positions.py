"""Loss by position in a stream, and norms of its state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class PositionTable:
    """Table of bits per byte by position, in buckets of doubling size.

    Example:
        >>> table = PositionTable()
        >>> table.add(np.full(4, np.log(2)), np.ones(4))
        >>> [row["start"] for row in table.rows()]
        [0, 2, 4]
    """

    def __init__(self):
        self._nats = np.zeros(64)
        self._bytes = np.zeros(64)
        self._position = 1  # The first byte is not predicted.

    def add(self, nats: np.ndarray, n_bytes: np.ndarray) -> None:
        """Adds the losses of the next tokens, with the bytes in each."""
        ends = self._position + np.cumsum(n_bytes, dtype=np.int64)
        starts = ends - np.asarray(n_bytes, np.int64)
        bucket = np.frexp(np.maximum(starts, 1).astype(float))[1] - 1
        np.add.at(self._nats, bucket, nats)
        np.add.at(self._bytes, bucket, n_bytes)
        self._position = int(ends[-1]) if len(ends) else self._position

    def rows(self) -> list[dict[str, float]]:
        """Returns ``start``, ``bytes`` and ``bits_per_byte`` of each bucket."""
        return [
            {
                "start": 2 ** int(bucket) if bucket else 0,
                "bytes": int(self._bytes[bucket]),
                "bits_per_byte": float(
                    self._nats[bucket] / np.log(2) / self._bytes[bucket]
                ),
            }
            for bucket in np.flatnonzero(self._bytes)
        ]

    def total(self) -> float:
        """Returns the bits per byte of all tokens."""
        return float(self._nats.sum() / np.log(2) / self._bytes.sum())


def state_norms(state: Any) -> dict[str, float]:
    """Returns the Frobenius norm of each floating leaf of a fast state."""
    norms = _norms(state)
    return {
        jax.tree_util.keystr(path): float(norm)
        for path, norm in jax.tree_util.tree_leaves_with_path(norms)
    }


@jax.jit
def _norms(state):
    def norm(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return None
        return jnp.linalg.norm(leaf.astype(jnp.float32).ravel())

    return jax.tree.map(norm, state)
