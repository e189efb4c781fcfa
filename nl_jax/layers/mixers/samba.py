"""Samba: a state space, an MLP, then attention to a window.

arXiv 2406.07522, section 2.1: the three layers before a block's own MLP, each
residual with a norm before it. Mamba keeps the distant past in a constant-size
state; the window recalls the recent past exactly.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import flax.linen as nn

from nl_jax.array_typing import Stream
from nl_jax.checks import check_fields
from nl_jax.layers.continuum.cms_config import CMSConfig
from nl_jax.layers.continuum.module import ContinuumMemory
from nl_jax.layers.mixers.attention import AttentionConfig, AttentionState
from nl_jax.layers.mixers.mamba import MambaConfig, MambaState
from nl_jax.layers.mixers.mixer import Mixer, MixerConfig
from nl_jax.layers.norms import rms_norm
from nl_jax.memory.packed import Packed
from nl_jax.nested import LevelRow
from nl_jax.nested.level_table import count_parameters


@dataclasses.dataclass(frozen=True)
class SambaConfig(MixerConfig):
    """Configuration of :class:`Samba`."""

    mamba: MambaConfig = MambaConfig(expansion=1.0)
    """The state-space layer."""
    hidden: float = 1.4
    """Hidden width of the MLP in the middle, in units of ``d_model``."""
    attention: AttentionConfig = AttentionConfig()
    """The attention layer."""
    takes_stream: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self)
        if not self.hidden > 0:
            raise ValueError(f"hidden={self.hidden} must be positive")

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        return Samba(self, d_model, n_heads, dtype)

    def levels(self, params, state):
        """Returns the mixer's rows of the level table."""
        mlp = LevelRow(
            name="samba.mlp",
            memory_of="tokens of its period",
            architecture="SwiGLU MLP",
            objective="next token",
            rule="outer optimizer",
            period=1,
            unit="steps",
            parameters=count_parameters(params["mlp"]),
            state_bytes=0,
        )
        return [
            *self.mamba.levels(params["mamba"], state.mamba),
            mlp,
            *self.attention.levels(params["attention"], state.attention),
        ]


class SambaState(NamedTuple):
    """Fast state, batch first."""

    mamba: MambaState
    """State of the state-space layer."""
    attention: AttentionState
    """State of the attention layer."""


class Samba(Mixer):
    """A sequence mixer of three residual layers; heads are the attention's."""

    config: SambaConfig

    def setup(self):
        """Declares the three layers."""
        config = self.config
        shared = (self.d_model, self.n_heads, self.dtype)
        self.mamba = config.mamba.build(*shared)
        self.mlp = ContinuumMemory(
            CMSConfig(hidden=config.hidden), self.d_model, self.dtype
        )
        self.attention = config.attention.build(*shared)

    def initial_state(self, batch_size: int) -> SambaState:
        """Returns the empty state of ``batch_size`` rows."""
        return SambaState(
            self.mamba.initial_state(batch_size),
            self.attention.initial_state(batch_size),
        )

    @nn.compact
    def __call__(
        self,
        x: Stream,
        state=None,
        *,
        stream: Stream | None = None,
        packed: Packed | None = None,
    ):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state.

        The layers add to ``stream``, which is ``x`` before its norm.
        """
        x, state, declare = self.begin(x, state)
        ones = nn.initializers.ones
        scale = declare("attention_scale", ones, (self.d_model,), ("embed",))
        start = x if stream is None else stream
        y, mamba = self.mamba(x, state.mamba, packed=packed)
        h = self.mlp(start + y)
        y, attention = self.attention(
            rms_norm(h, scale), state.attention, packed=packed
        )
        return h + y - start, SambaState(mamba, attention)
