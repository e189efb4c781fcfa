"""The one way in which anything here walks through time: chunk by chunk.

A stream is cut at the boundaries of a grid of chunks that is counted from its
first token. A call may begin and end anywhere; a *piece* is what it holds of
one chunk. Any split of a stream into calls makes pieces that never cross a
boundary, so a step that does not care where a chunk is interrupted gives the
same numbers for every split.

The derivative of a scan needs the carry before every step, which here are fast
weights: one copy of a memory per chunk. Two nested scans keep the carry of
every ``n``-th step and compute those between again, one group at a time (Chen
et al., arXiv 1604.06174): ``T / n + n`` carries rather than ``T``, for one more
forward pass. With ``n`` near the root of ``T`` memory grows with that root.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from nl_jax.checks import check_count
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
    """Walks over a stretch of a stream, at most a chunk at a time.

    Where ``position`` is the integer 0, the whole chunks are scanned and what
    is left is one shorter step. From a place that only the running program
    knows, tokens are laid on the grid, which takes up to one more chunk than
    they fill, and a mask says which slots hold one; a single token is a single
    step of length 1. Steps that do not ask where a chunk begins (attention to
    a window, linear recurrences) need no position and no masks.

    Args:
        step: ``(state, piece, valid, closes) -> (state, outputs)`` for at most
            ``size`` tokens. ``valid`` is ``None`` if every slot of the piece
            holds a token, else a mask ``[C]`` (with rows ``[C, B]``, or
            ``[B, C]`` unless ``axis`` is 0); empty slots are zeros. ``closes``
            says whether the piece reaches the end of its chunk: a Python
            ``bool``, or an array, ``[B]`` with rows.
        state: before the first token.
        inputs: tree of arrays with at least one token.
        size: tokens per chunk.
        position: tokens read before: the integer 0 where a chunk begins, else
            a scalar, or ``[B]`` for rows that stand at different places, which
            then are the first axis beside the tokens' in every array.
        axis: where inputs, pieces and outputs have their tokens.
        remat: as ``every`` in :func:`remat_scan`.
        whole: ``(state, inputs) -> (state, outputs)``, what reads all whole
            chunks at once in place of a scan, where no masks are needed.
        drop_start: the memories in the state have this grid: a scan of whole
            chunks need not carry, and keep for the backward pass, what they
            were at a chunk's start beside their weights.

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
    """Drops what memories were at their chunk's start, where that is now."""
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
    """``jax.lax.scan``, but ``body`` is computed again in the backward pass.

    Args:
        body: maps ``(carry, x)`` to ``(carry, y)``.
        init: the first carry.
        xs: arrays, scanned along their first axis.
        every: steps between the carries that are kept: 1 keeps all of them
            and costs one more forward pass, more cost two; 0 keeps what is
            inside the body too and costs none. ``None`` is the root of the
            number of steps, up to the next integer.

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
    # A scan keeps what is recomputed apart; barriers would cost fusions.
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
