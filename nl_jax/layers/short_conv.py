"""Causal depthwise convolution over time."""

import jax.numpy as jnp

__all__ = ["next_tail", "short_conv"]


def short_conv(x, kernel, tail):
    width, t = kernel.shape[0], x.shape[-2]
    full = jnp.concatenate([tail.astype(x.dtype), x], axis=-2)
    return sum(kernel[i] * full[..., i : i + t, :] for i in range(width))


def next_tail(x, tail):
    full = jnp.concatenate([tail.astype(x.dtype), x], axis=-2)
    return full[..., x.shape[-2] :, :]
