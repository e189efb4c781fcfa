"""Windows of joined documents, which take no notice of where they begin."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nl_jax.data.order import DocumentOrder
from nl_jax.data.packing import Piece, Row
from nl_jax.data.sources import Document, DocumentSource
from nl_jax.errors import InputError


class JoinedDocuments:
    """All documents of a source in their order, as if they were one.

    Args:
        source: the documents.
        separator: ids between one document and the next, int32.

    Example:
        >>> from nl_jax.data import DocumentsInMemory
        >>> ids = np.arange(4, dtype=np.int32)
        >>> two = DocumentsInMemory([Document(ids), Document(ids + 4)])
        >>> joined = JoinedDocuments(two, np.array([99], np.int32))
        >>> len(joined), joined.read(2, 5).tokens.tolist()
        (9, [2, 3, 99, 4, 5])
    """

    def __init__(self, source: DocumentSource, separator: np.ndarray):
        self._source, self._separator = source, Document(separator)
        lengths = np.asarray(source.lengths, np.int64)
        self._ends = np.cumsum(lengths + len(separator))

    def __len__(self) -> int:
        return int(self._ends[-1]) - len(self._separator.tokens)

    def read(self, start: int, length: int) -> Document:
        """Returns ``length`` tokens from ``start`` on, as a document."""
        index = int(np.searchsorted(self._ends, start, "right"))
        start -= int(self._ends[index - 1]) if index else 0
        parts: list[Document] = []
        while length > 0:
            for part in (self._source[index], self._separator):
                tokens = part.tokens[start : start + length]
                weights = np.ones(len(tokens), np.float32)
                if part.weights is not None:
                    weights = part.weights[start : start + length]
                parts.append(Document(tokens, weights))
                length -= len(tokens)
                start = max(start - len(part.tokens), 0)
            index += 1
        return Document(*map(np.concatenate, zip(*parts, strict=True)))


class JoinedWindows:
    """Endless sequence of windows of joined documents.

    Each epoch reads each window of a corpus once. From the second epoch on,
    boundaries between windows are shifted at random.

    Args:
        sizes: tokens of each corpus.
        weights: shares of the corpora; see :class:`DocumentOrder`.
        seq_len: targets of a window, which has one token more.
        seed: seed of the order and the shifts.

    Raises:
        InputError: if a corpus has too few tokens, or weights do not fit.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seq_len: int,
        seed: int,
    ):
        for size in sizes:
            if size <= 2 * seq_len:
                raise InputError(
                    f"{size} tokens are too few for seq_len={seq_len}, which "
                    f"needs more than {2 * seq_len}"
                )
        # One window less than would fit leaves room for the shift.
        windows = [
            np.broadcast_to(np.int32(seq_len), (size - 1) // seq_len - 1)
            for size in sizes
        ]
        self._order = DocumentOrder(windows, weights, seed, least=1)
        self._seq_len, self._seed = seq_len, seed

    blocks = 0

    def get_state(self) -> dict[str, Any]:
        """Returns the position, for :meth:`set_state`, as JSON values."""
        return self._order.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a position."""
        self._order.set_state(state)

    def __next__(self) -> Row:
        corpus, index, _, epoch = next(self._order)
        start = index * self._seq_len
        if epoch:
            shift = random.Random(f"{self._seed}/{epoch}")
            start += shift.randrange(self._seq_len)
        return Row([Piece(corpus, 0, start, self._seq_len + 1)])
