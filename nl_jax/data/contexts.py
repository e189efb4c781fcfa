"""What a model may have read before the tokens that it is evaluated on."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from nl_jax.data.sources import Document
from nl_jax.errors import InputError

CONTEXTS = ("window", "document", "stream")
"""See :func:`pieces`."""
_SORTED = 32
"""Batches of documents that are read at once, sorted by length."""


class EvaluationPiece(NamedTuple):
    """Tokens of one call of a model, in rows beside one another."""

    tokens: np.ndarray
    """Int32 ``[B, n + 1]``; all but the first are targets."""
    counts: np.ndarray
    """Bool ``[B, n]``: whether a target counts. Padding and prompts do not."""
    begins: bool
    """Whether the rows start from nothing; if not, they go on from the piece
    before, whose last tokens are their first."""


def pieces(
    documents: Iterable[Document], context: str, *, rows: int, length: int
) -> Iterator[EvaluationPiece]:
    """Yields documents in pieces for evaluation.

    Each token is a target once at most. The first of each document has nothing
    before it and is no target; with ``"stream"`` only that of all.

    Args:
        documents: documents, in any order.
        context: ``"window"`` for windows of ``length`` targets that start from
            nothing, each with the token before it as its first input;
            ``"document"`` for documents that start from nothing and are read to
            their end; ``"stream"`` for all documents as one.
        rows: windows or documents that are read beside one another.
        length: targets in each row of a piece.

    Raises:
        InputError: if the context is unknown.

    Example:
        >>> text = Document(np.arange(6))
        >>> for piece in pieces([text], "window", rows=2, length=3):
        ...     print(piece.tokens.tolist(), piece.counts.sum())
        [[0, 1, 2, 3], [3, 4, 5, 0]] 5
    """
    if context not in CONTEXTS:
        raise InputError(f"context={context!r} must be one of {CONTEXTS}")
    marked: Iterable[np.ndarray] = map(_marked, documents)
    if context == "stream":
        yield from _one_stream(marked, length)
        return
    if context == "window":
        marked = _windows(marked, length)
    left = (found for found in marked if found.shape[1] > 1)
    while batches := list(itertools.islice(left, _SORTED * rows)):
        # Documents of similar lengths need little padding.
        batches.sort(key=lambda found: found.shape[1], reverse=True)
        for at in range(0, len(batches), rows):
            batch = batches[at : at + rows]
            # Windows are for a program that was compiled for all rows.
            full = rows if context == "window" else len(batch)
            yield from _padded(batch, full, length)


def _marked(document):
    """Returns tokens and whether they count, int32 ``[2, n]``."""
    tokens, weights = document
    counts = np.ones_like(tokens) if weights is None else weights != 0
    return np.array([tokens, counts], np.int32)


def _windows(documents, length):
    for document in documents:
        for start in range(0, document.shape[1] - 1, length):
            yield document[:, start : start + length + 1]


def _padded(documents, rows, length):
    """Yields documents side by side, in as many pieces as the longest needs."""
    targets = max(document.shape[1] for document in documents) - 1
    width = -(-targets // length) * length
    padded = np.zeros((2, rows, width + 1), np.int32)
    for row, document in enumerate(documents):
        padded[:, row, : document.shape[1]] = document
    tokens, counts = padded[0], padded[1, :, 1:] > 0
    for at in range(0, width, length):
        end = at + length
        yield EvaluationPiece(
            tokens[:, at : end + 1], counts[:, at:end], at == 0
        )


def _one_stream(documents, length):
    held, begins = np.zeros((2, 0), np.int32), True
    for document in documents:
        held = np.concatenate([held, document], 1)
        while held.shape[1] > length:
            (piece,) = _padded([held[:, : length + 1]], 1, length)
            yield piece._replace(begins=begins)
            held, begins = held[:, length:], False
    if held.shape[1] > 1:
        (piece,) = _padded([held], 1, length)
        yield piece._replace(begins=begins)
