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
from nl_jax.layers.short_conv import next_tail, short_conv

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

        def declare(name, init, shape, axes):
            init = nn.with_logical_partitioning(init, axes)
            return self.param(name, init, shape, jnp.float32).astype(self.dtype)

        fresh = state is None
        state = self.initial_state(x.shape[0]) if fresh else state
        x = x.astype(self.dtype)
        batch, length = x.shape[:2]
        dense = nn.initializers.lecun_normal()
        conv = nn.initializers.normal(config.conv_width**-0.5)
        mixed, tails = {}, {}
        for name in ("q", "k", "v"):
            raw = x @ declare(f"w_{name}", dense, (d, d), ("embed", "mixer"))
            kernel = declare(
                f"conv_{name}", conv, (config.conv_width, d), (None, "mixer")
            )
            tails[name] = next_tail(raw, state.tails[name])
            y = jax.nn.silu(short_conv(raw, kernel, state.tails[name]))
            mixed[name] = y.reshape(batch, length, heads, d // heads)
        q, k, v = mixed["q"], mixed["k"], mixed["v"]

        if fresh and length <= config.window:
            y = _attend(config, q, k, v, jnp.full((batch,), length))
            cache = _remember(config, state, k, v)
        else:
            cache, y = _scan_segments(config, state, q, k, v)
        cache = cache._replace(tails=tails)
        out = declare("w_out", dense, (d, d), ("mixer", "embed"))
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
        "bqhd,bkhd->bhqk",
        _rotate(config, q, query_at),
        _rotate(config, k, key_at),
        preferred_element_type=wide,
    )
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _rotate(config, x, at):
    """Rotary position embedding, half-split form, ``x [B, T, H, d]``."""
    half = x.shape[-1] // 2
    frequency = config.rope_base ** (-jnp.arange(half) / half)
    angle = at[:, None] * frequency
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, -1)
    rotated = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
    return rotated.astype(x.dtype)
