"""Continual learning: streams of tokens, their states, and metrics."""

from nl_jax.continual import metrics
from nl_jax.continual.consolidation import consolidate, reset_level
from nl_jax.continual.inspection import (
    LevelReport,
    StateReport,
    inspect,
    state_norms,
)
from nl_jax.continual.rows import fork, reset_rows
from nl_jax.continual.sampling import (
    Sampler,
    SamplerState,
    sample_token,
)
from nl_jax.continual.stack import stack_levels, unstack_levels
from nl_jax.continual.state_files import load_state, save_state
from nl_jax.continual.streaming import StreamChunk, stream

__all__ = [
    "LevelReport",
    "Sampler",
    "SamplerState",
    "StateReport",
    "StreamChunk",
    "consolidate",
    "fork",
    "inspect",
    "load_state",
    "metrics",
    "reset_level",
    "reset_rows",
    "sample_token",
    "save_state",
    "stack_levels",
    "state_norms",
    "stream",
    "unstack_levels",
]
