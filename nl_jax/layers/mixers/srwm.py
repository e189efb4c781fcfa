r"""SRWM: a matrix that makes its own keys, values, queries and learning rates.

arXiv 2202.05780, section 3. Per head, with :math:`\phi` the softmax,

.. math::
    [y_t, k_t, q_t, \beta_t] = W_{t-1} \phi(x_t), \qquad
    \bar v_t = W_{t-1} \phi(k_t), \quad v_t = W_{t-1} \phi(q_t), \qquad
    W_t = W_{t-1} + \sigma(\beta_t) (v_t - \bar v_t) \otimes \phi(k_t)

with a separate rate for each of the four groups of rows. Every key depends on
the matrix after the previous token, so the scan goes token by token, with
``3 d + 4`` rows of ``d`` numbers per head.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.checks import check_fields
from nl_jax.layers.mixers.mixer import Mixer, MixerConfig, token_level
from nl_jax.layers.mixing import normalize_heads, split_heads
from nl_jax.layers.short_conv import silu_conv
from nl_jax.memory.packed import Packed
from nl_jax.memory.walk import chunk_scan
from nl_jax.nested.level import select_rows

_RATES = 4


@dataclasses.dataclass(frozen=True)
class SRWMConfig(MixerConfig):
    """Configuration of :class:`SRWM`."""

    chunk_size: int = 64
    """Tokens between the matrices kept for the backward pass, which recomputes
    the others; results do not depend on it."""
    conv_width: int = 4
    """Width of the causal convolution on the input, in tokens."""

    def __post_init__(self):
        check_fields(self)

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        return SRWM(self, d_model, n_heads, dtype)

    def levels(self, params, state):
        """Returns the mixer's rows of the level table."""
        return [
            token_level(
                name="srwm.memory",
                memory_of="own keys to own values",
                architecture="linear, generates itself",
                objective="l2",
                rule="GD",
                params=params["memory"],
                state=state.memory,
            )
        ]

    def learned(self, state):
        """Returns the weights of the memory by the name of their start."""
        return {"memory": state.memory}


class SRWMState(NamedTuple):
    """Fast state, batch first."""

    memory: jax.Array
    """``[B, H, d, 3 d + 4]`` float32."""
    tail: jax.Array
    """Raw inputs of the convolution, ``[B, width - 1, D]``."""


def self_referential_scan(
    w, x, *, chunk_size: int = 64, packed: Packed | None = None, initial=None
):
    """Runs the recurrence above over any length.

    Args:
        w: initial matrices ``[B, ..., d, 3 d + 4]``, whose columns make output,
            key, query and four rates, and whose dtype is that of the
            computation.
        x: inputs ``[B, T, ..., d]``.
        chunk_size: tokens between the matrices kept for the backward pass.
        packed: documents in the rows.
        initial: matrices with which each of them begins, like ``w``.

    Returns:
        ``(y, w)``, ``[B, T, ..., d]`` and the final matrices.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.ones((1, 2, 10))  # Keys equal queries: nothing to learn.
        >>> y, end = self_referential_scan(w, jnp.zeros((1, 3, 2)))
        >>> y.shape, bool((end == w).all())
        ((1, 3, 2), True)
    """
    d = x.shape[-1]
    group = jnp.repeat(
        jnp.arange(_RATES),
        jnp.array([d, d, d, _RATES]),
        total_repeat_length=3 * d + _RATES,
    )

    def ask(w, x):
        return jnp.einsum("...io,...i->...o", w, x)

    def token(w, token, *_):
        x, starts, valid = token
        if starts is not None:
            w = select_rows(starts[:, 0], initial, w)
        made = ask(w, x[:, 0])
        y, k, q, beta = jnp.split(made, [d, 2 * d, 3 * d], -1)
        k, q = jax.nn.softmax(k), jax.nn.softmax(q)
        # v - v_bar = W phi(q) - W phi(k).
        write = jax.nn.sigmoid(beta)[..., group] * ask(w, q - k)
        if valid is not None:
            write = jnp.where(
                valid.reshape(-1, *(1,) * (write.ndim - 1)), write, 0
            )
        return w + k[..., :, None] * write[..., None, :], y[:, None]

    def chunk(w, x, *_):
        return chunk_scan(token, w, x, size=1, axis=1, remat=0)

    inputs: Any = (jax.nn.softmax(x.astype(w.dtype)), None, None)
    if packed is not None:
        inputs = inputs[0], packed.starts, packed.valid
    w, y = chunk_scan(chunk, w, inputs, size=chunk_size, axis=1)
    return y, w


class SRWM(Mixer):
    """A sequence mixer: a self-referential matrix per head."""

    config: SRWMConfig

    def setup(self):
        """Declares the initial matrices."""
        d = self.head_width
        self.initial: Any = self.param(
            "memory",
            nn.with_logical_partitioning(
                nn.initializers.normal(d**-0.5),
                ("heads", "memory_in", "memory_out"),
            ),
            (self.n_heads, d, 3 * d + _RATES),
            jnp.float32,
        )

    def initial_state(self, batch_size: int) -> SRWMState:
        """Returns the learned state from which ``batch_size`` rows start."""
        tail = (batch_size, self.config.conv_width - 1, self.d_model)
        initial: Any = self.initial
        return SRWMState(
            jnp.broadcast_to(initial, (batch_size, *initial.shape)),
            jnp.zeros(tail, self.cache_dtype),
        )

    @nn.compact
    def __call__(self, x: Stream, state=None, *, packed: Packed | None = None):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state."""
        config, d = self.config, self.d_model
        x, state, declare = self.begin(x, state)
        raw = x @ declare.dense("w_in", d, d, "mixer")
        kernel = declare.taps("conv", config.conv_width, d)
        u, tail = silu_conv(raw, kernel, state.tail, packed)
        u = split_heads(u, self.n_heads).swapaxes(1, 2)
        y, memory = self_referential_scan(
            state.memory,
            u,
            chunk_size=config.chunk_size,
            packed=packed,
            initial=self.initial_state(len(x)).memory,
        )
        y = normalize_heads(declare, y.astype(x.dtype).swapaxes(1, 2))
        out = declare.dense("w_out", d, d, "embed", "mixer")
        return y.reshape(x.shape) @ out, SRWMState(memory, tail)
