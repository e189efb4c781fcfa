"""Scans over documents side by side, whose chunks start anew with each.

Each piece of a :class:`nl_jax.memory.packed.Layout` is one step, and one in
which no row has tokens costs nothing. Documents too many for the layout are
read token by token, with the same numbers.
"""

import jax
import jax.numpy as jnp

from nl_jax.memory.remat import flat, remat_scan
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


def _document_step(step, initial, axis):
    """Returns a step from ``initial`` where a document begins."""
    piece = time_first(step, axis)

    def read(state, chunk, valid, closes, resets):
        if resets.ndim:
            state = select_rows(resets, initial, state)
        else:
            state = jax.tree.map(
                lambda new, old: jnp.where(resets, new, old), initial, state
            )
        return piece(state, chunk, valid, closes)

    return read


def scan_documents(step, state, inputs, layout, *, initial, axis, remat):
    """Scans documents piece by piece; see ``walk.chunk_scan``."""
    first, back = axes(axis)
    read = _document_step(step, initial, axis)
    state, out = _on_layout(read, state, first(inputs), layout, remat)
    return state, back(out)


def _on_layout(read, state, tokens, layout, remat):
    rows = layout.slot.ndim == 2
    length = layout.slot.shape[-1]

    def ahead(a):
        """Moves rows behind the axes of pieces and tokens."""
        return jnp.moveaxis(a, 0, -1) if rows else a

    def take(a, columns):
        return (
            jax.vmap(lambda a, at: a[at], 1, 1)(a, columns)
            if rows
            else (a[columns])
        )

    def by_token(state, tokens):
        def body(state, token):
            chunk, valid, closes, resets = token
            chunk = jax.tree.map(lambda a: a[None], chunk)
            state, out = read(state, chunk, valid[None], closes, resets)
            return state, jax.tree.map(lambda a: a[0], out)

        # Padding leaves everything as it is, empty pieces too.
        marks = layout.holds, layout.closes, layout.starts
        return remat_scan(body, state, (tokens, *map(ahead, marks)), every=None)

    def by_piece(state, tokens):
        valid = ahead(layout.valid)
        count, size = valid.shape[:2]
        source = ahead(layout.source).reshape(count * size, *valid.shape[2:])

        def fill(a):
            a = take(a, source).reshape(count, size, *a.shape[1:])
            mask = valid.reshape(*valid.shape, *(1,) * (a.ndim - valid.ndim))
            return jnp.where(mask, a, jnp.zeros((), a.dtype))

        def work(state, chunk):
            return read(state, *chunk)

        def rest(state, chunk):
            out = jax.eval_shape(work, state, chunk)[1]
            return state, jax.tree.map(
                lambda a: jnp.zeros(a.shape, a.dtype), out
            )

        def body(state, piece):
            used, *chunk = piece
            return jax.lax.cond(used, work, rest, state, chunk)

        pieces = (
            layout.used,
            jax.tree.map(fill, tokens),
            valid,
            ahead(layout.ends),
            ahead(layout.resets),
        )
        state, out = remat_scan(body, state, pieces, every=remat)
        slot = jnp.minimum(ahead(layout.slot), count * size - 1)
        return state, jax.tree.map(lambda a: take(flat(a), slot), out)

    if len(layout.used) == 1:
        ends, resets = layout.ends[..., 0], layout.resets[..., 0]
        return read(state, tokens, ahead(layout.holds), ends, resets)
    if len(layout.used) == length:
        return by_token(state, tokens)
    return jax.lax.cond(layout.fits, by_piece, by_token, state, tokens)
