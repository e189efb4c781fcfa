"""What every kernel of the delta memory shares: its derivative.

The forward pass saves its inputs and the state at the start of each block of
tokens, whatever runs, so that the backward pass may be a kernel or the scan of
:func:`chunk_step`. Which of the two is settled when the program is lowered for
a platform, not before: it can be compiled ahead of time for another one.
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
from pallas_kernels.delta_memory.dispatch import KERNELS

__all__ = ["NAMES", "Options", "differentiable_scan"]

NAMES = ("w", "s", "x", "g", "q", "log_alpha", "beta", "log_mu")
"""``delta_scan``'s arrays in the order of its arguments."""


class Options(NamedTuple):
    """Static choices of :func:`differentiable_scan`."""

    implementation: str | None
    """Out of ``KERNELS``, or ``None`` for what the platform has."""
    kernels: tuple[tuple[str, str], ...]
    """What that is: platforms with a kernel and its name, see ``choose``."""
    block: int
    """Tokens between saved states."""
    chunk: int
    """Tokens per chunk outside of kernels; divides ``block``."""
    read: str
    """As in ``delta_scan``."""
    interpret: object = False
    """As in ``pl.pallas_call``."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def differentiable_scan(arrays, options: Options):
    """``delta_scan`` on its arrays by name; ``s`` goes with ``log_mu``."""
    return _forward(arrays, options, save=False)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _saving(arrays, options):
    return _forward(arrays, options, save=True)


def _save(arrays, options):
    out, starts = _saving(arrays, options)
    return out, (arrays, starts)


def _restart(options, residuals, cotangents):
    return (_backward(*residuals, cotangents, options),)


differentiable_scan.defvjp(_save, _restart)


def _save_and_show(arrays, options):
    out, starts = _saving(arrays, options)
    return (out, starts), (arrays, starts)


def _restart_from_shown(options, residuals, cotangents):
    # Nothing is asked of the saved states, see _second_order.
    return _restart(options, residuals, cotangents[0])


# A second derivative looks into the forward pass of the first.
_saving.defvjp(_save_and_show, _restart_from_shown)


def _forward(arrays, options, save):
    plain = functools.partial(_plain_forward, options=options, save=save)
    return _run("forward", (arrays,), plain, options, save=save)


def _run(way, operands, plain, options, **more):
    """The kernel that is named, or what there is for the platform."""

    def kernel(name):
        return functools.partial(
            getattr(KERNELS[name], way),
            block=options.block,
            read=options.read,
            interpret=options.interpret,
            **more,
        )

    if options.implementation is not None:
        return kernel(options.implementation)(*operands)
    kernels = {platform: kernel(name) for platform, name in options.kernels}
    return jax.lax.platform_dependent(*operands, default=plain, **kernels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _backward(arrays, starts, cotangents, options):
    plain = functools.partial(_plain_backward, options=options)
    return _run("backward", (arrays, starts, cotangents), plain, options)


def _save_again(arrays, starts, cotangents, options):
    out = _backward(arrays, starts, cotangents, options)
    return out, (arrays, starts, cotangents)


def _second_order(options, residuals, cotangent):
    """Kernels have no second derivative; the chunked form has them all."""
    arrays, starts, cotangents = residuals

    def gradient(arrays, cotangents):
        def run(arrays):
            return delta_scan_chunked(
                **arrays, chunk_size=options.chunk, read=options.read
            )

        return jax.vjp(run, arrays)[1](cotangents)[0]

    arrays, cotangents = jax.vjp(gradient, arrays, cotangents)[1](cotangent)
    # The saved states follow from the arrays, which got all of it.
    return arrays, jax.tree.map(jnp.zeros_like, starts), cotangents


_backward.defvjp(_save_again, _second_order)


def _cut(arrays, options):
    """State, tokens and their validity, ``[blocks, chunks, ..., C, ...]``."""
    values = [arrays[name] for name in NAMES]
    state, chunks = cut_into_chunks(values, options.chunk, options.block)
    per_block = options.block // options.chunk
    chunks = jax.tree.map(
        lambda v: v.reshape(-1, per_block, *v.shape[1:]), chunks
    )
    return state, chunks[:-1], chunks[-1]


def _walk(state, tokens, valid, options):
    """The few chunks of one block; a scan would copy what their vjp keeps."""
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
        after, o = _walk(state, *inputs, options)
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
            lambda *args: _walk(*args, valid, options), start, tokens
        )
        return pull((after, o))

    blocks = _blocks_of(o, tokens[0].shape)
    return pull(
        jax.lax.scan(
            block, tuple(ends), (starts, tokens, valid, blocks), reverse=True
        )
    )[0]


def _blocks_of(o, shape):
    """The way back from :func:`_join`, onto ``[blocks, chunks, ..., C, _]``."""
    like = (*shape[:2], *o.shape[:-2], shape[-2], o.shape[-1])
    join = functools.partial(_join, length=o.shape[-2])
    return jax.linear_transpose(join, jax.ShapeDtypeStruct(like, o.dtype))(o)[0]
