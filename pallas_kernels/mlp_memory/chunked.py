"""The scan of a chunk step in plain ``jax.numpy``, and its way back."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.delta_memory.inverse import unit_lower_inverse


def scan(step, arrays, *, chunk_size):
    """``(o, state)``; the backward pass keeps the state of every chunk."""
    (out, _) = forward(step, arrays, chunk_size=chunk_size, save=False)
    return out


def forward(step, arrays, *, chunk_size, save, inverse=unit_lower_inverse):
    """``((o, state), states at chunk starts)``."""
    chunks = _cut_all(arrays, chunk_size)

    # A scan keeps what is recomputed apart; barriers would cost fusions.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(state, chunk):
        o, after = step(state, *chunk, inverse)
        return after, (o, state if save else None)

    state, (o, starts) = jax.lax.scan(body, arrays["state"], chunks)
    return (join(o, arrays["tokens"][0].shape[-2]), state), starts


def backward(
    step,
    arrays,
    starts,
    cotangents,
    *,
    chunk_size,
    inverse=unit_lower_inverse,
):
    """Cotangents of ``arrays``, last chunk first."""
    do, dstate = cotangents

    def tokens_of(arrays):
        return _cut_all(arrays, chunk_size)[:2]

    valid = _cut_all(arrays, chunk_size)[2]
    (tokens, gates), pull = jax.vjp(tokens_of, arrays)

    def body(after, inputs):
        start, tokens, gates, valid, o = inputs
        _, pull = jax.vjp(
            lambda *args: step(*args, valid, inverse), start, tokens, gates
        )
        before, tokens, gates = pull((o, after))
        return before, (tokens, gates)

    do = cut(do, chunk_size, -2)
    dstate, found = jax.lax.scan(
        body, dstate, (starts, tokens, gates, valid, do), reverse=True
    )
    (out,) = pull(found)
    return out | {"state": dstate}


def _cut_all(arrays, chunk_size):
    tokens, gates = (
        tuple(cut(v, chunk_size, axis) for v in arrays[name])
        for name, axis in (("tokens", -2), ("gates", -1))
    )
    length = arrays["tokens"][0].shape[-2]
    valid = None
    if length % chunk_size:
        valid = cut(jnp.ones((1, length), bool), chunk_size, -1)
    return tokens, gates, valid


def cut(value, chunk_size, axis):
    """``[..., T, ...] -> [n, ..., C, ...]``, with zeros at the end."""
    axis += value.ndim
    length = value.shape[axis]
    count = -(-length // chunk_size)
    pad = [(0, 0)] * value.ndim
    pad[axis] = (0, count * chunk_size - length)
    value = jnp.pad(value, pad)
    shape = (*value.shape[:axis], count, chunk_size, *value.shape[axis + 1 :])
    return jnp.moveaxis(value.reshape(shape), axis, 0)


def join(o, length):
    """``[n, ..., C, d] -> [..., T, d]``, without the padding."""
    o = jnp.moveaxis(o, 0, -3)
    o = o.reshape(*o.shape[:-3], -1, o.shape[-1])
    return o[..., :length, :]
