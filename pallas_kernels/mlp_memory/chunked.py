"""The scan of a chunk step in plain ``jax.numpy``, forward and backward."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.delta_memory.chunked import cut, join_chunks
from pallas_kernels.delta_memory.inverse import unit_lower_inverse


def scan(step, arrays, *, chunk_size):
    """Returns ``(o, state)``; a gradient keeps the state of every chunk."""
    (out, _) = forward(step, arrays, chunk_size=chunk_size, save=False)
    return out


def forward(step, arrays, *, chunk_size, save, inverse=unit_lower_inverse):
    """Returns ``((o, state), states at chunk starts)``."""
    chunks = _cut_all(arrays, chunk_size)

    # A scan needs no barriers around recomputation, which prevent fusions.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(state, chunk):
        o, after = step(state, *chunk, inverse)
        return after, (o, state if save else None)

    state, (o, starts) = jax.lax.scan(body, arrays["state"], chunks)
    return (join_chunks(o, arrays["tokens"][0].shape[-2]), state), starts


def backward(
    step,
    arrays,
    starts,
    cotangents,
    *,
    chunk_size,
    inverse=unit_lower_inverse,
):
    """Returns the cotangents of ``arrays``, walking back over the chunks."""
    do, dstate = cotangents
    valid = _cut_all(arrays, chunk_size)[2]
    (tokens, gates), pull = jax.vjp(
        lambda arrays: _cut_all(arrays, chunk_size)[:2], arrays
    )

    def body(after, inputs):
        start, tokens, gates, valid, o = inputs
        _, pull = jax.vjp(
            lambda *args: step(*args, valid, inverse), start, tokens, gates
        )
        before, tokens, gates = pull((o, after))
        return before, (tokens, gates)

    do = _cut(do, -2, chunk_size)
    dstate, found = jax.lax.scan(
        body, dstate, (starts, tokens, gates, valid, do), reverse=True
    )
    (out,) = pull(found)
    return out | {"state": dstate}


def _cut_all(arrays, chunk_size):
    """Returns chunks of tokens and of gates, and ``valid`` if padded."""
    tokens, gates = (
        tuple(_cut(v, axis, chunk_size) for v in arrays[name])
        for name, axis in (("tokens", -2), ("gates", -1))
    )
    length = arrays["tokens"][0].shape[-2]
    valid = None
    if length % chunk_size:
        valid = _cut(jnp.ones((1, length), bool), -1, chunk_size)
    return tokens, gates, valid


def _cut(value, axis, size):
    return cut(value, axis, size, -(-value.shape[axis] // size))
