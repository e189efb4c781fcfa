"""Rotary position embedding, half-split form."""

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Channels


def rotate(x: Channels, at: jax.Array, base: float = 10_000.0) -> Channels:
    """Rotates channel pairs ``(i, i + d / 2)`` by ``at * base^(-2 i / d)``.

    Args:
        x: ``[..., T, d]``, ``d`` even.
        at: positions ``[T]``.
        base: base of the frequencies.

    Example:
        >>> import jax.numpy as jnp
        >>> rotate(jnp.array([[1.0, 0.0]]), jnp.array([0])).tolist()
        [[1.0, 0.0]]
    """
    half = x.shape[-1] // 2
    wide = jnp.promote_types(x.dtype, jnp.float32)
    angle = at[:, None] * base ** (-jnp.arange(half, dtype=wide) / half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(wide), 2, -1)
    rotated = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
    return rotated.astype(x.dtype)
