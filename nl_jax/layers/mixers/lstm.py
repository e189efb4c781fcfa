"""The LSTM as a sequence mixer: Flax's cell, scanned over tokens."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.checks import check_fields
from nl_jax.layers.mixers.mixer import Mixer, MixerConfig, token_level
from nl_jax.memory.packed import Packed
from nl_jax.nested.level import select_rows


@dataclasses.dataclass(frozen=True)
class LSTMConfig(MixerConfig):
    """Configuration of :class:`LSTM`."""

    expansion: float = 1.0
    """Number of cells in units of ``d_model``."""

    def __post_init__(self):
        check_fields(self)
        if not self.expansion > 0:
            raise ValueError(f"expansion={self.expansion} must be positive")

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        return LSTM(self, d_model, n_heads, dtype)

    def levels(self, params, state):
        """Returns the mixer's rows of the level table."""
        del params
        return [
            token_level(
                name="lstm.cells",
                memory_of="the tokens before",
                architecture="vector",
                objective="none",
                rule="gated sum",
                state=state,
            )
        ]


class LSTMState(NamedTuple):
    """Fast state, batch first."""

    cell: jax.Array
    """``[B, expansion D]`` float32."""
    hidden: jax.Array
    """``[B, expansion D]`` float32."""


class LSTM(Mixer):
    """A sequence mixer: cells with input, forget and output gates, no heads."""

    config: LSTMConfig

    @property
    def width(self) -> int:
        """Number of cells."""
        return max(round(self.config.expansion * self.d_model), 1)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Returns cells at zero for ``batch_size`` rows."""
        zeros = jnp.zeros((batch_size, self.width))
        return LSTMState(zeros, zeros)

    @nn.compact
    def __call__(self, x: Stream, state=None, *, packed: Packed | None = None):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state."""
        x, state, declare = self.begin(x, state)

        def named(init, *axes):
            return nn.with_logical_partitioning(init, axes)

        cell = nn.OptimizedLSTMCell(
            self.width,
            dtype=x.dtype,
            kernel_init=named(nn.initializers.lecun_normal(), "embed", "mixer"),
            recurrent_kernel_init=named(_orthogonal, None, "mixer"),
            bias_init=named(nn.initializers.zeros, "mixer"),
            name="cell",
        )
        begin = jax.tree.map(lambda a: a.astype(x.dtype), tuple(state))
        tokens: Any = (x, None, None)
        if packed is not None:
            tokens = (x, packed.starts, packed.valid)
        end, y = nn.scan(
            _token,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )(cell, begin, tokens)
        out = declare.dense("w_out", self.width, self.d_model, "embed", "mixer")
        end = (a.astype(old.dtype) for a, old in zip(end, state, strict=True))
        return y @ out, LSTMState(*end)


def _token(cell, state, token):
    """Reads a token; padding changes nothing."""
    x, starts, valid = token
    if starts is not None:
        state = select_rows(starts, jax.tree.map(jnp.zeros_like, state), state)
    after, y = cell(state, x)
    if valid is not None:
        after = select_rows(valid, after, state)
    return after, y


def _orthogonal(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
    """Draws a square orthogonal matrix, by Haar's measure, without LAPACK.

    It is the nearest one to a Gaussian matrix, by the cubic iteration of
    Newton-Schulz. A QR decomposition of several blocks together waits for ever
    on a mesh of CPU devices: it needs threads that the devices have taken.
    """
    x = jax.random.normal(key, shape, jnp.float32)
    product = functools.partial(jnp.matmul, precision="highest")

    def step(_, x):
        return 1.5 * x - 0.5 * product(product(x, x.mT), x)

    # The least singular value grows by half in each step, from about n^-1.5.
    return jax.lax.fori_loop(0, 60, step, x / jnp.linalg.norm(x)).astype(dtype)
