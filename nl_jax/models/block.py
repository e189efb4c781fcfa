"""One block: a sequence mixer, then a continuum memory, both residual."""

import flax.linen as nn
import jax.numpy as jnp

from nl_jax.layers import (
    LSTM,
    SRWM,
    CausalAttention,
    ContinuumMemory,
    DeepMemory,
    Mamba,
    MatrixMemory,
    Samba,
    SelfModifyingTitans,
    TitansAttention,
)
from nl_jax.layers.norms import declare_norm, normalize
from nl_jax.models.model_config import ModelConfig

MIXERS = {
    "titans": SelfModifyingTitans,
    "attention": CausalAttention,
    "matrix": MatrixMemory,
    "deep": DeepMemory,
    "titans_attention": TitansAttention,
    "mamba": Mamba,
    "samba": Samba,
    "srwm": SRWM,
    "lstm": LSTM,
}


class Block(nn.Module):
    """``x + mixer(norm(x))``, then the levels of the continuum memory."""

    config: ModelConfig

    def setup(self):
        """Declares the norm, the mixer and the continuum memory."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        self.norm = declare_norm(
            self._declare, config.norm, "norm", config.d_model
        )
        self.mixer = MIXERS[config.mixer](
            getattr(config, config.mixer),
            config.d_model,
            config.n_heads,
            dtype,
        )
        self.cms = ContinuumMemory(
            config.cms, config.d_model, dtype, config.norm
        )

    def _declare(self, name, init, shape, axes):
        init = nn.with_logical_partitioning(init, axes)
        return self.param(name, init, shape, jnp.float32)

    def initial_state(self, batch_size):
        """Returns the mixer's state before the first token."""
        return self.mixer.initial_state(batch_size)

    def __call__(self, x, state=None, fast=None, *, aligned=False):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state.

        Where ``fast`` is a state of levels, outputs are those and the levels'
        state; see ``ContinuumMemory``.
        """
        # Samba's layers add to the stream one by one.
        stream = {"stream": x} if self.config.mixer == "samba" else {}
        y, state = self.mixer(
            normalize(self.config.norm, self.norm, "norm", x),
            state,
            aligned=aligned,
            **stream,
        )
        return self.cms(x + y, fast, aligned=aligned), state
