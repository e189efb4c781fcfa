"""Scans over documents side by side, whose chunks start anew with each.

Each piece of a :class:`nl_jax.memory.packed.Layout` is one step. Tokens for
which there is no piece, because documents are many, are read one by one, with
the same numbers.
"""

import jax
import jax.numpy as jnp

from nl_jax.memory.remat import flat, remat_scan
from nl_jax.memory.state import starts, with_start, without_start


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
        state = _where(layout.resets[..., 0], initial, state)
        ends = layout.closes.any(-1)
        state, out = piece(state, tokens, ahead(layout.holds), ends)
        return state, back(out)

    def by_token(state, tokens, here):
        def body(state, token):
            chunk, valid, closes, resets = token
            chunk = jax.tree.map(lambda a: a[None], chunk)
            state = _where(resets, initial, state)
            state, out = piece(state, chunk, valid[None], closes)
            return state, jax.tree.map(lambda a: a[0], out)

        # What is not read here leaves everything as it is.
        marks = layout.holds, layout.closes, layout.starts
        here = [ahead(mark & here) for mark in marks]
        return remat_scan(body, state, (tokens, *here), every=None)

    if layout.pieces == layout.slot.shape[-1]:
        state, out = by_token(state, tokens, True)
        return state, back(out)

    drop, restore = (
        (without_start, with_start) if drop_start else (_same, _same)
    )

    def body(carry, chunk):
        resets, *chunk = chunk
        state, kept = carry
        state = _where(resets, drop(initial), state)
        # Nothing in the scan reads what is kept: it costs nothing if the
        # state after it is not used.
        kept = _where(chunk[1].any(0), starts(restore(state)), kept)
        state, out = piece(restore(state), *chunk)
        return (drop(state), kept), out

    valid = ahead(layout.valid)
    slots = len(valid) * valid.shape[1]
    pieces = jax.tree.map(lambda a: _fill(a, layout, ahead), tokens)
    (state, kept), out = remat_scan(
        body,
        (drop(state), starts(state)),
        (ahead(layout.resets), pieces, valid, valid[:, -1]),
        every=remat,
    )
    slot = jnp.minimum(ahead(layout.slot), slots - 1)
    out = jax.tree.map(lambda a: _take(flat(a), slot), out)
    late = layout.holds & (layout.slot >= slots)
    mask = ahead(late)

    def read_late(state, tokens, out):
        state, more = by_token(restore(state), tokens, late)
        return state, jax.tree.map(lambda a, b: _where(mask, a, b), more, out)

    def nothing_late(state, tokens, out):
        del tokens
        return restore(state), out

    # Nothing is kept for the backward pass of what hardly ever happens.
    finish = jax.checkpoint(
        lambda *operands: jax.lax.cond(
            layout.fits, nothing_late, read_late, *operands
        )
    )
    if layout.fits is None:
        state = restore(state)
    else:
        state, out = finish(state, tokens, out)
    if drop_start:
        last = layout.holds.sum(-1, keepdims=True) - 1
        closed = layout.closes & (jnp.arange(late.shape[-1]) == last)
        own = (closed | late).any(-1)
        state = with_start(state, _where(own, starts(state), kept))
    return state, back(out)


def _same(state):
    return state


def _fill(a, layout, ahead):
    """Lays tokens into pieces, zeros into empty slots."""
    valid = ahead(layout.valid)
    source = ahead(layout.source)
    a = _take(a, source.reshape(-1, *source.shape[2:]))
    a = a.reshape(*valid.shape[:2], *a.shape[1:])
    return _where(valid, a, jnp.zeros((), a.dtype))


def _take(a, columns):
    if columns.ndim == 1:
        return a[columns]
    return jax.vmap(lambda a, at: a[at], 1, 1)(a, columns)


def _where(mask, new, old):
    """Chooses between trees, by a mask of the first axes."""

    def pick(a, b):
        ndim = max(jnp.ndim(a), jnp.ndim(b))
        return jnp.where(
            mask.reshape(*mask.shape, *(1,) * (ndim - mask.ndim)), a, b
        )

    return jax.tree.map(pick, new, old)
