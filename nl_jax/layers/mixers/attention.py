"""Causal softmax attention over a window, with rotary positions.

Softmax attention is a non-parametric memory, which keeps its context instead of
learning it (frequency infinity, arXiv 2512.24695 section 5). Its state has
constant size: the last ``window`` keys and values, stored unrotated. Positions
count from the window's start, so precision does not depend on the stream's
length. Persistent tokens (Titans, arXiv 2501.00663, section 3.3) are learned
keys and values without a position.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.checks import check_fields
from nl_jax.errors import InputError
from nl_jax.layers.mixers.mixer import Mixer, MixerConfig, token_level
from nl_jax.layers.mixing import empty_tails, mix
from nl_jax.layers.rotary import RopeScaling, rotate
from nl_jax.memory.packed import Packed
from nl_jax.memory.walk import chunk_scan


@dataclasses.dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """Configuration of :class:`CausalAttention`."""

    window: int = 512
    """Tokens that a query attends to, its own included; the cache size."""
    rope_base: float | None = 10_000.0
    """Base of the rotary frequencies; ``None`` for no position embedding."""
    conv_width: int = 4
    """Width of the q, k, v convolutions, in tokens; 0 for none (nor SiLU)."""
    persistent: int = 0
    """Number of learned tokens that every query attends to (Titans)."""
    kv_heads: int = 0
    """Number of key-value heads, each shared by a group of query heads
    (grouped-query attention); 0 for one per query head."""
    head_dim: int = 0
    """Number of channels of a head, even; 0 for ``d_model / n_heads``."""
    rope_scaling: RopeScaling = RopeScaling()
    """Divisors of the rotary frequencies."""
    bias: bool = False
    """Whether the projections to q, k and v have biases."""
    out_bias: bool = False
    """Whether the output projection has a bias."""

    def __post_init__(self):
        check_fields(self, conv_width=0, persistent=0, kv_heads=0, head_dim=0)
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even")
        if self.rope_base is not None and self.rope_base <= 1:
            raise ValueError(f"rope_base={self.rope_base} must be above 1")

    def check(self, n_heads: int) -> None:
        """Raises ``ValueError`` unless heads share keys and values evenly."""
        shared = self.kv_heads or n_heads
        if n_heads % shared:
            raise ValueError(
                f"attention.kv_heads={shared} must divide n_heads={n_heads}"
            )

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        return CausalAttention(self, d_model, n_heads, dtype)

    def levels(self, params, state):
        """Returns the mixer's rows of the level table."""
        learned = [v for k, v in params.items() if k.startswith("persistent_")]
        tokens = f"the last {self.window} tokens"
        if learned:
            tokens += f", {self.persistent} learned ones"
        return [
            token_level(
                name="attention",
                memory_of=tokens,
                architecture="non-parametric",
                objective="L2, Nadaraya-Watson",
                rule="closed form",
                period=0,
                params=learned,
                state=(state.keys, state.values),
            )
        ]


class AttentionState(NamedTuple):
    """Fast state, batch first."""

    keys: jax.Array
    """``[B, window, kv_heads, d]``, the latest last, not rotated."""
    values: jax.Array
    """``[B, window, kv_heads, d]``."""
    tails: dict[str, jax.Array]
    """Raw q, k, v of the last tokens, ``[B, width - 1, channels]`` each."""
    seen: jax.Array
    """Filled slots of the cache, int32 ``[B]``."""


class CausalAttention(Mixer):
    """A sequence mixer: softmax attention to the last ``window`` tokens.

    The cache has the dtype of products.
    """

    config: AttentionConfig

    def initial_state(self, batch_size: int) -> AttentionState:
        """Returns the empty cache of ``batch_size`` rows."""
        config, d, dtype = self.config, self.d_model, self.cache_dtype
        cache = jnp.zeros(
            (batch_size, config.window, self._kv_heads, self.head_width), dtype
        )
        tails = empty_tails(
            batch_size, config.conv_width, d, dtype, self._widths
        )
        seen = jnp.zeros((batch_size,), jnp.int32)
        return AttentionState(cache, cache, tails, seen)

    @property
    def _kv_heads(self) -> int:
        return self.config.kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        """Channels per head."""
        return self.config.head_dim or super().head_width

    @property
    def _widths(self) -> dict[str, int]:
        """Channels of q, k and v."""
        heads = {"q": self.n_heads, "k": self._kv_heads, "v": self._kv_heads}
        return {name: count * self.head_width for name, count in heads.items()}

    @nn.compact
    def __call__(
        self,
        x: Stream,
        state=None,
        *,
        empty: bool = False,
        packed: Packed | None = None,
    ):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state.

        ``empty`` asserts that every row of ``state`` has ``seen = 0``; queries
        attend to their own document of ``packed``.
        """
        config, d, heads = self.config, self.d_model, self.n_heads
        shared, width = self._kv_heads, self.head_width
        if width % 2:
            raise InputError(f"2 * n_heads={2 * heads} must divide d_model={d}")
        if heads % shared:
            raise InputError(f"kv_heads={shared} must divide n_heads={heads}")

        empty = empty or state is None
        x, state, declare = self.begin(x, state)
        batch, length = x.shape[:2]
        mixed, tails = mix(
            declare,
            x,
            state.tails,
            config.conv_width,
            self._widths,
            config.bias,
            packed,
        )
        q, k, v = (
            mixed[name].reshape(batch, length, -1, width) for name in "qkv"
        )

        persistent = None
        if config.persistent:
            shape = (shared, config.persistent, width)
            axes = ("heads", None, None)
            persistent = tuple(
                declare(
                    f"persistent_{name}", nn.initializers.normal(1), shape, axes
                )
                for name in ("keys", "values")
            )

        documents = None
        if packed is not None:
            documents = packed.place(state.seen[:, None]), packed.valid
        if empty and length <= config.window:
            oldest = jnp.zeros((batch, 1), jnp.int32)
            if documents is not None:
                oldest = jnp.arange(length) - documents[0]
            y = _attend(config, q, k, v, oldest, persistent)
            cache = _remember(config, state, k, v, documents)
        else:
            cache, y = _scan_segments(
                config, state, q, k, v, persistent, documents
            )
        if packed is not None:
            cache = _forget(config, cache, packed.advance(state.seen))
        cache = cache._replace(tails=tails)
        out = declare.dense("w_out", heads * width, d, "embed", "mixer")
        y = y.reshape(batch, length, -1) @ out
        if config.out_bias:
            y = y + declare("b_out", nn.initializers.zeros, (d,), ("embed",))
        return y, cache


def _scan_segments(config, state, q, k, v, persistent, documents):
    """Attends window by window, at a cost linear in the length.

    ``documents`` are how many earlier tokens of its document there are to each
    token, and whether it is none of padding, or ``None``.
    """

    def segment(cache, tokens, *_):
        q, k, v, documents = tokens
        keys = jnp.concatenate([cache.keys.astype(k.dtype), k], 1)
        values = jnp.concatenate([cache.values.astype(v.dtype), v], 1)
        oldest = config.window - cache.seen[:, None]
        if documents is not None:
            at = config.window + jnp.arange(q.shape[1])
            oldest = at - documents[0]
        y = _attend(config, q, keys, values, oldest, persistent)
        return _remember(config, cache, k, v, documents), y

    return chunk_scan(
        segment,
        state,
        (q, k, v, documents),
        size=config.window,
        axis=1,
        remat=0,
    )


def _remember(config, state, k, v, documents):
    def keep(held, new):
        both = jnp.concatenate([held, new.astype(held.dtype)], 1)
        if documents is None:
            return both[:, -config.window :]
        # Padding comes last.
        first = documents[1].sum(1)[:, None] + jnp.arange(config.window)
        return jnp.take_along_axis(both, first[..., None, None], 1)

    return state._replace(
        keys=keep(state.keys, k),
        values=keep(state.values, v),
        seen=jnp.minimum(state.seen + k.shape[1], config.window),
    )


def _forget(config, state, length):
    """Leaves the last document of each row, of a ``length``, in the cache."""
    seen = jnp.minimum(length, config.window)
    own = jnp.arange(config.window) >= config.window - seen[:, None]
    own = own[..., None, None]
    return state._replace(
        keys=jnp.where(own, state.keys, 0),
        values=jnp.where(own, state.values, 0),
        seen=seen,
    )


def _attend(config, q, k, v, oldest, persistent):
    """Attends from the last keys' positions to keys from the ``oldest`` on.

    ``oldest`` is the first key's number, ``[B, T]``, or ``[B, 1]`` for all.
    """
    total = k.shape[1]
    key_at = jnp.arange(total)
    query_at = key_at[-q.shape[1] :]
    distance = query_at[:, None] - key_at[None, :]
    mask = (distance >= 0) & (distance < config.window)
    exists = key_at >= oldest[..., None]
    mask = mask[None, None] & exists[:, None]
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    turned = q, k
    if config.rope_base is not None:
        turned = (
            rotate(q, query_at, config.rope_base, config.rope_scaling),
            rotate(k, key_at, config.rope_base, config.rope_scaling),
        )
    scores = _scores(*turned)
    scores = jnp.where(mask, scores, -jnp.inf)
    if persistent is not None:
        keys, values = (
            jnp.broadcast_to(a, (q.shape[0], *a.shape)) for a in persistent
        )
        # Unrotated, persistent tokens are equally near to every token.
        scores = jnp.concatenate([_scores(q, keys), scores], -1)
        v = jnp.concatenate([values, v], -2)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    batch, heads, d = v.shape[0], v.shape[1], v.shape[-1]
    weights = weights.reshape(batch, heads, -1, v.shape[-2])
    y = jnp.einsum("bhqk,bhkd->bqhd", weights, v)
    y = y.reshape(batch, -1, q.shape[2], heads, d)
    return y.transpose(0, 2, 3, 1, 4)


def _scores(q, k):
    """Returns ``[B, H, T, S]``; a group of query heads shares each key head."""
    # Groups are folded into the query axis, so that keys are not repeated.
    group = q.reshape(*k.shape[:2], -1, q.shape[-1])
    # Not jax.nn.dot_product_attention: it rounds float64 scores to float32.
    scores = jnp.einsum(
        "bhqd,bhkd->bhqk",
        group,
        k,
        preferred_element_type=jnp.promote_types(q.dtype, jnp.float32),
    )
    scores = scores.reshape(*q.shape[:3], k.shape[-2])
    return scores * q.shape[-1] ** -0.5
