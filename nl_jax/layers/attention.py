"""Causal softmax attention over a window, with rotary positions.

Softmax attention is a non-parametric memory: it keeps its context instead of
learning it (frequency infinity, arXiv 2512.24695 section 5). The window makes
its state constant: the last ``window`` keys and values. They are kept
unrotated and positions are counted from the window's start, so a stream of any
length loses no precision.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.checks import check_count
from nl_jax.layers.mixing import Declare, mix
from nl_jax.layers.rotary import rotate

__all__ = ["AttentionConfig", "AttentionState", "CausalAttention"]


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Choices of :class:`CausalAttention`."""

    window: int = 512
    """Tokens that a query sees, its own included; also the cache's size."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    conv_width: int = 4
    """Taps of the causal convolution on q, k and v."""

    def __post_init__(self):
        for name in ("window", "conv_width"):
            check_count(name, getattr(self, name))
        if self.rope_base <= 1:
            raise ValueError(f"rope_base={self.rope_base} must be above 1")


class AttentionState(NamedTuple):
    """Fast state, batch first."""

    keys: jax.Array
    """``[B, window, H, d]``, the latest last, not rotated."""
    values: jax.Array
    """``[B, window, H, d]``."""
    tails: dict[str, jax.Array]
    """Raw q, k, v of the last tokens, ``[B, width - 1, D]`` each."""
    seen: jax.Array
    """Filled slots of the cache, int32 ``[B]``."""


class CausalAttention(nn.Module):
    """A sequence mixer: softmax attention to the last ``window`` tokens.

    Attributes:
        config: see :class:`AttentionConfig`.
        d_model: model width ``D``.
        n_heads: heads of even width ``d = D / n_heads``.
        dtype: of products; parameters stay float32.
    """

    config: AttentionConfig
    d_model: int
    n_heads: int
    dtype: jnp.dtype = jnp.float32

    def initial_state(self, batch_size: int) -> AttentionState:
        """Returns the empty cache of ``batch_size`` rows."""
        config, d = self.config, self.d_model
        cache = (batch_size, config.window, self.n_heads, d // self.n_heads)
        tail = jnp.zeros((batch_size, config.conv_width - 1, d), self.dtype)
        return AttentionState(
            jnp.zeros(cache, self.dtype),
            jnp.zeros(cache, self.dtype),
            dict.fromkeys(("q", "k", "v"), tail),
            jnp.zeros((batch_size,), jnp.int32),
        )

    @nn.compact
    def __call__(self, x: Stream, state=None, *, aligned: bool = False):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state.

        ``aligned`` is part of every mixer's signature; attention has no chunks.
        """
        del aligned
        config, d, heads = self.config, self.d_model, self.n_heads
        if d % (2 * heads):
            raise ValueError(f"2 * n_heads={2 * heads} must divide d_model={d}")

        declare = Declare(self, self.dtype)
        fresh = state is None
        state = self.initial_state(x.shape[0]) if fresh else state
        x = x.astype(self.dtype)
        batch, length = x.shape[:2]
        mixed, tails = mix(declare, x, state.tails, config.conv_width)
        q, k, v = (
            mixed[name].reshape(batch, length, heads, d // heads)
            for name in "qkv"
        )

        if fresh and length <= config.window:
            y = _attend(config, q, k, v, jnp.full((batch,), length))
            cache = _remember(config, state, k, v)
        else:
            cache, y = _scan_segments(config, state, q, k, v)
        cache = cache._replace(tails=tails)
        out = declare.dense("w_out", d, d, "embed", "mixer")
        return y.reshape(x.shape) @ out, cache


def _scan_segments(config, state, q, k, v):
    """Attends in segments of at most a window, so cost is linear in length."""
    length, size = q.shape[1], min(config.window, q.shape[1])
    whole = length // size * size

    def segment(cache, qkv):
        q, k, v = qkv
        keys = jnp.concatenate([cache.keys, k], 1)
        values = jnp.concatenate([cache.values, v], 1)
        y = _attend(config, q, keys, values, cache.seen + q.shape[1])
        return _remember(config, cache, k, v), y

    def cut(a):
        a = a[:, :whole].reshape(a.shape[0], -1, size, *a.shape[2:])
        return a.swapaxes(0, 1)

    state, y = jax.lax.scan(segment, state, jax.tree.map(cut, (q, k, v)))
    y = y.swapaxes(0, 1).reshape(q.shape[0], whole, *q.shape[2:])
    if whole < length:
        state, rest = segment(state, (q[:, whole:], k[:, whole:], v[:, whole:]))
        y = jnp.concatenate([y, rest], 1)
    return state, y


def _remember(config, state, k, v):
    seen = jnp.minimum(state.seen + k.shape[1], config.window)
    return state._replace(
        keys=jnp.concatenate([state.keys, k], 1)[:, -config.window :],
        values=jnp.concatenate([state.values, v], 1)[:, -config.window :],
        seen=seen,
    )


def _attend(config, q, k, v, filled):
    """The queries are the last ones of the keys, of which ``filled`` exist."""
    total = k.shape[1]
    key_at = jnp.arange(total)
    query_at = key_at[-q.shape[1] :]
    distance = query_at[:, None] - key_at[None, :]
    mask = (distance >= 0) & (distance < config.window)
    exists = key_at[None, :] >= total - filled[:, None]
    mask = mask[None, None] & exists[:, None, None, :]
    # Not jax.nn.dot_product_attention: it rounds float64 scores to float32.
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum(
        "bhqd,bhkd->bhqk",
        rotate(q.swapaxes(1, 2), query_at, config.rope_base),
        rotate(k.swapaxes(1, 2), key_at, config.rope_base),
        preferred_element_type=wide,
    )
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
