"""Levels, their frequencies, and how knowledge moves between them."""

from nl_jax.nested.describe import describe
from nl_jax.nested.frequency import EveryState, every
from nl_jax.nested.level import (
    Level,
    LevelState,
    NestedSystem,
    fresh_level,
    gradient_level,
)
from nl_jax.nested.level_table import LevelRow, LevelTable, SupportsLevels
from nl_jax.nested.transfer import (
    backpropagation,
    direct_nonparametric,
    direct_parametric,
    generation,
    initialization,
)

__all__ = [
    "EveryState",
    "Level",
    "LevelRow",
    "LevelState",
    "LevelTable",
    "NestedSystem",
    "SupportsLevels",
    "backpropagation",
    "describe",
    "direct_nonparametric",
    "direct_parametric",
    "every",
    "fresh_level",
    "generation",
    "gradient_level",
    "initialization",
]
