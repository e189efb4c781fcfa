"""Windows packed with whole documents, planned from their lengths alone.

Best fit decreasing (Johnson, 1973): from the longest to the shortest, each
piece goes into the window that it leaves the least room in. Grain's packing
reads documents to learn their lengths, so each process packs its own; this plan
is the same on all processes and does not depend on their number.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nl_jax.data.order import DocumentOrder

_BLOCK_TOKENS, _BLOCK_WINDOWS, _BLOCK_PIECES = 1 << 22, 64, 1 << 15


class Piece(NamedTuple):
    """Consecutive tokens of one document."""

    corpus: int
    """Which corpus the document is from."""
    document: int
    """Index of the document in that corpus."""
    start: int
    """Position of the first token in the document."""
    length: int
    """Number of tokens."""


class Row(NamedTuple):
    """What one row of a batch holds, from its beginning."""

    pieces: Sequence[Piece]
    """Pieces one after another; padding follows."""
    first_id: int = 1
    """Segment id of the first piece; that of the next is one higher."""


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs pieces into windows, the longest piece first.

    Takes O(n (log n + capacity / 64)) time.

    Args:
        lengths: tokens of each piece, in ``[1, capacity]``.
        capacity: tokens of a window.

    Returns:
        The indices of the pieces in each window, which rise.

    Example:
        >>> best_fit([3, 6, 4, 7, 2], capacity=10)
        [[0, 3], [1, 2], [4]]
    """
    windows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # Bit r is set if a window has room for exactly r more tokens.
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = lengths[index]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            window = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            windows[window].append(index)
        else:
            room, window = capacity, len(windows)
            windows.append([index])
        room -= length
        if room:
            with_room[room].append(window)
            rooms |= 1 << room
    return [sorted(window) for window in windows]


class PackedWindows:
    """Endless sequence of packed windows, from documents in a given order.

    Documents longer than a window are cut into pieces that overlap by one
    token, so that each token but a document's first is a target once. Blocks of
    about 4 million tokens, and no more than there are, are packed at a time,
    and the windows of a block come in a random order. The blocks of one corpus
    end at its epochs' ends.

    The state is the position of the block in the order, and in the block.

    Args:
        order: order of the documents.
        seq_len: targets of a window, which has one token more.
        seed: seed of the order of windows in a block.
    """

    def __init__(self, order: DocumentOrder, seq_len: int, seed: int):
        self._order, self._seq_len, self._seed = order, seq_len, seed
        self._tokens = sum(int(n.sum(dtype=np.int64)) for n in order.lengths)
        self._windows: list[Sequence[Piece]] = []
        self._start = order.get_state()
        self._read = 0

    def __next__(self) -> Row:
        if self._read == len(self._windows):
            self._pack()
            self._read = 0
        self._read += 1
        return Row(self._windows[self._read - 1])

    def _pack(self) -> None:
        order, capacity = self._order, self._seq_len + 1
        self._start = order.get_state()
        epoch = order.epoch
        room = max(_BLOCK_TOKENS, _BLOCK_WINDOWS * capacity)
        room = min(room, self._tokens)
        pieces: list[Piece] = []
        while room > 0 and len(pieces) < _BLOCK_PIECES and order.epoch == epoch:
            corpus, index, length, _ = next(order)
            # The last token of a piece is the first of the next one.
            for start in range(0, length - 1, self._seq_len):
                size = min(capacity, length - start)
                pieces.append(Piece(corpus, index, start, size))
            room -= length
        packed = best_fit([piece.length for piece in pieces], capacity)
        self._windows = [[pieces[i] for i in window] for window in packed]
        random.Random(f"{self._seed}/{self._start}").shuffle(self._windows)

    def get_state(self) -> dict[str, Any]:
        """Returns the position, for :meth:`set_state`, as JSON values."""
        if self._read == len(self._windows):
            return {"block": self._order.get_state(), "windows": 0}
        return {"block": self._start, "windows": self._read}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a position; the order is left after the block."""
        self._order.set_state(state["block"])
        self._windows, self._read = [], 0
        if state["windows"]:
            self._pack()
            self._read = state["windows"]
