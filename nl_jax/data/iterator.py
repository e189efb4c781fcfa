"""Endless batches for training, planned alike and read apart by all processes.

A plan says which tokens each row of each batch holds. It follows from the
documents' lengths, the seed and how many batches were read. The position in it
is saved in checkpoints, and does not depend on the number of processes.
"""

import collections
import logging
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from nl_jax.checks import check_choice
from nl_jax.data.batch import Batch
from nl_jax.data.contiguous import ContiguousRows
from nl_jax.data.order import DocumentOrder
from nl_jax.data.packing import PackedWindows, Row
from nl_jax.data.sources import Document, DocumentSource, Span
from nl_jax.data.windows import JoinedDocuments, JoinedWindows
from nl_jax.errors import InputError

_LOG = logging.getLogger(__name__)


_READ_TOKENS, _READ_PIECES = 1 << 20, 256
"""About how much is read at once, at most: one of 256 records of a file takes a
tenth of the time of a single one."""


class _Plan(Protocol):
    def __next__(self) -> Row: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: Mapping[str, Any]) -> None: ...


class BatchIterator:
    """Endless iterator of batches, from :func:`make_iterator`."""

    def __init__(
        self,
        plan: _Plan,
        sources: Sequence[DocumentSource],
        *,
        batch_size: int,
        rows: Sequence[int],
        seq_len: int,
        order: str,
        segmented: bool,
        put: Callable[[Batch], Any],
    ):
        self._plan, self._sources, self._order = plan, sources, order
        self._batch_size, self._rows = batch_size, rows
        self._shape = (len(rows), seq_len + 1)
        self._segmented, self._put = segmented, put
        self._weighted = any(source.weighted for source in sources)
        self._ready: collections.deque[tuple[Batch, dict[str, Any]]]
        self._ready = collections.deque()
        self._state = plan.get_state()

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        if not self._ready:
            self._read_ahead()
        batch, self._state = self._ready.popleft()
        return self._put(batch)

    def _read_ahead(self) -> None:
        """Reads some batches at once."""
        planned = []
        room, pieces = _READ_TOKENS, 0
        while room > 0 and pieces < _READ_PIECES:
            rows = [next(self._plan) for _ in range(self._batch_size)]
            mine = [rows[number] for number in self._rows]
            planned.append((mine, self._plan.get_state()))
            room -= self._shape[0] * self._shape[1]
            pieces += sum(len(row.pieces) for row in mine)
        slices: list[list[Span]] = [[] for _ in self._sources]
        for rows, _ in planned:
            for row in rows:
                for corpus, document, start, length in row.pieces:
                    part = Span(document, start, start + length)
                    slices[corpus].append(part)
        found = [
            iter(source.read(parts)) if parts else iter(())
            for source, parts in zip(self._sources, slices, strict=True)
        ]
        for rows, state in planned:
            self._ready.append((self._fill(rows, found), state))

    def _fill(self, rows: list[Row], found: list[Iterator[Document]]) -> Batch:
        """Returns a batch of the next of the documents that were read."""
        tokens = np.zeros(self._shape, np.int32)
        ids = np.zeros(self._shape, np.int32) if self._segmented else None
        weights = np.ones(self._shape, np.float32) if self._weighted else None
        for number, row in enumerate(rows):
            at = 0
            for segment, piece in enumerate(row.pieces, row.first_id):
                document, end = next(found[piece.corpus]), at + piece.length
                tokens[number, at:end] = document.tokens
                if ids is not None:
                    ids[number, at:end] = segment
                if weights is not None and document.weights is not None:
                    weights[number, at:end] = document.weights
                at = end
        return Batch(tokens, ids, weights)

    def get_state(self) -> dict[str, Any]:
        """Returns the position, for :meth:`set_state`, as JSON values."""
        return {"plan": self._state, "order": self._order}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on after the batches that were read before.

        With other documents, another seed or another way of reading, it begins
        with the first.

        Raises:
            InputError: if the state is that of another version, or of rows that
                read on in a batch of another size.
        """
        if state.keys() != self.get_state().keys():
            raise InputError(
                "the checkpoint's position in the text is that of another "
                "version; begin in another --workdir"
            )
        if state["order"] == self._order:
            self._plan.set_state(state["plan"])
            self._state = self._plan.get_state()
            self._ready.clear()
        else:
            _LOG.warning(
                "the text, seq_len, seed or reading is another: reading begins "
                "anew"
            )


class PrefetchedBatches(grain.experimental.ThreadPrefetchDatasetIterator):
    """A :class:`BatchIterator` that reads ahead in a thread.

    ``get_state`` is the position of the last batch that it gave.
    """

    def __del__(self):
        # Grain's own fails where the interpreter has ended its modules.
        if not sys.is_finalizing():
            super().__del__()


def make_iterator(
    sources: Sequence[DocumentSource],
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    reading: str = "windows",
    weights: Sequence[float] = (),
    carry_windows: int = 0,
    packed_share: float = 0.0,
    separator: np.ndarray | None = None,
    rows: Sequence[int] | None = None,
    put: Callable[[Batch], Any] = lambda batch: batch,
) -> PrefetchedBatches:
    """Returns an endless iterator of :class:`Batch`, read ahead in a thread.

    Each epoch of a corpus reads each token once as a target, in an order of its
    own; in packed and contiguous rows, the first token of a document is none.
    The rows of the whole batch are the same for any number of processes. The
    iterator's ``get_state`` and ``set_state`` save and restore its position,
    and ``close`` ends its thread.

    Args:
        sources: the documents of each corpus.
        seq_len: number of targets per row.
        batch_size: number of rows over all processes.
        seed: seed of the order, at least 0.
        reading: ``"windows"`` for windows of joined documents, ``"packed"`` for
            windows packed with whole documents, see :class:`PackedWindows`, or
            ``"contiguous"`` for rows that read on, see :class:`ContiguousRows`.
        weights: shares of the corpora in the tokens that are read, in any unit;
            empty for shares like their sizes.
        carry_windows: most windows that one segment of a contiguous row reaches
            over; 0 for no bound.
        packed_share: share of packed rows among contiguous ones.
        separator: ids between joined documents; none by default.
        rows: the rows of each batch that this process reads; all by default.
        put: applied to each batch in the thread, such as to put it on devices
            before it is asked for.

    Raises:
        InputError: if arguments do not fit, or there are too few documents.

    Example:
        >>> from nl_jax.data import Document, DocumentsInMemory
        >>> ids = np.arange(9, dtype=np.int32)
        >>> three = DocumentsInMemory(map(Document, [ids, ids[:4], ids[:5]]))
        >>> batches = make_iterator(
        ...     [three], seq_len=8, batch_size=2, seed=0, reading="packed"
        ... )
        >>> next(batches).segment_ids.tolist()
        [[1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1, 1]]
        >>> batches.close()
    """
    check_choice("data.reading", reading, ("windows", "packed", "contiguous"))
    rows = range(batch_size) if rows is None else rows
    if not rows or min(rows) < 0 or max(rows) >= batch_size:
        raise InputError(
            f"rows={rows!r} must be rows of batch_size={batch_size}"
        )
    lengths = [source.lengths for source in sources]
    plan: _Plan
    if reading == "windows":
        none = np.zeros(0, np.int32) if separator is None else separator
        sources = [JoinedDocuments(source, none) for source in sources]
        sizes = [int(source.lengths[0]) for source in sources]
        plan = JoinedWindows(sizes, weights, seq_len, seed)
    else:
        documents = DocumentOrder(lengths, weights, seed)
        _check_tokens(lengths, seq_len, batch_size)
        if reading == "packed":
            plan = PackedWindows(documents, seq_len, seed)
        else:
            plan = ContiguousRows(
                documents,
                seq_len,
                seed,
                batch_size=batch_size,
                carry_windows=carry_windows,
                packed_share=packed_share,
            )
    choices = [seq_len, seed, reading, *weights]
    if reading == "contiguous":
        choices += [carry_windows, packed_share]
    text = 0
    for corpus in lengths:
        text = zlib.crc32(np.ascontiguousarray(corpus).data, text)
    batches = BatchIterator(
        plan,
        sources,
        batch_size=batch_size,
        rows=rows,
        seq_len=seq_len,
        order="/".join([f"{text:08x}", *map(str, choices)]),
        segmented=reading != "windows",
        put=put,
    )
    return PrefetchedBatches(batches, prefetch_buffer_size=2)


def _check_tokens(
    lengths: Sequence[np.ndarray], seq_len: int, batch_size: int
) -> None:
    """Checks that the tokens fill a batch, and tells of short documents."""
    short = sum(int((corpus < 2).sum()) for corpus in lengths)
    if short:
        _LOG.info(
            "left out %d documents of fewer than 2 tokens, in which nothing "
            "can be predicted",
            short,
        )
    tokens = sum(int(corpus.sum(dtype=np.int64)) for corpus in lengths)
    if tokens < batch_size * (seq_len + 1):
        raise InputError(
            f"the documents have {tokens} tokens, too few for one batch of "
            f"batch_size={batch_size} rows of seq_len={seq_len}: give more "
            "text in data.paths, or smaller batches"
        )
