"""What a stream is read from, and what is measured along it."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.training.errors import InputError

__all__ = ["PositionTable", "read_blocks", "state_norms"]


def read_blocks(path, size: int = 1 << 16) -> Iterator[bytes]:
    """Yields the text of a file in pieces that end where a line ends, if any.

    Raises:
        InputError: for a file that is missing, empty or binary.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a text file")
    rest, found = b"", False
    with path.open("rb") as file:
        while block := file.read(size):
            found = True
            if b"\0" in block:
                raise InputError(f"{path} is binary; give UTF-8 text")
            block = rest + block
            cut = block.rfind(b"\n") + 1
            if not cut and len(block) > 16 * size:
                # A line without an end must not fill the memory.
                cut = len(block)
                while cut and block[cut - 1] & 0xC0 == 0x80:
                    cut -= 1
                cut -= 1
            if cut:
                yield _utf8(path, block[:cut])
            rest = block[cut:]
    if rest:
        yield _utf8(path, rest)
    if not found:
        raise InputError(f"{path} is empty; give a text file")


class PositionTable:
    """Bits per byte by position, in buckets that double in size.

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
        """Adds the next tokens' losses and the bytes that they spell."""
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
        """Returns bits per byte of everything."""
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


def _utf8(path, block: bytes) -> bytes:
    try:
        block.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8; convert it (iconv -t utf-8)"
        ) from error
    return block
