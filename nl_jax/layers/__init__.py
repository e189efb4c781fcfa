"""Flax Linen modules, which hold slow parameters and call pure functions."""

from nl_jax.layers.continuum.cms_config import CMSConfig
from nl_jax.layers.continuum.cms_objective import CMSObjective
from nl_jax.layers.continuum.cms_objectives import CMS_OBJECTIVES
from nl_jax.layers.continuum.module import ContinuumMemory
from nl_jax.layers.mixers import MIXERS, mixer_name
from nl_jax.layers.mixers.attention import (
    AttentionConfig,
    AttentionState,
    CausalAttention,
)
from nl_jax.layers.mixers.deep_memory import (
    DeepMemory,
    DeepMemoryConfig,
    DeepMemoryState,
)
from nl_jax.layers.mixers.lstm import LSTM, LSTMConfig, LSTMState
from nl_jax.layers.mixers.mamba import (
    Mamba,
    MambaConfig,
    MambaState,
    selective_scan,
)
from nl_jax.layers.mixers.matrix_memory import (
    MatrixMemory,
    MatrixMemoryConfig,
    MatrixMemoryState,
)
from nl_jax.layers.mixers.memory_caching import (
    CacheConfig,
    CachedConfig,
    CachedMixer,
    CachedState,
    Recall,
)
from nl_jax.layers.mixers.mixer import Mixer, MixerConfig, token_level
from nl_jax.layers.mixers.samba import Samba, SambaConfig, SambaState
from nl_jax.layers.mixers.srwm import (
    SRWM,
    SRWMConfig,
    SRWMState,
    self_referential_scan,
)
from nl_jax.layers.mixers.titans import SelfModifyingTitans, TitansState
from nl_jax.layers.mixers.titans_attention import (
    TitansAttention,
    TitansAttentionConfig,
    TitansAttentionState,
)
from nl_jax.layers.mixers.titans_config import TitansConfig
from nl_jax.layers.norms import (
    NormConfig,
    l2_normalize,
    layer_norm,
    rms_norm,
)
from nl_jax.layers.rotary import RopeScaling, rotate
from nl_jax.layers.short_conv import next_tail, short_conv

__all__ = [
    "CMS_OBJECTIVES",
    "LSTM",
    "MIXERS",
    "SRWM",
    "AttentionConfig",
    "AttentionState",
    "CMSConfig",
    "CMSObjective",
    "CacheConfig",
    "CachedConfig",
    "CachedMixer",
    "CachedState",
    "CausalAttention",
    "ContinuumMemory",
    "DeepMemory",
    "DeepMemoryConfig",
    "DeepMemoryState",
    "LSTMConfig",
    "LSTMState",
    "Mamba",
    "MambaConfig",
    "MambaState",
    "MatrixMemory",
    "MatrixMemoryConfig",
    "MatrixMemoryState",
    "Mixer",
    "MixerConfig",
    "NormConfig",
    "Recall",
    "RopeScaling",
    "SRWMConfig",
    "SRWMState",
    "Samba",
    "SambaConfig",
    "SambaState",
    "SelfModifyingTitans",
    "TitansAttention",
    "TitansAttentionConfig",
    "TitansAttentionState",
    "TitansConfig",
    "TitansState",
    "l2_normalize",
    "layer_norm",
    "mixer_name",
    "next_tail",
    "rms_norm",
    "rotate",
    "selective_scan",
    "self_referential_scan",
    "short_conv",
    "token_level",
]
