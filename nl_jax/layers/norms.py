"""Normalisations, computed in float32 and returned in the input's dtype."""

import jax
import jax.numpy as jnp

__all__ = ["l2_normalize", "rms_norm"]


def rms_norm(x, scale=None, eps=1e-6):
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    y = y.astype(x.dtype)
    return y if scale is None else y * scale.astype(x.dtype)


def l2_normalize(x, eps=1e-6):
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y * jax.lax.rsqrt(jnp.square(y).sum(-1, keepdims=True) + eps)
    return y.astype(x.dtype)
