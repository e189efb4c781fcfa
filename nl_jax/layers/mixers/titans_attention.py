r"""Titans: a memory that learns while reading, combined with attention.

Arrangements of arXiv 2501.00663, section 4, of a deep memory :math:`M` and an
attention :math:`A` with persistent tokens:

* ``"layer"`` (MAL): attention to the memory's outputs, :math:`A(M(x))`;
* ``"gate"`` (MAG): side by side, :math:`A(x) \otimes M(x)`;
* ``"context"`` (MAC): by segments of one memory chunk. The memory's answers at
  the segment's start, :math:`h_t = M_{start}(q_t)`, precede the tokens in an
  attention to the segment only. The memory learns from the attention's outputs
  :math:`y` and gates them: :math:`o = y \otimes M(y)`.

:math:`a \otimes m = \mathrm{rms}(a) \odot \sigma(\mathrm{rms}(m))`, both norms
with a learned scale per channel.

MAC scans over segments, since a segment's memory has learned from the previous
segment's attention. As attention cannot mask rows at different positions in
their segments, a call that starts inside a segment is read token by token,
except with documents side by side.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.checks import check_fields
from nl_jax.layers.mixers.attention import AttentionConfig, AttentionState
from nl_jax.layers.mixers.deep_memory import DeepMemoryConfig, DeepMemoryState
from nl_jax.layers.mixers.mixer import Mixer, MixerConfig
from nl_jax.layers.mixing import split_heads
from nl_jax.layers.norms import l2_normalize, rms_norm
from nl_jax.layers.short_conv import silu_conv
from nl_jax.memory.packed import goes_on, lay
from nl_jax.memory.walk import chunk_scan


@dataclasses.dataclass(frozen=True)
class TitansAttentionConfig(MixerConfig):
    """Configuration of :class:`TitansAttention`."""

    has_grid: ClassVar[bool] = True

    combine: Literal["context", "gate", "layer"] = "context"
    """Combination of memory and attention: MAC (``"context"``), MAG or MAL."""
    memory: DeepMemoryConfig = DeepMemoryConfig()
    """The memory, whose ``chunk_size`` is the segment of ``"context"``."""
    attention: AttentionConfig = AttentionConfig(persistent=4)
    """The attention; ``"context"`` sets its window to the segment."""

    def __post_init__(self):
        check_fields(self)

    @property
    def attention_layer(self) -> AttentionConfig:
        """The attention with the window that it is built with."""
        if self.combine != "context":
            return self.attention
        # Each token and the memory's answer to it.
        window = 2 * self.memory.chunk_size
        return dataclasses.replace(self.attention, window=window)

    @property
    def cycle(self) -> int:
        """Tokens per chunk of the memory."""
        return self.memory.chunk_size

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        return TitansAttention(self, d_model, n_heads, dtype)

    def levels(self, params, state):
        """Returns the mixer's rows of the level table."""
        attention = self.attention_layer.levels(
            params["attention"], state.attention
        )
        if self.combine == "context":
            size, learned = self.memory.chunk_size, self.attention.persistent
            tokens = f"its {size} tokens and answers to them, {learned} learned"
            attention = [dataclasses.replace(attention[0], memory_of=tokens)]
        return self.memory.levels(params["memory"], state.memory) + attention

    def learned(self, state):
        """Returns the weights of the memory by the names of their starts."""
        return {"memory": self.memory.learned(state.memory)}


class TitansAttentionState(NamedTuple):
    """Fast state, batch first."""

    memory: DeepMemoryState
    """State of the memory, including its position in the segment."""
    attention: AttentionState
    """Cache of the window, or of the unfinished segment for MAC."""
    tail: jax.Array | None
    """For MAC: raw queries of the last tokens, ``[B, width - 1, D]``."""


class TitansAttention(Mixer):
    """A sequence mixer: MAC, MAG or MAL, with heads of even width."""

    config: TitansAttentionConfig

    def setup(self):
        """Declares the memory and the attention."""
        config = self.config
        shared = (self.d_model, self.n_heads, self.dtype)
        self.memory = config.memory.build(*shared)
        self.attention = config.attention_layer.build(*shared)

    def initial_state(self, batch_size: int) -> TitansAttentionState:
        """Returns the state from which ``batch_size`` rows start."""
        tail = None
        if self.config.combine == "context":
            width = self.config.memory.conv_width - 1
            tail = jnp.zeros(
                (batch_size, width, self.d_model), self.cache_dtype
            )
        return TitansAttentionState(
            self.memory.initial_state(batch_size),
            self.attention.initial_state(batch_size),
            tail,
        )

    @nn.compact
    def __call__(
        self, x: Stream, state=None, *, aligned: bool = False, packed=None
    ):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state."""
        combine = self.config.combine
        aligned = aligned or state is None
        x, state, declare = self.begin(x, state)
        if combine == "context":
            return self._read_segments(x, state, aligned, packed, declare)
        m, memory = self.memory(x, state.memory, aligned=aligned, packed=packed)
        y, attention = self.attention(
            m if combine == "layer" else x, state.attention, packed=packed
        )
        if combine == "gate":
            y = self._gate(declare)(y, m)
        return y, TitansAttentionState(memory, attention, None)

    def _gate(self, declare):
        ones = nn.initializers.ones
        scales = [
            declare(name, ones, (self.d_model,), ("embed",))
            for name in ("attention_scale", "memory_scale")
        ]

        def gate(y, m):
            m = jax.nn.sigmoid(rms_norm(m, scales[1]))
            return rms_norm(y, scales[0]) * m

        return gate

    def _read_segments(self, x, state, aligned, packed, declare):
        memory_config, d = self.config.memory, self.d_model
        read_memory = memory_config.memory.read
        gate = self._gate(declare)
        kernel = declare.taps("conv_recall", memory_config.conv_width, d)
        scale = declare("recall_scale", nn.initializers.ones, (d,), ("embed",))
        raw = x @ declare.dense("w_recall", d, d, "mixer")
        q, tail = silu_conv(raw, kernel, state.tail, packed)
        if self.is_initializing():
            self.attention(self.memory(x)[0])
        initial = self.memory.initial_state(1), self.attention.initial_state(1)
        # JAX's loops need functions without modules' parameters inside.
        memory, memory_params = self.memory.unbind()
        attention, attention_params = self.attention.unbind()

        def recall(stream, q):
            kept = stream.memory
            start = kept._replace(weights=kept.start)
            return read_memory(stream._replace(memory=start), q)

        def segment(state, inputs, aligned=False, part=None):
            """Reads tokens of one segment, from its start if ``aligned``."""
            x, q = inputs
            learner: Any
            cache: Any
            learner, cache = state
            q = l2_normalize(split_heads(q, self.n_heads))
            h = rms_norm(jax.vmap(recall)(learner.memory, q))
            h = h.astype(x.dtype).swapaxes(1, 2).reshape(x.shape) * scale
            # The paper attends to [h_1 .. h_C, x_1 .. x_C], where x_t sees
            # answers to later tokens. Here each h_t directly precedes x_t,
            # which sees h_s and x_s of s <= t only.
            pairs = jnp.stack([h, x], 2).reshape(x.shape[0], -1, d)
            attended: Any = attention.apply(
                attention_params,
                pairs,
                cache,
                empty=aligned,
                packed=None if part is None else part.repeat(2),
            )
            y, cache = attended
            y = y[:, 1::2]
            found: Any = memory.apply(
                memory_params, y, learner, aligned=aligned, packed=part
            )
            m, learner = found
            ended = learner.memory.position == 0
            seen = jnp.where(ended, 0, cache.seen)
            return (learner, cache._replace(seen=seen)), gate(y, m)

        def token(state, inputs, *_):
            return segment(state, inputs)

        def from_start(state, inputs, *_):
            return segment(state, inputs, aligned=True)

        def documents(state, inputs, valid, closes):
            """Reads tokens of one segment of a document in each row."""
            first = jnp.argmax(valid, 1)[:, None]

            def turn(a, by):
                at = (jnp.arange(a.shape[1]) + by) % a.shape[1]
                return jnp.take_along_axis(a, at[..., None], 1)

            count = valid.sum(1, dtype=jnp.int32)
            part = goes_on(count, valid.shape[1])._replace(closes=closes)
            inputs = [turn(a, first) for a in inputs]
            state, o = segment(state, inputs, part=part)
            return state, turn(o, -first)

        size = memory_config.chunk_size
        one_by_one = functools.partial(
            chunk_scan, token, size=1, axis=1, remat=size
        )
        at_once = functools.partial(
            chunk_scan, from_start, size=size, axis=1, drop_start=True
        )
        fast, inputs = (state.memory, state.attention), (x, q)
        if packed is not None:
            position = state.memory.memory.position
            fast, o = chunk_scan(
                documents,
                fast,
                inputs,
                size=size,
                axis=1,
                layout=lay(packed, position, size),
                initial=initial,
            )
        elif aligned:
            fast, o = at_once(fast, inputs)
        elif x.shape[1] == 1:
            fast, o = segment(fast, inputs)
        else:
            starts = jnp.all(state.memory.memory.position == 0)
            fast, o = jax.lax.cond(starts, at_once, one_by_one, fast, inputs)
        learner, cache = fast
        return o, TitansAttentionState(learner, cache, tail)
