"""Normalisations, computed in float32 and returned in the input's dtype."""

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Channel, Channels

__all__ = ["l2_normalize", "rms_norm"]


def rms_norm(
    x: Channels, scale: Channel | None = None, eps: float = 1e-6
) -> Channels:
    """Divides by the root mean square of the last axis.

    Args:
        x: ``[..., d]``.
        scale: factor per channel, broadcast against ``x``, or ``None``.
        eps: added to the mean square, inside the root.

    Example:
        >>> import jax.numpy as jnp
        >>> rms_norm(jnp.array([3.0, 3.0])).round(3).tolist()
        [1.0, 1.0]
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    y = y.astype(x.dtype)
    return y if scale is None else y * scale.astype(x.dtype)


def l2_normalize(x: Channels, eps: float = 1e-6) -> Channels:
    """Divides by the length of the last axis; ``eps`` is inside the root.

    Example:
        >>> import jax.numpy as jnp
        >>> l2_normalize(jnp.array([3.0, 4.0])).round(3).tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y * jax.lax.rsqrt(jnp.square(y).sum(-1, keepdims=True) + eps)
    return y.astype(x.dtype)
