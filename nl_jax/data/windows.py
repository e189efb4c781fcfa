"""Windows of joined documents, which take no notice of where they begin."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nl_jax.data.order import DocumentOrder
from nl_jax.data.packing import Piece, Row
from nl_jax.data.sources import Document, DocumentSource, Span
from nl_jax.errors import InputError


class JoinedDocuments:
    """Source of one document: all documents of a source, joined in their order.

    Args:
        source: the documents.
        separator: ids between one document and the next, int32.

    Example:
        >>> from nl_jax.data import Document, DocumentsInMemory
        >>> ids = np.arange(4, dtype=np.int32)
        >>> two = DocumentsInMemory([Document(ids), Document(ids + 4)])
        >>> joined = JoinedDocuments(two, np.array([99], np.int32))
        >>> joined.read([Span(0, 2, 7)])[0].tokens.tolist()
        [2, 3, 99, 4, 5]
    """

    def __init__(self, source: DocumentSource, separator: np.ndarray):
        self._source, self._separator = source, separator
        ends = np.cumsum(np.asarray(source.lengths, np.int64) + len(separator))
        self._starts = np.concatenate([[0], ends[:-1]])
        self.lengths = ends[-1:] - len(separator)
        self.weighted = source.weighted

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Document:
        return self.read([Span(index, 0, int(self.lengths[index]))])[0]

    def read(self, slices: Iterable[Span]) -> list[Document]:
        """Returns parts of the joined documents."""
        # A part of a document in each, and where it is in the result.
        parts: list[tuple[Span, int, int]] = []
        out = []
        for number, (_, start, stop) in enumerate(slices):
            tokens = np.empty(stop - start, np.int32)
            weights = np.ones(stop - start, np.float32)
            out.append(Document(tokens, weights if self.weighted else None))
            at = start
            document = int(np.searchsorted(self._starts, at, "right")) - 1
            while at < stop:
                begin = int(self._starts[document])
                end = begin + int(self._source.lengths[document])
                if at < end:
                    part = Span(document, at - begin, min(stop, end) - begin)
                    parts.append((part, number, at - start))
                    at = min(stop, end)
                rest = self._separator[at - end : stop - end]
                tokens[at - start : at - start + len(rest)] = rest
                at += len(rest)
                document += 1
        read = self._source.read(part for part, _, _ in parts)
        for found, (_, number, at) in zip(read, parts, strict=True):
            whole, end = out[number], at + len(found.tokens)
            whole.tokens[at:end] = found.tokens
            if whole.weights is not None and found.weights is not None:
                whole.weights[at:end] = found.weights
        return out


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
