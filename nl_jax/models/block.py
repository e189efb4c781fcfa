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
    rms_norm,
)
from nl_jax.models.config import ModelConfig

__all__ = ["MIXERS", "Block"]

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
        self.norm_scale = self.param(
            "norm_scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
            (config.d_model,),
            jnp.float32,
        )
        self.mixer = MIXERS[config.mixer](
            getattr(config, config.mixer),
            config.d_model,
            config.n_heads,
            dtype,
        )
        self.cms = ContinuumMemory(config.cms, config.d_model, dtype)

    def initial_state(self, batch_size):
        """Returns the mixer's state before the first token."""
        return self.mixer.initial_state(batch_size)

    def __call__(self, x, state=None, fast=None, *, aligned=False):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state."""
        # Samba's layers add to the stream one by one.
        stream = {"stream": x} if self.config.mixer == "samba" else {}
        y, state = self.mixer(
            rms_norm(x, self.norm_scale), state, aligned=aligned, **stream
        )
        return self.cms(x + y, fast), state
