"""Documents side by side in the rows of a batch.

A row of segment ids says which document each token is of. Before the first
block tokens move in front of their row's padding, so that padding comes last
everywhere in a model. What a mixer needs to know is a :class:`Packed`; if it
has chunks, they start anew with each document, see :class:`Layout`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.array_typing import Ids
from nl_jax.errors import InputError

UNNAMED = -1
"""Segment id of a document that was read without one."""
_BEFORE = -(2**30)
"""Column of the first token of a document that began in an earlier call."""


class Packed(NamedTuple):
    """Documents in the rows of one call, batch first, padding last."""

    first: jax.Array
    """Column of the first token of each token's document, int32 ``[B, T]``; far
    below 0 for the document that the state is of."""
    lengths: jax.Array
    """Tokens of each row, without padding, int32 ``[B]``."""
    back: jax.Array | None = None
    """Where the token that was in a column now is, int32 ``[B, T]``."""
    closes: jax.Array | None = None
    """Whether a row's tokens end a chunk, ``[B]``, if they are all of one."""

    def restore(self, values: jax.Array) -> jax.Array:
        """Returns ``values``, ``[B, T, ...]``, in the order of the call."""
        return values if self.back is None else _take(values, self.back)

    @property
    def column(self) -> jax.Array:
        """Column of each token, int32 ``[1, T]``."""
        return jnp.arange(self.first.shape[1])[None]

    @property
    def valid(self) -> jax.Array:
        """Whether a column holds a token, ``[B, T]``."""
        return self.column < self.lengths[:, None]

    @property
    def starts(self) -> jax.Array:
        """Whether a token is the first of a document, ``[B, T]``."""
        return (self.first == self.column) & self.valid

    @property
    def since(self) -> jax.Array:
        """Earlier tokens of each token's document, int32 ``[B, T]``; very many
        if it began in an earlier call.
        """
        return self.column - self.first

    @property
    def last_first(self) -> jax.Array:
        """``first`` of each row's last token, int32 ``[B]``."""
        at = jnp.maximum(self.lengths - 1, 0)[:, None]
        first = jnp.take_along_axis(self.first, at, 1)[:, 0]
        return jnp.where(self.lengths > 0, first, _BEFORE)

    def repeat(self, times: int) -> "Packed":
        """Returns the documents with each token so many ``times``."""
        first = jnp.repeat(self.first, times, 1)
        first = jnp.where(first < 0, first, first * times)
        return Packed(first, self.lengths * times)

    def place(self, position: jax.Array) -> jax.Array:
        """Returns the tokens of its document before each token, ``[B, T]``.

        Args:
            position: tokens of the state's document already read, ``[B, 1]``.
        """
        continued = position + self.column
        return jnp.where(self.first < 0, continued, self.since)

    def advance(self, position: jax.Array) -> jax.Array:
        """Returns ``position`` behind the call, of each row's last document."""
        first = self.last_first
        start = jnp.where(first < 0, position, -first)
        return start + self.lengths


def pack(
    tokens: Ids, segment_ids: Ids, before: jax.Array | None, fresh: bool
) -> tuple[Ids, Packed, jax.Array]:
    """Moves tokens in front of padding.

    Args:
        tokens: ids, ``[B, T]``.
        segment_ids: id of each token's document, 0 for padding, ``[B, T]``.
        before: id of the document of each row's state, ``[B]``; ``None``, or
            -1 in a row, for the one with which the row goes on.
        fresh: whether there is no state, so that every document begins here.

    Returns:
        ``(tokens, packed, segment)``; ``segment`` is ``before`` of the next
        call.
    """
    valid = segment_ids != 0
    there = jnp.argsort(~valid, axis=1, stable=True)
    tokens, ids = _take(tokens, there), _take(segment_ids, there)
    count = valid.sum(1, dtype=jnp.int32)
    column = jnp.arange(ids.shape[1], dtype=jnp.int32)
    if before is None:
        before = jnp.full(len(ids), 0 if fresh else UNNAMED)
    opening = jnp.where(before == UNNAMED, ids[:, 0], before)
    earlier = jnp.concatenate([opening[:, None], ids[:, :-1]], 1)
    changes = ids != earlier
    if fresh:
        changes = changes.at[:, 0].set(True)
    first = jnp.where(changes, column, _BEFORE)
    first = jax.lax.cummax(first, axis=1)
    last = jnp.take_along_axis(ids, jnp.maximum(count - 1, 0)[:, None], 1)[:, 0]
    packed = Packed(first, count, jnp.argsort(there, axis=1))
    return tokens, packed, jnp.where(count > 0, last, before)


def check_segment_ids(segment_ids: Any, shape: tuple[int, ...]) -> Ids:
    """Returns segment ids as int32; traced ones are not compared.

    Traced ids must be less than 2**31.

    Raises:
        InputError: for another shape or dtype than that of ids for tokens of
            ``shape``, ids below 0, or one that comes back after another.
    """
    traced = isinstance(segment_ids, jax.core.Tracer)
    try:
        ids = segment_ids if traced else np.asarray(segment_ids)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"segment_ids is no array of integers, {list(shape)} ({error})"
        ) from error
    if ids.shape != shape or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(
            f"segment_ids is {ids.dtype}{list(ids.shape)}; needs an integer "
            f"for each token, {list(shape)}"
        )
    if not traced:
        if ids.min() < 0 or ids.max() >= 2**31:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise InputError(
                f"segment_ids contains {wrong}; ids are positive and less than "
                "2**31, 0 is padding"
            )
        for number, row in enumerate(ids):
            row = row[row != 0]
            runs = row[np.flatnonzero(np.diff(row, prepend=0))]
            seen, counts = np.unique(runs, return_counts=True)
            if (counts > 1).any():
                raise InputError(
                    f"segment_ids: in row {number}, id "
                    f"{seen[counts > 1][0]} comes back after another; the "
                    "tokens of a document stand together"
                )
    return jnp.asarray(segment_ids, jnp.int32)


class Layout(NamedTuple):
    """Documents cut into pieces of at most one chunk, for ``chunk_scan``.

    Chunks are counted from the first token of each document, and a piece holds
    tokens of one chunk. Rows are the first axis where there are rows.
    """

    source: jax.Array
    """Column of the token in each slot, int32 ``[B, n, C]``."""
    valid: jax.Array
    """Whether a slot holds a token, ``[B, n, C]``."""
    resets: jax.Array
    """Whether a piece begins a document, ``[B, n]``."""
    slot: jax.Array
    """Slot of each token, int32 ``[B, T]``; from ``n C`` on in further rounds,
    and behind all of them for padding."""
    place: jax.Array
    """Tokens before each token in its chunk, int32 ``[B, T]``."""
    starts: jax.Array
    """As :attr:`Packed.starts`, ``[B, T]``."""
    holds: jax.Array
    """As :attr:`Packed.valid`, ``[B, T]``."""
    closes: jax.Array
    """Whether a token is the last of its chunk, ``[B, T]``."""
    late: jax.Array | None
    """Further rounds of ``m`` pieces in which any row has tokens, without rows;
    ``None`` if it is known that there are none."""

    @property
    def pieces(self) -> int:
        """Number ``n`` of pieces."""
        return self.resets.shape[-1]

    @property
    def late_pieces(self) -> int:
        """Number ``m`` of pieces in a further round."""
        return -(-self.pieces // 2)

    @property
    def rows(self) -> Any:
        """Axes for ``jax.vmap`` over rows."""
        axes: Any = dict.fromkeys(self._fields, 0)
        return Layout(**axes | {"late": None})


def lay(packed: Packed, position: jax.Array, size: int) -> Layout:
    """Cuts documents into pieces of chunks of ``size`` tokens.

    There are a sixteenth more pieces than a single document would need, and
    two. Where documents are more, the rest of their tokens are read in further
    rounds.

    Args:
        packed: the documents.
        position: tokens of the state's document already read, ``[B]``.
        size: tokens per chunk.
    """
    length = packed.first.shape[1]
    pieces = min(length, -(-length * 17 // (16 * size)) + 2)
    if packed.closes is not None:
        pieces = 1
    valid, starts = packed.valid, packed.starts
    place = packed.place(position[:, None]) % size
    closes = valid & (place == size - 1)
    begins = starts | (place == 0) | (packed.column == 0)
    piece = jnp.cumsum(begins, 1) - 1
    slot = jnp.where(valid, piece * size + place, length * size)
    source, held, resets = jax.vmap(
        functools.partial(into_pieces, count=pieces, size=size)
    )(slot, starts)
    half = -(-pieces // 2)
    count = -(-max(length - pieces, 0) // half)
    rounds = (piece - pieces) // half
    late = valid & (piece >= pieces)
    return Layout(
        source,
        held,
        resets,
        slot,
        place,
        starts,
        valid,
        closes,
        jnp.zeros(count, bool)
        .at[jnp.where(late, rounds, count)]
        .set(True, mode="drop"),
    )


def into_pieces(
    slot: jax.Array, starts: jax.Array, *, count: int, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns ``source``, ``valid`` and ``resets`` of a row's pieces.

    Args:
        slot: slot of each token, ``[T]``; others than those of the pieces are
            left out.
        starts: whether a token is the first of a document, ``[T]``.
        count: number of pieces.
        size: slots in each.
    """
    # A negative index would count from the end.
    at = jnp.where(slot < 0, count * size, slot)

    def put(empty, values):
        row = jnp.full(count * size, empty)
        return row.at[at].set(values, mode="drop").reshape(count, size)

    source = put(-1, jnp.arange(len(slot)))
    resets = put(False, starts).any(-1)
    return jnp.maximum(source, 0), source >= 0, resets


def documents(
    packed: Packed | None, read: Callable[..., Any], name: str = ""
) -> dict[str, Any]:
    """Returns ``packed`` as a keyword for ``read``; none if it is ``None``.

    Args:
        packed: the documents.
        read: what must name the keyword; ``**options`` could ignore it.
        name: the matrix rule whose scan ``read`` is. Its keyword is ``resets``,
            the first tokens of documents for each head, ``[B, 1, T]``.

    Raises:
        InputError: if ``read`` has no such keyword.
    """
    if packed is None:
        return {}
    keyword, what = "packed", "a nl_jax.memory.packed.Packed"
    if name:
        keyword, what = "resets", "the first tokens of documents"
    if keyword not in inspect.signature(read).parameters:
        label = f"the scan of rule {name!r}" if name else read.__qualname__
        raise InputError(
            f"segment_ids: {label} does not tell documents apart; "
            f"it must take the keyword {keyword} by name, {what}"
        )
    return {keyword: packed.starts[:, None] if name else packed}


def goes_on(lengths: jax.Array, size: int) -> Packed:
    """Returns rows of up to ``size`` tokens, all of the state's documents."""
    return Packed(jnp.full((len(lengths), size), _BEFORE), lengths)


def _take(values, columns):
    index = columns.reshape(*columns.shape, *(1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, 1)
