"""Causal depthwise convolution over a few tokens, and its streaming state.

Every model here applies one of width 4 to q, k and v after their projections;
without it, no model learns recall in reasonable time.
"""

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Channels
from nl_jax.memory.packed import Packed


def short_conv(
    x: Channels,
    kernel: Channels,
    tail: Channels,
    packed: Packed | None = None,
) -> Channels:
    """Convolves ``x`` with the tokens before it.

    Args:
        x: ``[..., T, D]``.
        kernel: taps ``[width, D]``; the last one multiplies the current token.
        tail: the ``width - 1`` inputs before ``x``, ``[..., width - 1, D]``.
        packed: documents in the rows of ``x``, then ``[B, T, D]``; a token sees
            none of another document.

    Returns:
        ``y_t = sum_i kernel[i] x_{t - width + 1 + i}``, ``[..., T, D]``.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0], [2.0]])
        >>> short_conv(
        ...     x, jnp.array([[1.0], [10.0]]), jnp.zeros((1, 1))
        ... ).tolist()
        [[10.0], [21.0]]
    """
    length = x.shape[-2]
    full = jnp.concatenate([tail.astype(x.dtype), x], axis=-2)
    taps = [
        kernel[i] * full[..., i : i + length, :] for i in range(len(kernel))
    ]
    if packed is not None:
        back = [len(kernel) - 1 - i for i in range(len(kernel))]
        taps = [
            jnp.where((packed.since >= n)[..., None], tap, 0)
            for n, tap in zip(back, taps, strict=True)
        ]
    return sum(taps[1:], start=taps[0])


def next_tail(
    x: Channels, tail: Channels, packed: Packed | None = None
) -> Channels:
    """Returns the next call's ``tail``, of the same shape and dtype."""
    full = jnp.concatenate([tail, x.astype(tail.dtype)], axis=-2)
    if packed is None:
        return full[..., x.shape[-2] :, :]
    slots = packed.lengths[:, None] + jnp.arange(tail.shape[-2])
    ends = jnp.take_along_axis(full, slots[..., None], 1)
    own = slots - tail.shape[-2] >= packed.last_first[:, None]
    return jnp.where(own[..., None], ends, 0)


def silu_conv(
    x: Channels,
    kernel: Channels,
    tail: Channels,
    packed: Packed | None = None,
):
    """Returns SiLU of :func:`short_conv`, and the next call's ``tail``."""
    y = short_conv(x, kernel, tail, packed)
    return jax.nn.silu(y), next_tail(x, tail, packed)
