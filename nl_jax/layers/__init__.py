"""Flax Linen modules: they own slow parameters and call pure functions."""

from nl_jax.layers.attention import (
    AttentionConfig,
    AttentionState,
    CausalAttention,
)
from nl_jax.layers.cms import CMSConfig, ContinuumMemory
from nl_jax.layers.delta_net import DeltaNet, DeltaNetConfig, DeltaNetState
from nl_jax.layers.norms import l2_normalize, rms_norm
from nl_jax.layers.short_conv import next_tail, short_conv
from nl_jax.layers.titans import SelfModifyingTitans, TitansState
from nl_jax.layers.titans_config import TitansConfig

__all__ = [
    "AttentionConfig",
    "AttentionState",
    "CMSConfig",
    "CausalAttention",
    "ContinuumMemory",
    "DeltaNet",
    "DeltaNetConfig",
    "DeltaNetState",
    "SelfModifyingTitans",
    "TitansConfig",
    "TitansState",
    "l2_normalize",
    "next_tail",
    "rms_norm",
    "short_conv",
]
