"""Rows that read documents on from one batch to the next.

A model that keeps its state from step to step then reads contexts longer than a
window. All processes plan all rows, from the documents' lengths alone.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from nl_jax.data.order import DocumentOrder
from nl_jax.data.packing import PackedWindows, Piece, Row
from nl_jax.errors import InputError

_LOG = logging.getLogger(__name__)


class _Reading(NamedTuple):
    """Where a row goes on."""

    corpus: int
    document: int
    start: int
    """Position in the document of the row's next first token."""
    segment: int
    """Segment id of that token."""
    windows: int
    """Number of windows that have carried the segment."""


class ContiguousRows:
    """Endless sequence of the rows of batches, each of which reads on.

    Rows come batch by batch, in order.

    A row reads a document to its end and goes on, in the same window, with the
    next one in the order. The last token of a window is also the first of the
    row's next one. Segment ids of a row rise from batch to batch.

    The state is the position in the order and five numbers for each row.

    Args:
        order: order of the documents.
        seq_len: targets of a window, which has one token more.
        seed: seed of the packed windows.
        batch_size: number of rows over all processes.
        carry_windows: most windows that one segment reaches over, after which
            the rest of its document is a new segment; 0 for no bound.
        packed_share: share of the rows that are packed windows instead. Those
            rows are spread evenly over the batch.

    Raises:
        InputError: if there are fewer documents than rows, or ``packed_share``
            is less than half a row, or leaves less than that.
    """

    def __init__(
        self,
        order: DocumentOrder,
        seq_len: int,
        seed: int,
        *,
        batch_size: int,
        carry_windows: int = 0,
        packed_share: float = 0.0,
    ):
        packed_rows = round(packed_share * batch_size)
        if packed_share and not 0 < packed_rows < batch_size:
            raise InputError(
                f"data.packed_share={packed_share} of batch_size={batch_size} "
                f"is {packed_rows} rows; give 0, or a share that leaves at "
                "least one row of each kind"
            )
        documents = sum(int((n >= 2).sum()) for n in order.lengths)
        if documents < batch_size:
            raise InputError(
                f"data.reading='contiguous' reads a document of its own in "
                f"each of batch_size={batch_size} rows; the corpus has only "
                f"{documents} of 2 tokens or more"
            )
        most = carry_windows * seq_len
        longer = sum(int((n > most + 1).sum()) for n in order.lengths)
        if carry_windows and longer:
            _LOG.info(
                "%d of %d documents are longer than data.carry_windows=%d "
                "windows of %d tokens; the rest of each is read as a new "
                "document",
                longer,
                documents,
                carry_windows,
                seq_len,
            )
        self._order, self._seq_len = order, seq_len
        self._carry_windows = carry_windows
        self._packed = PackedWindows(order, seq_len, seed)
        marks = [r * packed_rows // batch_size for r in range(batch_size + 1)]
        self._is_packed = [marks[r + 1] > marks[r] for r in range(batch_size)]
        self._rows = [_Reading(-1, -1, 0, 0, 0)] * batch_size
        self._number = 0  # Which row is next.

    def __next__(self) -> Row:
        number = self._number
        self._number = (number + 1) % len(self._rows)
        before = self._rows[number]
        if not self._is_packed[number]:
            row, self._rows[number] = self._read(before)
            return row
        # New ids in each window: nothing of the last one goes on.
        row = next(self._packed)._replace(first_id=before.segment + 1)
        segment = before.segment + len(row.pieces)
        self._rows[number] = before._replace(segment=segment)
        return row

    def _read(self, at: _Reading) -> tuple[Row, _Reading]:
        """Returns a row's next window and where the row goes on after it."""
        if at.document < 0:
            at = self._new(at.segment)
        elif at.windows and at.windows == self._carry_windows:
            at = at._replace(segment=at.segment + 1, windows=0)
        pieces, first_id, room = [], at.segment, self._seq_len + 1
        while True:
            length = int(self._order.lengths[at.corpus][at.document])
            size = min(length - at.start, room)
            pieces.append(Piece(at.corpus, at.document, at.start, size))
            # A piece of the last token alone is only in the next window read.
            windows = at.windows + (room > 1)
            room -= size
            start = at.start + size
            if start < length:
                at = at._replace(start=start - 1, windows=windows)
                return Row(pieces, first_id), at
            if not room:
                at = _Reading(-1, -1, 0, at.segment, 0)
                return Row(pieces, first_id), at
            at = self._new(at.segment)

    def _new(self, segment: int) -> _Reading:
        draw = next(self._order)
        return _Reading(draw.corpus, draw.document, 0, segment + 1, 0)

    def get_state(self) -> dict[str, Any]:
        """Returns the position after a whole batch, for :meth:`set_state`."""
        packed = self._packed.get_state()
        rows = [[*row] for row in self._rows]
        return {"order": self._order.get_state(), **packed, "rows": rows}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a position.

        Raises:
            InputError: if it is that of a batch of another size.
        """
        if len(state["rows"]) != len(self._rows):
            raise InputError(
                f"the checkpoint reads on in {len(state['rows'])} rows; with "
                "data.reading='contiguous' batch_size must stay "
                f"{len(state['rows'])}, not {len(self._rows)}"
            )
        self._packed.set_state(state)
        self._order.set_state(state["order"])
        self._rows = [_Reading(*row) for row in state["rows"]]
        self._number = 0
