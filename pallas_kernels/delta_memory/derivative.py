"""The derivative that all kernels of the delta memory share.

Both passes run a kernel or the plain scan, depending on the platform that the
program is lowered for (possibly ahead of time, and not that of this process).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.delta_memory.chunked import (
    advance,
    cut_into_chunks,
    delta_scan_chunked,
    join_chunks,
)
from pallas_kernels.delta_memory.kernels import KERNELS
from pallas_kernels.dispatch import Choice, run_kernels
from pallas_kernels.restart import restartable

NAMES = ("w", "s", "x", "g", "q", "log_alpha", "beta", "log_mu", "resets")
"""Names of ``delta_scan``'s arrays, in the order of its arguments."""


class Options(NamedTuple):
    """Static options of :func:`differentiable_scan`."""

    choice: Choice
    """Choice among ``KERNELS``, for one or more platforms."""
    block: int
    """Tokens between saved states."""
    chunk: int
    """Tokens per chunk of the plain scan, a divisor of ``block``."""
    read: str
    """As in ``delta_scan``."""
    interpret: object = False
    """As in ``pl.pallas_call``."""


def differentiable_scan(arrays, options: Options):
    """Runs ``delta_scan`` on arrays by name; ``log_mu`` needs an ``s``."""

    def forward(arrays, save):
        plain = functools.partial(_plain_forward, options=options, save=save)
        return _run("forward", (arrays,), plain, options, save=save)

    def backward(*operands):
        plain = functools.partial(_plain_backward, options=options)
        return _run("backward", operands, plain, options)

    def plain(arrays):
        return delta_scan_chunked(
            **arrays, chunk_size=options.chunk, read=options.read
        )

    return restartable(forward, backward, plain)(arrays)


def _run(way, operands, plain, options, **more):
    def bind(kernel):
        return functools.partial(
            getattr(kernel, way),
            block=options.block,
            read=options.read,
            interpret=options.interpret,
            **more,
        )

    return run_kernels(options.choice, KERNELS, bind, plain, *operands)


def _cut(arrays, options):
    """Returns state, tokens ``[blocks, chunks, ..., C, ...]`` and ``valid``."""
    values = [arrays[name] for name in NAMES]
    state, chunks = cut_into_chunks(values, options.chunk, options.block)
    per_block = options.block // options.chunk
    chunks = jax.tree.map(
        lambda v: v.reshape(-1, per_block, *v.shape[1:]), chunks
    )
    return state, chunks[:-1], chunks[-1]


def _walk(state, tokens, valid, options):
    """Runs the few chunks of one block.

    They are unrolled because a scan would copy the residuals of their vjp.
    """
    outputs = []
    for index in range(tokens[0].shape[0]):
        chunk = jax.tree.map(lambda v: v[index], (*tokens, valid))  # noqa: B023
        state, o = advance(state, chunk, read=options.read)
        outputs.append(o)
    return state, jnp.stack(outputs)


def _join(o, length):
    return join_chunks(o.reshape(-1, *o.shape[2:]), length)


def _plain_forward(arrays, *, options, save):
    state, tokens, valid = _cut(arrays, options)

    def block(state, inputs):
        tokens, valid = inputs
        after, o = _walk(state, tokens, valid, options)
        return after, (o, state if save else (None, None))

    state, (o, starts) = jax.lax.scan(block, state, (tokens, valid))
    return (_join(o, arrays["x"].shape[-2]), *state), starts


def _plain_backward(arrays, starts, cotangents, *, options):
    o, *ends = cotangents
    valid = _cut(arrays, options)[2]
    (_, tokens), pull = jax.vjp(lambda a: _cut(a, options)[:2], arrays)

    def block(after, inputs):
        start, tokens, valid, o = inputs
        _, pull = jax.vjp(
            lambda start, tokens: _walk(start, tokens, valid, options),
            start,
            tokens,
        )
        return pull((after, o))

    blocks = _blocks_of(o, tokens[0].shape)
    return pull(
        jax.lax.scan(
            block, tuple(ends), (starts, tokens, valid, blocks), reverse=True
        )
    )[0]


def _blocks_of(o, shape):
    """Transpose of :func:`_join`: ``[blocks, chunks, ..., C, d_out]``."""
    like = (*shape[:2], *o.shape[:-2], shape[-2], o.shape[-1])
    join = functools.partial(_join, length=o.shape[-2])
    return jax.linear_transpose(join, jax.ShapeDtypeStruct(like, o.dtype))(o)[0]
