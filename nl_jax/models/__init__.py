"""Language models: their registry and configuration."""

from nl_jax.models.config_json import to_json
from nl_jax.models.language_model import LanguageModel, ModelState, build
from nl_jax.models.model_config import PRESETS, ModelConfig, configure, names

__all__ = [
    "PRESETS",
    "LanguageModel",
    "ModelConfig",
    "ModelState",
    "build",
    "configure",
    "names",
    "to_json",
]
