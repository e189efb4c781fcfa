r"""Mamba: a diagonal state space with token-dependent parameters.

arXiv 2312.00752, Algorithm 2 (S6) and section 3.4. Per channel :math:`e` with
``N`` states,

.. math::
    h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t x_t, \qquad
    y_t = C_t^\top h_t + D x_t

between a short convolution with SiLU and a gate. As an associative memory, this
is one gradient step on the dot product, with decay per channel and state.

Chunks are scanned in log2 steps of products and sums of decays, which are at
most 1 and cannot overflow. A chunk of C tokens holds ``C E N`` numbers per row,
which the backward pass recomputes.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.checks import check_fields
from nl_jax.layers.mixers.mixer import Mixer, MixerConfig, token_level
from nl_jax.layers.short_conv import silu_conv
from nl_jax.memory.walk import chunk_scan

_SLOWEST, _FASTEST = 0.001, 0.1
"""Range of the initial steps, uniform in the logarithm (section 3.6)."""
_FOREVER = 1e15
"""Step behind which nothing is left of a state."""


@dataclasses.dataclass(frozen=True)
class MambaConfig(MixerConfig):
    """Configuration of :class:`Mamba`."""

    expansion: float = 2.0
    """Channels ``E`` of the state space, in units of ``d_model``."""
    state_size: int = 16
    """States ``N`` per channel."""
    step_rank: int = 16
    """Divisor of ``d_model`` that gives the rank of the projection to step
    sizes: ``d_model / step_rank``, rounded up."""
    conv_width: int = 4
    """Width of the causal convolution, in tokens."""
    chunk_size: int = 64
    """Tokens processed in parallel; results do not depend on it."""

    def __post_init__(self):
        check_fields(self)
        if not self.expansion > 0:
            raise ValueError(f"expansion={self.expansion} must be positive")

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        return Mamba(self, d_model, n_heads, dtype)

    @property
    def memory_fields(self) -> tuple[str, ...]:
        """Fields that queries read."""
        return ("hidden",)

    def answer(self, memory, q):
        """Returns outputs for the ports C, as a single head."""
        hidden = memory["hidden"]
        return jnp.einsum("ben,bhtn->bhte", hidden, q.astype(hidden.dtype))

    def levels(self, params, state):
        """Returns the mixer's rows of the level table."""
        del params
        return [
            token_level(
                name="mamba.state",
                memory_of="ports B to inputs, per channel",
                architecture=f"linear, {self.state_size} to 1",
                objective="dot product",
                rule="GD, channel decay",
                state=state.hidden,
            )
        ]


class MambaState(NamedTuple):
    """Fast state, batch first."""

    hidden: jax.Array
    """``[B, E, N]`` float32."""
    tail: jax.Array
    """Raw inputs of the convolution, ``[B, width - 1, E]``."""


def selective_scan(h, x, delta, a, b, c, *, starts=None, chunk_size: int = 64):
    """Runs the recurrence above, without ``D``, over any length.

    Args:
        h: state ``[B, E, N]``, whose dtype is that of the computation.
        x: inputs ``[B, T, E]``.
        delta: steps, at least 0, ``[B, T, E]``.
        a: rates, below 0, ``[E, N]``.
        b: input weights ``[B, T, N]``.
        c: output weights ``[B, T, N]``.
        starts: tokens before which the state becomes 0, ``[B, T]``.
        chunk_size: tokens in parallel; results do not depend on it.

    Returns:
        ``(y, h)``, ``[B, T, E]`` and the final state.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 2, 1))
        >>> a = -jnp.log(jnp.full((1, 1), 2.0))
        >>> y, h = selective_scan(jnp.zeros((1, 1, 1)), one, one, a, one, one)
        >>> y[0, :, 0].tolist()
        [1.0, 1.5]
    """

    def join(left, right):
        kept, added = right
        return left[0] * kept, left[1] * kept + added

    def chunk(h, inputs, *_):
        *values, starts = inputs
        x, delta, b, c = (value.astype(h.dtype) for value in values)
        decayed = delta
        if starts is not None:
            # So long that exactly 0 is left: cheaper than a mask per state.
            decayed = jnp.where(starts[..., None], _FOREVER, delta)
        kept = jnp.exp(decayed[..., None] * a.astype(h.dtype))
        added = (delta * x)[..., None] * b[:, :, None]
        # The first token also adds the decayed initial state.
        added = added.at[:, 0].add(kept[:, 0] * h)
        _, states = jax.lax.associative_scan(join, (kept, added), axis=1)
        return states[:, -1], jnp.einsum("bten,btn->bte", states, c)

    inputs = (x, delta, b, c, starts)
    h, y = chunk_scan(chunk, h, inputs, size=chunk_size, axis=1)
    return y, h


class Mamba(Mixer):
    """A sequence mixer: convolution, selective state space, gate; no heads."""

    config: MambaConfig

    @property
    def width(self) -> int:
        """Channels of the state space."""
        return max(round(self.config.expansion * self.d_model), 1)

    def initial_state(self, batch_size: int) -> MambaState:
        """Returns the empty state of ``batch_size`` rows."""
        config, width = self.config, self.width
        return MambaState(
            jnp.zeros((batch_size, width, config.state_size)),
            jnp.zeros(
                (batch_size, config.conv_width - 1, width), self.cache_dtype
            ),
        )

    @nn.compact
    def __call__(self, x: Stream, state=None, *, packed=None, recall=None):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state."""
        config, d, width = self.config, self.d_model, self.width
        rank, size = -(-d // config.step_rank), config.state_size
        x, state, declare = self.begin(x, state)
        raw = x @ declare.dense("w_in", d, width, "mixer")
        z = x @ declare.dense("w_gate", d, width, "mixer")
        kernel = declare.taps("conv", config.conv_width, width)
        u, tail = silu_conv(raw, kernel, state.tail, packed)

        ports = u @ declare.dense(
            "w_ports", width, rank + 2 * size, None, "mixer"
        )
        step, b, c = jnp.split(ports, [rank, rank + size], -1)
        step = step @ declare.dense("w_step", rank, width, "mixer", None)
        bias = declare("b_step", _initial_steps, (width,), ("mixer",))
        delta = jax.nn.softplus((step + bias).astype(state.hidden.dtype))
        starts = None
        if packed is not None:
            starts = packed.starts
            delta = jnp.where(packed.valid[..., None], delta, 0)
        rates = declare(
            "log_rates", _initial_rates, (width, size), ("mixer", None)
        )
        a = -jnp.exp(rates.astype(state.hidden.dtype))
        y, hidden = selective_scan(
            state.hidden,
            u,
            delta,
            a,
            b,
            c,
            starts=starts,
            chunk_size=config.chunk_size,
        )
        if recall is not None:
            y = recall(y[:, None], c[:, None])[:, 0]
        skip = declare("skip", nn.initializers.ones, (width,), ("mixer",))
        y = (y.astype(x.dtype) + skip * u) * jax.nn.silu(z)
        out = declare.dense("w_out", width, d, "embed", "mixer")
        return y @ out, MambaState(hidden, tail)


def _initial_steps(rng, shape, dtype):
    """Draws steps uniform in the logarithm, as inputs of softplus."""
    low, high = jnp.log(_SLOWEST), jnp.log(_FASTEST)
    step = jnp.exp(jax.random.uniform(rng, shape, dtype, low, high))
    return step + jnp.log(-jnp.expm1(-step))


def _initial_rates(rng, shape, dtype):
    """S4D-Real: the n-th state of a channel decays at rate n."""
    del rng
    rates = jnp.arange(1, shape[1] + 1, dtype=dtype)
    return jnp.broadcast_to(jnp.log(rates), shape)
