"""Reading endless streams of tokens, and learning from them.

Training and testing are not separate: levels that learn in context and mixers'
memories change while tokens are read; they form a state of constant size. It is
never donated: any number of independent streams can start from one state.

Two shapes are compiled per number of rows: ``chunk`` tokens, and one token for
the end of a stream or a start inside a level's period.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.checks import check_count, check_ids
from nl_jax.continual.validation import fresh_state
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel
from nl_jax.models.model_state import check_state
from nl_jax.training import token_losses

_CHUNK = 256


class StreamChunk(NamedTuple):
    """Losses of a chunk of a stream, and the state after it."""

    nats: np.ndarray
    """Cross-entropy of each target in nats, float32 ``[B, n]``."""
    targets: np.ndarray
    """Tokens of the chunk, int32 ``[B, n]``, without the first of a stream that
    was started without ``logits``."""
    likeliest: np.ndarray
    """Whether each target was the likeliest token, bool ``[B, n]``."""
    state: Any
    """State of the model after the chunk."""
    logits: jax.Array
    """Logits of the token after the chunk, ``[B, V]``."""


def stream(
    model: LanguageModel,
    variables: Any,
    source: Iterable[Any],
    state: Any = None,
    *,
    chunk: int | None = None,
    logits: jax.Array | None = None,
) -> Iterator[StreamChunk]:
    """Reads any number of tokens at constant memory, learning in context.

    Args:
        model: model from :func:`nl_jax.models.build`.
        variables: parameters of the model, which do not change.
        source: an array, or an iterable of ids or arrays. Arrays are ``[n]``
            for one row or ``[B, n]`` for several, of any length; how tokens are
            divided among them makes no difference.
        state: initial state, from ``model.init_state``, an earlier chunk or
            :func:`load_state`; it stays valid. ``None`` starts a new context.
        chunk: tokens per chunk, by default the least multiple of the fastest
            level's period from 256 on. Values that are no multiple are slow.
        logits: logits of the chunk that ``state`` is from, for the loss of the
            first token, which otherwise has none.

    Yields:
        A :class:`StreamChunk` per ``chunk`` tokens, and one for the remainder.

    Raises:
        ValueError: if ``state`` is of another model, or ``chunk`` is below 1.
        InputError: if the source yields anything else than ids of the model.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.models import build
        >>> model = build("lstm", d_model=8, n_heads=1, n_layers=1)
        >>> tokens = jnp.zeros((1, 1), int)
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> for read in stream(model, variables, b"abcdefgh", chunk=3):
        ...     print(read.targets.tolist(), read.nats.shape)
        [[98, 99]] (1, 2)
        [[100, 101, 102]] (1, 3)
        [[103, 104]] (1, 2)
    """
    config = model.config
    period = config.cms.periods[0] if model.learns_in_context else 1
    if chunk is None:
        chunk = -(-_CHUNK // period) * period
    check_count("chunk", chunk)
    rows = None if state is None else check_state(model, state)
    if logits is not None and state is None:
        raise ValueError("logits are given without the state they are from")
    if logits is not None and logits.shape != (rows, config.vocab_size):
        raise ValueError(
            f"logits has shape {logits.shape}; needs "
            f"{(rows, config.vocab_size)}, as in the chunk that state is from"
        )
    lead = 0
    if state is not None and period > 1 and chunk % period == 0:
        places = np.unique(np.asarray(state.cms.position) % period)
        # Rows at different positions have no common boundary to align to.
        lead = int(-places[0] % period) if len(places) == 1 else 0
    pieces = _pieces(source, config.vocab_size, rows)
    cut = _cut(pieces, lead, chunk)
    return _read_all(model, variables, cut, state, logits, chunk)


def _read_all(model, variables, cut, state, logits, chunk):
    """Reads arrays of ``chunk`` tokens at once, and others token by token."""
    for tokens in cut:
        if state is None:
            state = fresh_state(model, variables, len(tokens))
        first = logits is None
        if first:
            shape = (len(tokens), model.config.vocab_size)
            logits = jnp.zeros(shape, jnp.float32)
        steps = [tokens]
        if tokens.shape[1] != chunk:
            steps = np.split(tokens, tokens.shape[1], axis=1)
        found = []
        for step in steps:
            *measured, logits, state = _read(
                model, variables, state, logits, jnp.asarray(step)
            )
            found.append(measured)
        nats, likeliest = (
            np.concatenate(parts, 1)[:, first:]
            for parts in zip(*jax.device_get(found), strict=True)
        )
        yield StreamChunk(nats, tokens[:, first:], likeliest, state, logits)


@functools.partial(jax.jit, static_argnums=0)
def _read(model, variables, state, before, tokens):
    logits, state = model.apply(variables, tokens, state)
    logits = logits.astype(jnp.float32)
    predictions = jnp.concatenate([before[:, None], logits[:, :-1]], 1)
    likeliest = predictions.argmax(-1) == tokens
    return token_losses(predictions, tokens), likeliest, logits[:, -1], state


def _cut(pieces, lead, chunk):
    """Cuts pieces of any length into ``lead``, then ``chunk`` tokens each."""
    held = []
    count, size = 0, lead or chunk
    for piece in pieces:
        held.append(piece)
        count += piece.shape[1]
        if count < size:
            continue
        joined, at = np.concatenate(held, 1), 0
        while count - at >= size:
            # A copy, so that a chunk does not keep the whole piece in memory.
            yield joined[:, at : at + size].copy()
            at, size = at + size, chunk
        held, count = [joined[:, at:].copy()], count - at
    if count:
        yield np.concatenate(held, 1)


def _pieces(source, vocab_size, rows):
    """Yields ids and arrays of ids as checked arrays ``[B, n]``."""
    if isinstance(source, str):
        raise InputError("the source is text; give token ids or bytes")
    if hasattr(source, "ndim"):
        source = [source]
    if not isinstance(source, Iterable):
        raise InputError(f"the source is {source!r}; needs an array or ids")
    for number, given in enumerate(source):
        piece = np.asarray(given)
        if piece.size == 0 and piece.ndim in (1, 2):
            continue
        if piece.ndim > 2 or not np.issubdtype(piece.dtype, np.integer):
            raise InputError(
                f"piece {number} of the source is {piece.dtype}"
                f"{list(piece.shape)}; needs integers, [], [n] or [B, n]"
            )
        if piece.ndim < 2:
            piece = piece.reshape(1, -1)
        rows = rows or len(piece)
        if len(piece) != rows:
            raise InputError(
                f"piece {number} of the source has {len(piece)} rows; the "
                f"state and the pieces before it have {rows}"
            )
        check_ids(f"piece {number} of the source", piece, vocab_size)
        yield piece.astype(np.int32)
