"""Scans over streams of tokens, chunk by chunk.

Chunk boundaries are counted from the stream's first token. A call may begin and
end anywhere; its part of one chunk is a *piece*. However a stream is split into
calls, no piece crosses a boundary, so a step that may be interrupted anywhere
inside a chunk gives the same numbers for every split.

The derivative of a scan needs the carry before every step: here fast weights,
one copy of a memory per chunk. Two nested scans keep the carry of every
``n``-th step and recompute the others, one group at a time (Chen et al., arXiv
1604.06174): ``T / n + n`` carries instead of ``T``, for one more forward pass.
With ``n`` near the root of ``T``, memory grows with that root.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from nl_jax.checks import check_count
from nl_jax.errors import InputError
from nl_jax.memory.state import MemoryState

Carry = TypeVar("Carry")


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
            their ``start``, which equals their weights.

    Returns:
        ``(state, outputs)``, the outputs of all tokens.

    Example:
        >>> import jax.numpy as jnp
        >>> def read(total, x, valid, closes):
        ...     return total + x.sum(), total + jnp.cumsum(x)
        >>> total, y = chunk_scan(read, 0.0, jnp.ones(5), size=2)
        >>> float(total), y.tolist()
        (5.0, [1.0, 2.0, 3.0, 4.0, 5.0])
    """
    check_count("size", size)

    def first(tree):
        return jax.tree.map(lambda a: jnp.moveaxis(a, axis, 0), tree)

    def back(tree):
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, axis), tree)

    length = jax.tree.leaves(inputs)[0].shape[axis]
    if not length:
        raise InputError("a scan needs at least one token; there are 0")
    fresh = isinstance(position, int) and position % size == 0
    if not fresh and length == 1:
        return step(state, inputs, None, (position + 1) % size == 0)

    def piece(state, chunk, valid, closes):
        if valid is not None and valid.ndim == 2 and axis:
            valid = valid.T
        state, out = step(state, back(chunk), valid, closes)
        return state, first(out)

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
    return state, back(jax.tree.map(lambda *a: _join(a), *parts))


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
    return restore(state), jax.tree.map(_flat, out)


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
        return get(_flat(a), offset)

    slots = slots[..., None] if offset.ndim else slots
    valid = (slots >= offset) & (slots < offset + length)

    def body(state, chunk):
        return step(state, *chunk)

    chunks = jax.tree.map(lay, inputs), valid, valid[:, -1]
    state, out = remat_scan(body, state, chunks, every=remat)
    return state, jax.tree.map(take, out)


def _flat(a):
    return a.reshape(-1, *a.shape[2:])


def _join(parts):
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def without_start(state: Any) -> Any:
    """Drops memories' ``start``, at chunk boundaries equal to ``weights``."""
    return _each_memory(lambda memory: (), state)


def with_start(state: Any) -> Any:
    """Undoes :func:`without_start`."""
    return _each_memory(lambda memory: memory.weights, state)


def _each_memory(start, state):
    return jax.tree.map(
        lambda node: (
            node._replace(start=start(node))
            if isinstance(node, MemoryState)
            else node
        ),
        state,
        is_leaf=lambda node: isinstance(node, MemoryState),
    )


def remat_scan(
    body: Callable[[Carry, Any], tuple[Carry, Any]],
    init: Carry,
    xs: Any,
    *,
    every: int | None = None,
) -> tuple[Carry, Any]:
    """Scans like ``jax.lax.scan``, recomputing ``body`` in the backward pass.

    Args:
        body: maps ``(carry, x)`` to ``(carry, y)``.
        init: the first carry.
        xs: arrays, scanned along their first axis.
        every: steps per carry kept: 1 keeps all, for one more forward pass;
            more than 1 costs two; 0 also keeps the activations inside ``body``,
            for none. ``None`` is the root of the number of steps, rounded up.

    Returns:
        ``(carry, ys)`` as ``jax.lax.scan`` returns them.

    Raises:
        ValueError: for a negative ``every``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def body(carry, x):
        ...     return carry * x, carry
        >>> def product(xs):
        ...     return remat_scan(body, 1.0, xs, every=2)[0]
        >>> jax.grad(product)(jnp.array([2.0, 3.0, 4.0])).tolist()
        [12.0, 8.0, 6.0]
    """
    steps = jax.tree.leaves(xs)[0].shape[0]
    if every is None:
        every = 1
        while every * every < steps:
            every += 1
    check_count("every", every, 0)
    if not every:
        return jax.lax.scan(body, init, xs)
    # Scans need no barrier against CSE, which would prevent fusions.
    step = jax.checkpoint(body, prevent_cse=False)
    groups, rest = divmod(steps, every)
    if every == 1 or groups < 2:
        return jax.lax.scan(step, init, xs)

    def group(carry, xs):
        return jax.lax.scan(step, carry, xs)

    def cut(a):
        return a[: groups * every].reshape(groups, every, *a.shape[1:])

    carry, ys = jax.lax.scan(
        jax.checkpoint(group, prevent_cse=False), init, jax.tree.map(cut, xs)
    )
    ys = jax.tree.map(_flat, ys)
    if rest:
        last = jax.tree.map(lambda a: a[-rest:], xs)
        carry, more = group(carry, last)
        ys = jax.tree.map(lambda *a: _join(a), ys, more)
    return carry, ys
