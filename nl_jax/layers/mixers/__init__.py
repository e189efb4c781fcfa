"""Sequence mixers, one file each, and their registry."""

from nl_jax.layers.mixers.attention import AttentionConfig
from nl_jax.layers.mixers.deep_memory import DeepMemoryConfig
from nl_jax.layers.mixers.lstm import LSTMConfig
from nl_jax.layers.mixers.mamba import MambaConfig
from nl_jax.layers.mixers.matrix_memory import MatrixMemoryConfig
from nl_jax.layers.mixers.mixer import MixerConfig
from nl_jax.layers.mixers.samba import SambaConfig
from nl_jax.layers.mixers.srwm import SRWMConfig
from nl_jax.layers.mixers.titans_attention import TitansAttentionConfig
from nl_jax.layers.mixers.titans_config import TitansConfig

MIXERS: dict[str, type[MixerConfig]] = {
    "titans": TitansConfig,
    "attention": AttentionConfig,
    "matrix": MatrixMemoryConfig,
    "deep": DeepMemoryConfig,
    "titans_attention": TitansAttentionConfig,
    "mamba": MambaConfig,
    "samba": SambaConfig,
    "srwm": SRWMConfig,
    "lstm": LSTMConfig,
}
"""Mixers by name. A model's configuration has a field for each."""


def mixer_name(choices: MixerConfig) -> str:
    """Returns the name of a mixer in ``MIXERS``, or else that of its class.

    Example:
        >>> mixer_name(LSTMConfig())
        'lstm'
    """
    for name, kind in MIXERS.items():
        if type(choices) is kind:
            return name
    return type(choices).__name__
