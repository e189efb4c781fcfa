"""Models that never stop learning: streams, their state, and what is lost."""

from nl_jax.continual import metrics
from nl_jax.continual.inspection import LevelReport, StateReport, inspect
from nl_jax.continual.levels import consolidate, reset_level
from nl_jax.continual.pretrained import Pretrained, load_pretrained
from nl_jax.continual.rows import fork, reset_rows
from nl_jax.continual.saved import load_state, save_state
from nl_jax.continual.stack import stack_levels
from nl_jax.continual.streaming import StreamChunk, stream

__all__ = [
    "LevelReport",
    "Pretrained",
    "StateReport",
    "StreamChunk",
    "consolidate",
    "fork",
    "inspect",
    "load_pretrained",
    "load_state",
    "metrics",
    "reset_level",
    "reset_rows",
    "save_state",
    "stack_levels",
    "stream",
]
