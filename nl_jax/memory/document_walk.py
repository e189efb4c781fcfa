"""Scans over documents side by side, whose chunks start anew with each.

Each piece of a :class:`nl_jax.memory.packed.Layout` is one step. Tokens for
which there is no piece, because documents are many, are read in further rounds.
"""

import functools

import jax
import jax.numpy as jnp

from nl_jax.memory.packed import into_pieces
from nl_jax.memory.remat import flat, remat_scan
from nl_jax.memory.state import starts, with_start, without_start
from nl_jax.nested.level import select_rows


def axes(axis: int):
    """Returns what moves the axis of tokens to the front, and back."""

    def first(tree):
        return jax.tree.map(lambda a: jnp.moveaxis(a, axis, 0), tree)

    def back(tree):
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, axis), tree)

    return first, back


def time_first(step, axis):
    """Returns ``step`` for pieces whose first axis is the tokens'."""
    first, back = axes(axis)

    def piece(state, chunk, valid, closes):
        if valid is not None and valid.ndim == 2 and axis:
            valid = valid.T
        state, out = step(state, back(chunk), valid, closes)
        return state, first(out)

    return piece


def scan_documents(
    step, state, inputs, layout, *, initial, axis, remat, drop_start
):
    """Scans documents piece by piece; see ``walk.chunk_scan``."""
    first, back = axes(axis)
    piece = time_first(step, axis)
    tokens = first(inputs)
    rows = layout.slot.ndim == 2

    def ahead(a):
        """Moves rows behind the axes of pieces and tokens."""
        return jnp.moveaxis(a, 0, -1) if rows else a

    if layout.pieces == 1:
        state = select_rows(layout.resets[..., 0], initial, state)
        ends = layout.closes.any(-1)
        state, out = piece(state, tokens, ahead(layout.holds), ends)
        return state, back(out)

    drop, restore = (
        (without_start, with_start) if drop_start else (_same, _same)
    )

    def lay_out(source, valid, resets):
        """Returns the pieces to scan."""
        source, valid, resets = map(ahead, (source, valid, resets))
        pieces = jax.tree.map(lambda a: _fill(a, source, valid), tokens)
        return resets, pieces, valid, valid[:, -1]

    def body(carry, chunk):
        resets, *chunk = chunk
        state, kept = carry
        state = select_rows(resets, drop(initial), state)
        # Nothing in the scan reads what is kept: it costs nothing if the
        # state after it is not used.
        kept = select_rows(chunk[1].any(0), starts(restore(state)), kept)
        state, out = piece(restore(state), *chunk)
        return (drop(state), kept), out

    slots = layout.valid.shape[-1] * layout.pieces
    (state, kept), out = remat_scan(
        body,
        (drop(state), starts(state)),
        lay_out(layout.source, layout.valid, layout.resets),
        every=remat,
    )
    slot = jnp.minimum(ahead(layout.slot), slots - 1)
    out = jax.tree.map(lambda a: _take(flat(a), slot), out)
    late = layout.holds & (layout.slot >= slots)
    state = restore(state)

    def late_body(state, chunk):
        resets, *chunk = chunk
        return piece(select_rows(resets, initial, state), *chunk)

    def read_late(state, out):
        """Reads the tokens that have no piece, in rounds of fewer pieces."""
        count, size = layout.late_pieces, layout.valid.shape[-1]
        cut = functools.partial(into_pieces, count=count, size=size)
        cut = jax.vmap(cut) if rows else cut

        def work(state, start):
            slot = layout.slot - start
            inside = late & (slot >= 0) & (slot < count * size)
            pieces = lay_out(*cut(slot, layout.starts))
            state, more = remat_scan(late_body, state, pieces, every=remat)
            slot = ahead(jnp.clip(slot, 0, count * size - 1))
            more = jax.tree.map(lambda a: _take(flat(a), slot), more)
            return state, (more, ahead(inside))

        def rest(state, start):
            empty = jax.eval_shape(work, state, start)[1]
            return state, jax.tree.map(
                lambda a: jnp.zeros(a.shape, a.dtype), empty
            )

        @jax.checkpoint
        def read(state, used, start):
            return jax.lax.cond(used, work, rest, state, start)

        def next_round(carry, number):
            state, out = carry
            used, number = number
            start = slots + number * count * size
            state, (more, inside) = read(state, used, start)
            out = jax.tree.map(
                lambda a, b: select_rows(inside, a, b), more, out
            )
            return (state, out), None

        numbers = jnp.arange(len(layout.late))
        return jax.lax.scan(next_round, (state, out), (layout.late, numbers))[0]

    if layout.late is not None and len(layout.late):
        # Nothing is kept for the backward pass of what hardly ever happens.
        finish = jax.checkpoint(
            lambda *operands: jax.lax.cond(
                layout.late.any(), read_late, lambda *same: same, *operands
            )
        )
        state, out = finish(state, out)
    if drop_start:
        last = layout.holds.sum(-1, keepdims=True) - 1
        closed = layout.closes & (jnp.arange(late.shape[-1]) == last)
        own = (closed | late).any(-1)
        state = with_start(state, select_rows(own, starts(state), kept))
    return state, back(out)


def _same(state):
    return state


def _fill(a, source, valid):
    """Lays tokens into pieces, zeros into empty slots."""
    a = _take(a, source.reshape(-1, *source.shape[2:]))
    a = a.reshape(*valid.shape[:2], *a.shape[1:])
    return select_rows(valid, a, jnp.zeros((), a.dtype))


def _take(a, columns):
    if columns.ndim == 1:
        return a[columns]
    return jax.vmap(lambda a, at: a[at], 1, 1)(a, columns)
