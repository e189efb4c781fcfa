"""Language models: one registry, one configuration type."""

from nl_jax.models.config import PRESETS, ModelConfig, configure, names
from nl_jax.models.language_model import LanguageModel, ModelState, build

__all__ = [
    "PRESETS",
    "LanguageModel",
    "ModelConfig",
    "ModelState",
    "build",
    "configure",
    "names",
]
