"""Scans over streams of tokens, chunk by chunk.

Chunk boundaries are counted from the stream's first token. A call may begin and
end anywhere; its part of one chunk is a *piece*. However a stream is split into
calls, no piece crosses a boundary, so a step that may be interrupted anywhere
inside a chunk gives the same numbers for every split.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.checks import check_count
from nl_jax.errors import InputError
from nl_jax.memory.document_walk import axes, scan_documents, time_first
from nl_jax.memory.packed import Layout
from nl_jax.memory.remat import Carry, flat, join_parts, remat_scan
from nl_jax.memory.state import with_start, without_start


def chunk_scan(
    step: Callable[..., tuple[Carry, Any]],
    state: Carry,
    inputs: Any,
    *,
    size: int,
    position: int | jax.Array = 0,
    axis: int = 0,
    remat: int | None = 1,
    whole: Callable[[Carry, Any], tuple[Carry, Any]] | None = None,
    drop_start: bool = False,
    layout: Layout | None = None,
    initial: Any = None,
) -> tuple[Carry, Any]:
    """Scans a part of a stream, at most one chunk per step.

    If ``position`` is the integer 0, whole chunks are scanned and the remaining
    tokens are one shorter step. If it is traced or inside a chunk, tokens are
    padded to chunk boundaries, at most one chunk more than they fill, and
    masked; a single token is a single step of length 1. Steps independent of
    chunk boundaries (window attention, linear recurrences) need no position and
    no masks.

    Args:
        step: ``(state, piece, valid, closes) -> (state, outputs)`` for at most
            ``size`` tokens. ``valid`` is ``None`` if every slot of the piece
            holds a token, else a mask ``[C]`` (with rows ``[C, B]``, or
            ``[B, C]`` unless ``axis`` is 0); empty slots are zeros. ``closes``
            is whether the piece ends its chunk: a Python ``bool``, or an array,
            ``[B]`` with rows.
        state: state before the first token.
        inputs: tree of arrays with at least one token.
        size: tokens per chunk.
        position: tokens already read: the integer 0 at a chunk boundary, else a
            scalar, or ``[B]`` for rows at different positions, which are then
            the first axis after the tokens' in every array.
        axis: axis of the tokens in inputs, pieces and outputs.
        remat: as ``every`` in :func:`remat_scan`.
        whole: ``(state, inputs) -> (state, outputs)``, which replaces the scan
            of all whole chunks if no masks are needed.
        drop_start: whether the memories in ``state`` use these chunk
            boundaries. A scan of whole chunks then neither carries nor keeps
            their ``start``, which equals their weights; with a ``layout``, only
            for a state at a boundary.
        layout: of documents, from :func:`nl_jax.memory.packed.lay` with the
            same ``size``, in place of ``position``; its arrays have rows
            exactly if inputs and state do.
        initial: state with which each document of ``layout`` begins.

    Returns:
        ``(state, outputs)``, the outputs of all tokens; those of padding are
        arbitrary.

    Example:
        >>> import jax.numpy as jnp
        >>> def read(total, x, valid, closes):
        ...     return total + x.sum(), total + jnp.cumsum(x)
        >>> total, y = chunk_scan(read, 0.0, jnp.ones(5), size=2)
        >>> float(total), y.tolist()
        (5.0, [1.0, 2.0, 3.0, 4.0, 5.0])
    """
    check_count("size", size)

    first, back = axes(axis)
    length = jax.tree.leaves(inputs)[0].shape[axis]
    if not length:
        raise InputError("a scan needs at least one token; there are 0")
    if layout is not None:
        return scan_documents(
            step,
            state,
            inputs,
            layout,
            initial=initial,
            axis=axis,
            remat=remat,
            drop_start=drop_start,
        )
    fresh = isinstance(position, int) and position % size == 0
    if not fresh and length == 1:
        return step(state, inputs, None, (position + 1) % size == 0)

    piece = time_first(step, axis)
    tokens = first(inputs)
    if not fresh:
        state, out = _on_grid(piece, state, tokens, size, position, remat)
        return state, back(out)
    rest = length % size
    parts = []
    if length > rest:
        chunks = jax.tree.map(lambda a: a[: length - rest], tokens)
        if whole is not None:
            state, out = whole(state, back(chunks))
            out = first(out)
        else:
            state, out = _whole_chunks(
                piece, state, chunks, size, remat, drop_start
            )
        parts.append(out)
    if rest:

        def last(state, chunk):
            return piece(state, chunk, None, False)

        last = last if remat == 0 else jax.checkpoint(last)
        state, out = last(state, jax.tree.map(lambda a: a[-rest:], tokens))
        parts.append(out)
    return state, back(jax.tree.map(lambda *a: join_parts(a), *parts))


def _whole_chunks(step, state, inputs, size, remat, drop_start):
    def drop(state):
        return without_start(state) if drop_start else state

    def restore(state):
        return with_start(state) if drop_start else state

    def body(state, chunk):
        state, out = step(restore(state), chunk, None, True)
        return drop(state), out

    chunks = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), inputs)
    state, out = remat_scan(body, drop(state), chunks, every=remat)
    return restore(state), jax.tree.map(flat, out)


def _on_grid(step, state, inputs, size, position, remat):
    offset = jnp.asarray(position % size)
    length = jax.tree.leaves(inputs)[0].shape[0]
    count = -(-(length + size - 1) // size)
    slots = jnp.arange(count * size).reshape(count, size)

    def lay(a):
        empty = jnp.zeros((count * size, *a.shape[1:]), a.dtype)
        put = jax.lax.dynamic_update_slice_in_dim
        if offset.ndim:
            put = jax.vmap(put, (1, 1, 0, None), 1)
        return put(empty, a, offset, 0).reshape(count, size, *a.shape[1:])

    def take(a):
        get = functools.partial(
            jax.lax.dynamic_slice_in_dim, slice_size=length, axis=0
        )
        get = jax.vmap(get, (1, 0), 1) if offset.ndim else get
        return get(flat(a), offset)

    slots = slots[..., None] if offset.ndim else slots
    valid = (slots >= offset) & (slots < offset + length)

    def body(state, chunk):
        return step(state, *chunk)

    chunks = jax.tree.map(lay, inputs), valid, valid[:, -1]
    state, out = remat_scan(body, state, chunks, every=remat)
    return state, jax.tree.map(take, out)
